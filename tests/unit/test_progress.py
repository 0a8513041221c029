"""Who watches sees a bar with a rate; a file or a pipe gets nothing."""

import os
import pty
import subprocess
import sys

SCRIPT = """
import time
from types import SimpleNamespace
import polars as pl
from salescast.progress import counted
parts = [SimpleNamespace(sales=pl.DataFrame({"store_id": range(500)})) for _ in range(4)]
for part in counted(iter(parts), "features", 2000):
    time.sleep(0.15)
    print(part.sales.height)
"""


def run(stderr: int) -> str:
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, check=True).stdout.decode()


def test_a_terminal_sees_a_rate() -> None:
    ours, theirs = pty.openpty()
    assert run(theirs).split() == ["500"] * 4
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 1 << 16)
        except OSError:  # the terminal is closed and read to its end
            break
    os.close(ours)
    assert b"features" in seen and b"rows/s" in seen


def test_a_pipe_sees_nothing() -> None:
    ours, theirs = os.pipe()
    assert run(theirs).split() == ["500"] * 4
    os.close(theirs)
    assert os.read(ours, 100) == b""
    os.close(ours)
