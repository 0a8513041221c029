"""`salescast serve`: checks that cost nothing, then one server, or several processes of it that share their ports."""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final

from salescast import champion
from salescast.config import Workdir, settings
from salescast.errors import UserError
from salescast.processes import announce

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
    """Serve the bundle in `model_dir` with the features of the workdir's online store until SIGTERM or SIGINT.

    With `model` (models:/NAME@ALIAS), whatever bundle that names in the MLflow registry from time to time.
    Raises UserError for a port that is taken, a missing bundle and a missing feature repo.
    """
    model, count = model or settings().model, workers or settings().serve_workers
    folder = model_dir or settings().model_dir or workdir.models
    if model:
        champion.split(model)
    elif not folder.is_dir():
        raise UserError(f"no model bundle in {folder}; run `salescast train` first or give --model-dir")
    for name, port in (("HTTP", http_port), ("gRPC", grpc_port)):
        check_free(name, port)
    if model is None and count == 1:
        announce("loading libraries")
        from salescast import server

        server.run(folder, workdir.feature_repo, http_port, grpc_port)
        return
    with tempfile.TemporaryDirectory(prefix="salescast-") as place:
        commands: list[list[str]] = []
        if model:
            commands = [["salescast.champion", model, f"{place}/champion", str(workdir.root)]]
            folder = Path(place) / "champion" / champion.BUNDLE
        # KServe's own workers are killed when they take more than 5 s to import, and leave gRPC to one process.
        server_command = ["salescast.serve", *map(str, (folder, workdir.feature_repo, http_port, grpc_port))]
        announce(f"starting {count} server processes")
        _supervise([*commands, *[server_command] * count], Path(place), folder)


def check_free(name: str, port: int) -> None:
    """Raises UserError naming the port when something listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            raise UserError(f"{name} port {port} cannot be used: {error.strerror}; choose another one") from None


def _supervise(commands: list[list[str]], place: Path, bundle: Path) -> None:
    """Keep modules running as processes; a stop is passed on to them, and waits until they have finished.

    The second one starts when there is a `bundle`. Raises UserError when one ends before it has been of use.
    """
    stopping: list[int] = []
    # prometheus_client looks at the variable once, when a process imports it.
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(place)}
    running: list[tuple[subprocess.Popen[bytes], float]] = []

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
    failed = None
    while not stopping and failed is None:
        if len(running) < len(commands) and (not running or bundle.is_dir()):
            running.append(start(commands[len(running)]))
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
    from salescast import server

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
