"""`salescast up`: the forecast API and the pages of MLflow and Feast over a finished run, until it is stopped."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx

from salescast.errors import UserError
from salescast.runtime import extras, processes
from salescast.runtime.processes import Service, check_free
from salescast.schema import MODEL_NAME
from salescast.tracking import champion
from salescast.tracking.mlflow import OFF, tracking_uri
from salescast.workdir import Workdir

STOP_SECONDS: Final = 15.0  # from SIGTERM to SIGKILL
STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int
    mlflow: int
    feast: int


@dataclass(frozen=True)
class Page:
    """A server that is started here, and its address for people."""

    url: str
    service: Service


def services(work: Workdir, ports: Ports, model_dir: Path | None = None) -> list[Page]:
    """What a finished run can show: the forecasts, its Feast repo, and MLflow where the runs are kept in the workdir.

    The forecasts are the champion's, unless `model_dir` or the environment selects another model.

    Raises UserError when a part of the run or a package is missing, or a port is taken.
    """
    for needed in (work.models, work.feature_repo):
        if not needed.is_dir():
            raise UserError(f"no finished run in {work.root}: {needed} is missing; run `salescast run` first")
    extras.require(extras.SERVE)
    what = champion.chosen(model_dir=model_dir)
    model = ("--model", what) if isinstance(what, str) else ("--model-dir", str(what.resolve()))
    serve = ("-m", "salescast.cli.app", "serve", "--workdir", str(work.root), *model)
    listen = ("--port", str(ports.http), "--grpc-port", str(ports.grpc))
    feast = (str(Path(sys.executable).with_name("feast")), "ui", "--host", "127.0.0.1", "--port", str(ports.feast))
    pages = [
        _page("forecasts", ports.http, f"/v2/models/{MODEL_NAME}/ready", work, (sys.executable, *serve, *listen)),
        _page("Feast", ports.feast, "/", work, feast),
    ]
    uri = tracking_uri(work)
    if uri.startswith("sqlite:"):
        mlflow = ("-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1", "--host", "127.0.0.1")
        command = (sys.executable, *mlflow, "--port", str(ports.mlflow))
        pages.append(_page("MLflow", ports.mlflow, "/health", work, command))
    links = {page.service.name: page.url for page in pages[1:]} | {"report": "report"}
    pages[0] = replace(pages[0], service=replace(pages[0].service, environment={"SALESCAST_PAGES": json.dumps(links)}))
    check_free("gRPC", ports.grpc)
    for page in pages:
        check_free(page.service.name, httpx.URL(page.url).port or 0)
    return pages


def _page(name: str, port: int, ready: str, work: Workdir, command: tuple[str, ...]) -> Page:
    folder = work.feature_repo if name == "Feast" else work.root
    # MLflow would start six more processes for jobs that nobody has here, and report its use to its makers.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = quiet if name == "MLflow" else {}
    log = work.root / "logs" / f"{name.lower()}.log"
    return Page(
        f"http://localhost:{port}",
        Service(name, command, f"http://127.0.0.1:{port}{ready}", log, folder, environment),
    )


def addresses(work: Workdir, pages: Sequence[Page]) -> dict[str, str]:
    """The address of each page by its name, that of an MLflow server elsewhere, and the report."""
    urls = {page.service.name: page.url for page in pages}
    if "MLflow" not in urls and tracking_uri(work) != OFF:
        urls["MLflow"] = tracking_uri(work)
    if work.report.is_file():
        urls["report"] = work.report.as_uri()
    return urls


def run(work: Workdir, ports: Ports, ready: Callable[[dict[str, str]], None], model_dir: Path | None = None) -> None:
    """Start everything, call `ready` with the addresses when all of it answers, and stay until Ctrl-C or SIGTERM.

    Waits for each as long as its process lives and does something, and shows that it waits.
    Raises UserError when something is missing, does not become ready, or ends by itself; the others are stopped then.
    """
    pages = services(work, ports, model_dir)
    (work.root / "logs").mkdir(exist_ok=True)
    started = [page.service for page in pages]
    with processes.flagged(*STOPS) as stop, processes.running(started, STOP_SECONDS) as servers:
        processes.wait_until_ready("waiting for all to be ready", servers, lambda: stop.received)
        if not stop.received:
            ready(addresses(work, pages))
        while not stop.wait(0.5):
            for server in servers:
                server.check()
