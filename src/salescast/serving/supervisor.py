"""`salescast serve`: check what can be checked without loading libraries, then run one server process or several."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from salescast.config import settings
from salescast.errors import UserError
from salescast.runtime import extras, processes
from salescast.runtime.processes import announce, check_free
from salescast.serving import alias_follower
from salescast.tracking import champion
from salescast.workdir import Workdir

logger = logging.getLogger(__name__)


def main(
    workdir: Workdir,
    model_dir: Path | None,
    http_port: int,
    grpc_port: int,
    workers: int | None = None,
    model: str | None = None,
) -> None:
    """Serve the model that `champion.chosen` selects, with the workdir's online features, until SIGTERM or SIGINT.

    A model of the registry (by default the champion) is followed: the server loads each new version of its alias.
    Raises UserError for a port that is taken, a missing feature repo, a missing model or bundle, and without KServe.
    """
    extras.require(extras.SERVE)
    what, count = champion.chosen(model, model_dir), workers or settings().serve_workers
    if isinstance(what, str):
        champion.split(what)
    elif not what.is_dir():
        raise UserError(f"no model bundle in {what}; run `salescast train` first, or serve the champion")
    for name, port in (("HTTP", http_port), ("gRPC", grpc_port)):
        check_free(name, port)
    if isinstance(what, Path) and count == 1:
        announce("loading libraries")
        from salescast.serving import server

        server.run(what, workdir.feature_repo, http_port, grpc_port)
        return
    with tempfile.TemporaryDirectory(prefix="salescast-") as name:
        place = Path(name)
        commands = []
        folder = what if isinstance(what, Path) else place / "champion" / champion.BUNDLE
        if isinstance(what, str):
            follower = [alias_follower.__name__, what, str(folder.parent), str(workdir.root)]
            announce(f"fetching {what} ...")
            _fetch(follower)
            commands.append(follower)
        # KServe kills workers of its own that need more than 5 s to import, and serves gRPC in one process only.
        worker = [__name__, *map(str, (folder, workdir.feature_repo, http_port, grpc_port))]
        announce(f"starting {count} server processes")
        supervise([*commands, *[worker] * count], place)


def _fetch(follower: Sequence[str]) -> None:
    """Run the follower once. Raises UserError with its reason when it brings no model."""
    command = [sys.executable, "-m", *follower, alias_follower.ONCE]
    reason = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            reason = line.strip()
            if not reason.startswith("error: "):
                sys.stderr.write(line)
    if process.returncode:
        raise UserError(reason.removeprefix("error: ") or f"{follower[0]} ended with code {process.returncode}")


@dataclass
class _Child:
    """A module that runs as a process."""

    command: Sequence[str]
    place: Path

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        # prometheus_client reads the variable once, when a process imports it.
        environment = {"PROMETHEUS_MULTIPROC_DIR": str(self.place)}
        self.process = processes.start([sys.executable, "-m", *self.command, str(self.place)], environment)

    @property
    def ready(self) -> Path:
        return processes.ready_file(self.place, self.process.pid)

    def restart_if_ended(self) -> None:
        """Raises UserError if it ended before it was ready: another start would end in the same way."""
        code = self.process.poll()
        if code is None:
            return
        if not self.ready.exists():
            raise UserError(f"a server process ended with code {code} before it was ready; see its messages above")
        self.ready.unlink()
        logger.error("process %d ended with code %d; starting another one", self.process.pid, code)
        self.start()


def supervise(commands: Sequence[Sequence[str]], place: Path) -> None:
    """Run each command (a module and its arguments, to which `place` is added) as a process until SIGTERM or SIGINT.

    A process makes its `processes.ready_file` in `place` when it is ready; one that ends after that is started again.
    SIGHUP is passed on. At the end each process is sent SIGTERM and waited for.

    Raises UserError when a process ends before it is ready, however long its start took.
    """
    children: list[_Child] = []

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        for child in children:
            if child.ready.exists():  # until then the signal would kill it, and it loads the newest bundle anyway
                child.process.send_signal(signal.SIGHUP)

    with processes.flagged(signal.SIGTERM, signal.SIGINT) as stop:
        signal.signal(signal.SIGHUP, pass_on)
        try:
            children.extend(_Child(command, place) for command in commands)
            while not stop.wait(0.1):
                for child in children:
                    child.restart_if_ended()
        finally:
            for child in children:
                child.process.terminate()
            for child in children:
                child.process.wait()


def _worker(arguments: list[str]) -> int:
    processes.end_with_parent()  # first: the imports below take seconds, in which the supervisor may be killed
    announce("loading libraries")
    from salescast.serving import server

    folder, repo, http_port, grpc_port, place = arguments
    ready = processes.ready_file(Path(place), os.getpid())
    try:
        server.run(Path(folder), Path(repo), int(http_port), int(grpc_port), shared=True, listening=ready.touch)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_worker(sys.argv[1:]))
