"""Ports and child processes."""

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final

import psutil

from salescast.errors import UserError

QUIET: Final = 300.0  # seconds without a sign of life after which a process counts as hung
WORK: Final = 600.0  # CPU seconds; a start needs about ten, and a busy machine makes them take longer, not more
STOP: Final = 30.0  # seconds from SIGTERM to SIGKILL
PROBE: Final = 10.0  # seconds for one answer; the next probe asks again


class NotReadyError(UserError):
    """A server that did not get ready or does not answer, which says nothing about what it would have answered."""


def announce(text: str) -> None:
    """Write a line with the time to stderr, which is the log of a server."""
    sys.stderr.write(f"{datetime.now():%H:%M:%S} {text}\n")
    sys.stderr.flush()


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


class Starting:
    """A server process on its way to being ready. The wait has no time limit: it ends with the process."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        """`url` is answered 200 once the server is ready; `log` is where the process writes."""
        self.name, self.url = name, url
        self._process, self._log, self._quiet = process, log, Quiet()

    def ready(self) -> bool:
        """Whether it is ready now.

        Raises NotReadyError when it has ended, or is hung: no sign of life (CPU time, lines in its log) for `QUIET`
        seconds, or `WORK` seconds of CPU time used without coming to an end. A server that answers, but not with 200,
        has nothing more to start; it is given `QUIET` seconds as well.
        """
        self.check()
        answer = status(self.url)
        if answer == HTTPStatus.OK:
            return True
        used = cpu_seconds(self._process.pid)
        sign = (self._log.stat().st_size, used) if answer is None else answer
        if self._quiet.seconds(sign) > QUIET:
            what = "no sign of life" if answer is None else f"answer {answer}"
            raise NotReadyError(f"{self.name} did not get ready: {what} for {QUIET:.0f} s{self._said()}")
        if answer is None and used > WORK:
            raise NotReadyError(f"{self.name} did not get ready in {WORK:.0f} s of CPU time{self._said()}")
        return False

    def check(self) -> None:
        """Raise NotReadyError with the last words of a process that has ended."""
        if (code := self._process.poll()) is not None:
            raise NotReadyError(f"{self.name} ended with code {code}{self._said()}")

    @property
    def doing(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _said(self) -> str:
        return f": {self.doing}; see {self._log}"


def status(url: str) -> int | None:
    """The status code that a server answers with; None when it does not answer."""
    import httpx  # takes a third of a second, which a server's first sign of life does not wait for

    try:
        return httpx.get(url, timeout=PROBE).status_code
    except httpx.TransportError:
        return None


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL when that does not end the process."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP)
    process.kill()
    process.wait()


logger = logging.getLogger(__name__)


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
