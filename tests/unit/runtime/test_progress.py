"""Who watches sees a bar with a rate, and that something is waited for; a file or a pipe gets few lines or none."""

import os
import pty
import subprocess
import sys

import pytest

from salescast.runtime import progress

SCRIPT = """
import time
from types import SimpleNamespace
import polars as pl
from salescast.runtime.progress import counted
parts = [SimpleNamespace(sales=pl.DataFrame({"store_id": range(500)})) for _ in range(4)]
for part in counted(iter(parts), "features", 2000):
    time.sleep(0.15)
    print(part.sales.height)
"""


def run(stderr: int, script: str = SCRIPT) -> str:
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, check=True).stdout.decode()


def on_a_terminal(script: str) -> bytes:
    """What a script writes to a terminal."""
    ours, theirs = pty.openpty()
    run(theirs, script)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 1 << 16)
        except OSError:  # the terminal is closed and read to its end
            break
    os.close(ours)
    return seen


def test_a_terminal_sees_a_rate() -> None:
    seen = on_a_terminal(SCRIPT)
    assert b"features" in seen and b"rows/s" in seen


def test_a_pipe_sees_nothing() -> None:
    ours, theirs = os.pipe()
    assert run(theirs).split() == ["500"] * 4
    os.close(theirs)
    assert os.read(ours, 100) == b""
    os.close(ours)


def test_without_a_terminal_a_wait_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with progress.waiting("waiting for the server", lambda: now) as tell:
        for step in range(41):
            now = float(step)
            tell("loading libraries" if step < 20 else "loading [the] model")
    assert capsys.readouterr().err.splitlines() == [
        "waiting for the server, 15 s: loading libraries ...",
        "waiting for the server, 30 s: loading [the] model ...",
    ]


def test_a_terminal_sees_that_something_is_waited_for() -> None:
    script = """
import time
from salescast.runtime.progress import waiting
with waiting("waiting for the server") as tell:
    for _ in range(5):
        tell("loading [the] model")
        time.sleep(0.15)
"""
    assert b"waiting for the server, 0 s: loading [the] model" in on_a_terminal(script)
