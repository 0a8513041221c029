"""Child processes: start, wait until ready, stop; the end of the parent; ports."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import IO, Final

import psutil

from salescast.errors import UserError
from salescast.runtime import progress

QUIET: Final = 300.0  # seconds without a sign of life after which a process counts as hung
WORK: Final = 600.0  # CPU seconds; a start needs about ten, and a busy machine makes them take longer, not more
STOP: Final = 30.0  # seconds from SIGTERM to SIGKILL
PROBE: Final = 10.0  # seconds for one answer; the next probe asks again


class NotReadyError(UserError):
    """A server did not become ready or did not answer; its answers remain unchecked."""


def announce(text: str) -> None:
    """Write a line with the time to stderr, which is the log of a server."""
    sys.stderr.write(f"{datetime.now():%H:%M:%S} {text}\n")
    sys.stderr.flush()


# --- the parent and signals ---


class Parent:
    """The process that started this one."""

    def __init__(self) -> None:
        self._pid = os.getppid()

    def gone(self) -> bool:
        """Whether it has ended; the kernel then gives this process another parent."""
        return os.getppid() != self._pid


def end_with_parent() -> None:
    """Send this process SIGTERM once its parent has ended: a killed parent cannot stop its children."""
    parent = Parent()

    def watch() -> None:
        while not parent.gone():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


class SignalFlag:
    """Set by a signal. A threading.Event may deadlock there: `set` in the handler takes a lock that `wait` holds."""

    def __init__(self) -> None:
        self.received = False

    def wait(self, seconds: float) -> bool:
        """Sleep for at most so long; whether a signal was received by the end."""
        end = time.monotonic() + seconds
        while not self.received and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return self.received

    def set(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True


@contextmanager
def flagged(*signals: signal.Signals) -> Iterator[SignalFlag]:
    """A flag that any of these signals sets; their earlier handlers are restored at the end."""
    flag = SignalFlag()
    before = {number: signal.signal(number, flag.set) for number in signals}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ready_file(folder: Path, pid: int) -> Path:
    """The file by which a process tells its supervisor that it is ready."""
    return folder / f"{pid}.ready"


# --- start and stop ---


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    output: IO[bytes] | IO[str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a command in a process group of its own, so that `stop` also reaches the processes that it starts.

    `environment` is added to that of this process; `output` takes stdout and stderr.
    """
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **(environment or {})}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
    )  # fmt: skip


def stop(*processes: "subprocess.Popen[bytes]", patience: float | None = None) -> None:
    """SIGTERM to all and what they started, SIGKILL to those that have not ended after `patience` seconds (STOP)."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + (STOP if patience is None else patience)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # not a group of its own
        process.send_signal(number)


# --- wait until ready ---


class Quiet:
    """Measures how long a process has shown no sign of life."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._sign: object = None

    def seconds(self, sign: object) -> float:
        """Seconds since `sign` was last another value than now."""
        now = self._clock()
        if sign != self._sign:
            self._sign, self._since = sign, now
        return now - self._since


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its children have used; 0 for one that is gone."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += sum(member.cpu_times()[:4])  # its own, user and system, and that of children that have ended
    return total


@dataclass(frozen=True)
class Service:
    """A server to start. `ready` is a URL that answers 200 once it is ready; stdout and stderr go to `log`."""

    name: str
    command: tuple[str, ...]
    ready: str
    log: Path
    folder: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Server:
    """A started service."""

    def __init__(self, service: Service) -> None:
        self.service, self._quiet = service, Quiet()
        with service.log.open("w") as output:
            output.write(f"starting {service.name}\n")
            output.flush()
            self.process = start(service.command, service.environment, service.folder, output)

    def ready(self) -> bool:
        """Whether it is ready now. A start has no time limit.

        Raises NotReadyError when it has ended, or is hung: no sign of life (CPU time, lines in its log) for `QUIET`
        seconds, or `WORK` seconds of CPU time without becoming ready. A server that answers, but not with 200, has
        nothing more to start; it is given `QUIET` seconds as well.
        """
        self.check()
        answer = status(self.service.ready)
        if answer == HTTPStatus.OK:
            return True
        used = cpu_seconds(self.process.pid)
        sign = (self.service.log.stat().st_size, used) if answer is None else answer
        if self._quiet.seconds(sign) > QUIET:
            what = "no sign of life" if answer is None else f"answer {answer}"
            raise self._error(f"did not become ready: {what} for {QUIET:.0f} s")
        if answer is None and used > WORK:
            raise self._error(f"did not become ready in {WORK:.0f} s of CPU time")
        return False

    def check(self) -> None:
        """Raises NotReadyError with the last line of the log when the process has ended."""
        if (code := self.process.poll()) is not None:
            raise self._error(f"ended with code {code}")

    def last_line(self) -> str:
        """The last line of its log."""
        lines = self.service.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _error(self, what: str) -> NotReadyError:
        return NotReadyError(f"{self.service.name} {what}: {self.last_line()}; see {self.service.log}")


@contextmanager
def running(services: Sequence[Service], patience: float | None = None) -> Iterator[list[Server]]:
    """The services, started in this order; all of them are stopped at the end."""
    servers: list[Server] = []
    try:
        servers.extend(map(Server, services))  # an error keeps those already started in the list
        yield servers
    finally:
        stop(*(server.process for server in servers), patience=patience)


def wait_until_ready(title: str, servers: Sequence[Server], cancelled: Callable[[], bool] = lambda: False) -> None:
    """Wait, and show it, until all are ready or `cancelled`. Raises NotReadyError when one ends or hangs."""
    waiting = list(servers)
    with progress.waiting(title) as tell:
        while waiting and not cancelled():
            for server in servers:
                server.check()
            waiting = [server for server in waiting if not server.ready()]
            tell("; ".join(f"{server.service.name}: {server.last_line()}" for server in waiting))
            time.sleep(0.1 if waiting else 0)


def status(url: str) -> int | None:
    """The status code that a server answers with; None when it does not answer."""
    import httpx  # takes a third of a second, which a server's first sign of life does not wait for

    try:
        return httpx.get(url, timeout=PROBE, trust_env=False).status_code  # no proxy for this machine
    except httpx.TransportError:
        return None


# --- ports ---


def check_free(name: str, port: int) -> None:
    """Raises UserError naming the port when something listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            raise UserError(f"{name} port {port} cannot be used: {error.strerror}; choose another one") from None


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
