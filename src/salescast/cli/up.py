"""`salescast up`: the forecast API and the pages of MLflow and Feast over a finished run, until somebody stops them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from salescast.errors import UserError
from salescast.runtime import progress
from salescast.runtime.processes import Starting, check_free
from salescast.schema import MODEL_NAME
from salescast.tracking import champion
from salescast.tracking.mlflow import tracking_uri
from salescast.workdir import Workdir

STOP_SECONDS: Final = 15.0  # after which what has not ended by itself is killed
STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int
    mlflow: int
    feast: int


@dataclass(frozen=True)
class Service:
    """A server that is started here: its address for people, and a path that is answered 200 once it is ready."""

    name: str
    url: str
    ready: str
    command: tuple[str, ...]
    folder: Path


def services(work: Workdir, ports: Ports, model_dir: Path | None = None) -> list[Service]:
    """What a finished run can show: the forecasts, its Feast repo, and MLflow where the runs are kept in the workdir.

    The forecasts are the champion's, unless `model_dir` or the environment asks for another model.

    Raises UserError when a part of the run is missing, or a port is taken.
    """
    for needed in (work.models, work.feature_repo):
        if not needed.is_dir():
            raise UserError(f"no finished run in {work.root}: {needed} is missing; run `salescast run` first")
    what = champion.chosen(model_dir=model_dir)
    asked = ("--model", what) if isinstance(what, str) else ("--model-dir", str(what.resolve()))
    serve = ("-m", "salescast.cli.app", "serve", "--workdir", str(work.root), "--port", str(ports.http), *asked)
    feast = ("ui", "--host", "127.0.0.1", "--port", str(ports.feast))
    found = [
        _service("forecasts", ports.http, "/docs", f"/v2/models/{MODEL_NAME}/ready", work.root,
                 (sys.executable, *serve, "--grpc-port", str(ports.grpc))),
        _service("Feast", ports.feast, "", "/", work.feature_repo,
                 (str(Path(sys.executable).with_name("feast")), *feast)),
    ]  # fmt: skip
    uri = tracking_uri(work)
    if uri.startswith("sqlite:"):
        mlflow = ("-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1", "--host", "127.0.0.1")
        command = (sys.executable, *mlflow, "--port", str(ports.mlflow))
        found.append(_service("MLflow", ports.mlflow, "", "/health", work.root, command))
    check_free("gRPC", ports.grpc)
    for service in found:
        check_free(service.name, httpx.URL(service.url).port or 0)
    return found


def _service(name: str, port: int, page: str, ready: str, folder: Path, command: tuple[str, ...]) -> Service:
    url = f"http://localhost:{port}"
    return Service(name, url + page, f"http://127.0.0.1:{port}{ready}", command, folder)


def addresses(work: Workdir, started: Sequence[Service]) -> dict[str, str]:
    """Where everything is: what was started, an MLflow server elsewhere, the report."""
    found = {service.name: service.url for service in started}
    if "MLflow" not in found and tracking_uri(work) != "off":
        found["MLflow"] = tracking_uri(work)
    if work.report.is_file():
        found["report"] = work.report.as_uri()
    return found


def run(work: Workdir, ports: Ports, ready: Callable[[dict[str, str]], None], model_dir: Path | None = None) -> None:
    """Start everything, call `ready` with the addresses when all of it answers, and stay until Ctrl-C or SIGTERM.

    Waits for each as long as its process lives and does something, and shows that it waits.
    Raises UserError when something is missing, does not get ready, or ends by itself; the others are stopped then.
    """
    asked = services(work, ports, model_dir)
    logs = work.root / "logs"
    logs.mkdir(exist_ok=True)
    with _told_to_stop() as stop, _running(asked, logs) as processes:
        started = [
            Starting(service.name, process, service.ready, _log(logs, service))
            for service, process in zip(asked, processes, strict=True)
        ]
        _await(started, stop)
        if not stop.is_set():
            ready(addresses(work, asked))
        while not stop.wait(0.5):
            for server in started:
                server.check()


def _await(started: Sequence[Starting], stop: threading.Event) -> None:
    """Return when all are ready or somebody says stop. Raises NotReadyError when one ends or is hung."""
    waiting = list(started)
    with progress.waiting("waiting for all to be ready") as tell:
        while waiting and not stop.wait(0.1):
            for server in started:
                server.check()
            waiting = [server for server in waiting if not server.ready()]
            tell("; ".join(f"{server.name}: {server.doing}" for server in waiting))


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in STOPS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _running(asked: Sequence[Service], logs: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The services' processes, each in a group of its own: a server's own children go with it."""
    processes: list[subprocess.Popen[bytes]] = []
    # MLflow would start six more processes for jobs that nobody has here.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        for service in asked:
            with _log(logs, service).open("w") as out:
                out.write(f"starting {service.name}\n")
                out.flush()
                processes.append(
                    subprocess.Popen(
                        service.command, cwd=service.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                        env=environment, start_new_session=True,
                    )
                )  # fmt: skip
        yield processes
    finally:
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _log(logs: Path, service: Service) -> Path:
    return logs / f"{service.name.lower()}.log"
