"""Starting and stopping servers, and waiting for one for as long as its process does something."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count, pairwise
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast.runtime import processes

NOBODY = "http://127.0.0.1:9"
WORKS = "while True: pass"
Start = Callable[..., tuple[processes.Server, "subprocess.Popen[bytes]"]]


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 2)), min_size=1, max_size=30))
def test_quiet_is_the_time_since_the_sign_changed(steps: list[tuple[int, int]]) -> None:
    times = [0]
    for seconds, _ in steps:
        times.append(times[-1] + seconds)
    now = iter(times)
    current = next(now)
    quiet = processes.Quiet(lambda: current)
    told = []
    for _, sign in steps:
        current = next(now)
        told.append(quiet.seconds(sign))
    signs = [sign for _, sign in steps]
    changes = [1] + [at + 2 for at, (old, new) in enumerate(pairwise(signs)) if old != new]
    assert told == [times[at] - times[max(c for c in changes if c <= at)] for at in range(1, len(times))]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server that is a line of Python; yields it and its process."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(code: str, url: str = NOBODY) -> tuple[processes.Server, "subprocess.Popen[bytes]"]:
        command = (sys.executable, "-c", code)
        server = processes.Server(processes.Service("the server", command, url, tmp_path / "log"))
        started.append(server.process)
        return server, server.process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@contextmanager
def answering(code: int) -> Iterator[str]:
    """A web server that answers everything with one status code."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is an hour after the previous one."""
    quiet, clock = processes.Quiet, count(0.0, 3600.0)
    monkeypatch.setattr(processes, "Quiet", lambda: quiet(lambda: next(clock)))


@pytest.mark.usefixtures("hours")
def test_a_working_process_is_waited_for_and_a_stopped_one_is_not(start: Start) -> None:
    starting, process = start(WORKS)
    for _ in range(3):  # hours, during which it uses CPU time
        before = processes.cpu_seconds(process.pid)
        while processes.cpu_seconds(process.pid) == before:
            pass
        assert not starting.ready()
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        pass
    with pytest.raises(processes.NotReadyError, match="the server did not become ready: no sign of life for 300 s"):
        while not starting.ready():  # once more if it did something before it was stopped
            pass


@pytest.mark.usefixtures("hours")
def test_lines_in_the_log_are_a_sign_of_life(start: Start, tmp_path: Path) -> None:
    starting, process = start("import signal; signal.pause()")
    while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:
        pass
    for number in range(3):
        with (tmp_path / "log").open("a") as log:
            log.write(f"step {number}\n")
        assert not starting.ready()
        assert starting.last_line() == f"step {number}"


def test_the_cpu_time_of_a_start_is_limited(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORK", 0.1)
    starting, _ = start(WORKS)
    with pytest.raises(
        processes.NotReadyError, match=r"did not become ready in 0 s of CPU time: starting the server; see .*log"
    ):
        while not starting.ready():
            pass


def test_an_ended_process_is_reported_with_its_last_line(start: Start) -> None:
    starting, process = start("print('loading'); exit('no such table')")
    process.wait()
    with pytest.raises(processes.NotReadyError, match=r"the server ended with code 1: no such table; see .*log"):
        starting.ready()


@pytest.mark.usefixtures("hours")
def test_an_answer_other_than_200_is_waited_for_for_a_limited_time(start: Start) -> None:
    with answering(503) as url:
        starting, _ = start(WORKS, url)
        assert not starting.ready()
        with pytest.raises(processes.NotReadyError, match="answer 503 for 300 s"):
            starting.ready()
    with answering(200) as url:
        assert start(WORKS, url)[0].ready()


def test_a_process_that_ignores_sigterm_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP", 0.2)
    stubborn, process = start(
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    )
    while stubborn.last_line() != "1":
        pass
    processes.stop(process)
    assert process.returncode == -signal.SIGKILL
    _, polite = start("import signal; signal.pause()")
    processes.stop(polite)
    assert polite.returncode in (-signal.SIGTERM, -signal.SIGKILL)


@pytest.mark.fault("the supervisor of the server's processes is killed", "they end too")
def test_a_process_ends_with_its_parent(start: Start) -> None:
    child = (
        "from salescast.runtime import processes; import signal; processes.end_with_parent(); print(1); signal.pause()"
    )
    spawn = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-u', '-c', {child!r}])"
    parent, process = start(f"{spawn}; print(child.pid, flush=True); child.wait()")
    while parent.last_line() != "1":
        time.sleep(0.05)
    number = int(parent.service.log.read_text().split()[-2])
    orphan = psutil.Process(number)
    process.kill()
    with suppress(psutil.NoSuchProcess):
        while orphan.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
