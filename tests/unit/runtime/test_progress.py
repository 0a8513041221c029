"""Progress on stderr: bars and spinners on a terminal, few lines or none in a file or a pipe."""

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
from salescast.runtime.progress import track_rows
parts = [SimpleNamespace(sales=pl.DataFrame({"store_id": range(500)})) for _ in range(4)]
for part in track_rows(iter(parts), "features", 2000):
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


def test_a_terminal_shows_a_rate() -> None:
    seen = on_a_terminal(SCRIPT)
    assert b"features" in seen and b"rows/s" in seen


def test_a_pipe_gets_nothing() -> None:
    ours, theirs = os.pipe()
    assert run(theirs).split() == ["500"] * 4
    os.close(theirs)
    assert os.read(ours, 100) == b""
    os.close(ours)


def test_without_a_terminal_waiting_writes_a_line_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with progress.waiting("waiting for the server", lambda: now) as notify:
        for step in range(41):
            now = float(step)
            notify("loading libraries" if step < 20 else "loading [the] model")
    assert capsys.readouterr().err.splitlines() == [
        "waiting for the server, 15 s: loading libraries ...",
        "waiting for the server, 30 s: loading [the] model ...",
    ]


def test_a_terminal_shows_what_is_waited_for() -> None:
    script = """
import time
from salescast.runtime.progress import waiting
with waiting("waiting for the server") as notify:
    for _ in range(5):
        notify("loading [the] model")
        time.sleep(0.15)
"""
    assert b"waiting for the server, 0 s: loading [the] model" in on_a_terminal(script)
