"""`salescast serve`: checks that cost nothing, then one server, or several processes of it that share their ports."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final

from salescast.config import settings
from salescast.errors import UserError
from salescast.runtime.processes import announce, check_free
from salescast.serving import alias_follower
from salescast.tracking import champion
from salescast.workdir import Workdir

logger = logging.getLogger(__name__)

EARLY: Final = 30.0  # seconds; a process that ends earlier has not served and would not if started again


def main(
    workdir: Workdir,
    model_dir: Path | None,
    http_port: int,
    grpc_port: int,
    workers: int | None = None,
    model: str | None = None,
) -> None:
    """Serve what `champion.chosen` says with the features of the workdir's online store until SIGTERM or SIGINT.

    A model of the registry, by default the champion, is followed: whatever bundle it is from time to time.
    Raises UserError for a port that is taken, a missing feature repo, and without such a model or bundle.
    """
    what, count = champion.chosen(model, model_dir), workers or settings().serve_workers
    if isinstance(what, str):
        champion.split(what)
    elif not what.is_dir():
        raise UserError(f"no model bundle in {what}; run `salescast train` first, or serve the champion")
    for name, port in (("HTTP", http_port), ("gRPC", grpc_port)):
        check_free(name, port)
    announce("loading libraries")
    if isinstance(what, Path) and count == 1:
        from salescast.serving import server

        server.run(what, workdir.feature_repo, http_port, grpc_port)
        return
    with tempfile.TemporaryDirectory(prefix="salescast-") as place:
        commands: list[list[str]] = []
        folder = what if isinstance(what, Path) else Path(place) / "champion" / champion.BUNDLE
        if isinstance(what, str):
            follower = ["salescast.tracking.champion", what, str(folder.parent), str(workdir.root)]
            _fetch(follower)
            commands = [follower]
        # KServe's own workers are killed when they take more than 5 s to import, and leave gRPC to one process.
        server_command = [
            "salescast.serving.supervisor",
            *map(str, (folder, workdir.feature_repo, http_port, grpc_port)),
        ]
        announce(f"starting {count} server processes")
        _supervise([*commands, *[server_command] * count], Path(place))


def _fetch(follower: list[str]) -> None:
    """Have the follower bring its model now. Raises UserError with its reason when there is none."""
    command = [sys.executable, "-m", *follower, alias_follower.ONCE]
    reason = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            reason = line.strip()
            if not reason.startswith("error: "):
                sys.stderr.write(line)
    if process.returncode:
        raise UserError(reason.removeprefix("error: ") or f"the registry was left with code {process.returncode}")


def _supervise(commands: list[list[str]], place: Path) -> None:
    """Keep modules running as processes; a stop is passed on to them, and waits until they have finished.

    Raises UserError when one ends before it has been of use.
    """
    stopping: list[int] = []
    # prometheus_client looks at the variable once, when a process imports it.
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(place)}

    def start(command: list[str]) -> tuple[subprocess.Popen[bytes], float]:
        arguments = [sys.executable, "-m", *command]
        return subprocess.Popen(arguments, env=environment, start_new_session=True), time.monotonic()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.append(1)

    def look_for_a_bundle(_number: int, _frame: FrameType | None) -> None:
        for process, _ in running:
            process.send_signal(signal.SIGHUP)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, look_for_a_bundle)
    running = [start(command) for command in commands]
    failed = None
    while not stopping and failed is None:
        time.sleep(0.1)
        for at, (process, since) in enumerate(running):
            code = process.poll()
            if code is not None and time.monotonic() - since < EARLY:
                failed = code
            elif code is not None and not stopping:
                logger.error("process %d ended with code %d; another one takes its place", process.pid, code)
                running[at] = start(commands[at])
    for process, _ in running:
        process.terminate()
    for process, _ in running:
        process.wait()
    if failed is not None:
        raise UserError(f"a process of the server ended at once with code {failed}; its reason stands above")


def _end_with(parent: int) -> None:
    """Stop as at SIGTERM when the supervisor is gone: one that was killed cannot stop its servers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


def _worker(arguments: list[str]) -> int:
    announce("loading libraries")
    from salescast.serving import server

    _end_with(os.getppid())
    folder, repo, http_port, grpc_port = arguments
    try:
        server.run(Path(folder), Path(repo), int(http_port), int(grpc_port), shared=True)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_worker(sys.argv[1:]))
