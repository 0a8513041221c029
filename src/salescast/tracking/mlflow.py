"""The MLflow client, its URI, a check that it can be used, and runs."""

import os
import sqlite3
import ssl
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from salescast.config import settings
from salescast.errors import UserError
from salescast.runtime import extras
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's pages then open on runs and models, not on traces of chat models.
KIND: Final = {"mlflow.experimentKind": "custom_model_development"}
BATCH: Final = 1000  # metrics that MLflow takes in one request
OFF: Final = "off"  # in place of a URI: runs and models are not kept


def tracking_uri(workdir: Workdir) -> str:
    """Where runs and models are kept: MLFLOW_TRACKING_URI, else the workdir's own SQLite file.

    OFF where nobody asked for MLflow and it is not installed. Raises UserError where MLFLOW_TRACKING_URI asks for it.
    """
    if settings().mlflow_tracking_uri:
        require_tracking()
        return str(settings().mlflow_tracking_uri)
    return workdir.tracking_uri if extras.installed(extras.TRACKING) else OFF


def require_tracking() -> None:
    """Raise UserError if MLflow is not installed, unless tracking is switched off."""
    if settings().mlflow_tracking_uri != OFF:
        extras.require(extras.TRACKING)


def why_off() -> str:
    """Why nothing is tracked where `tracking_uri` is OFF, and what to do."""
    switched_off = settings().mlflow_tracking_uri == OFF
    return "MLFLOW_TRACKING_URI is off; set it to track runs" if switched_off else extras.TRACKING.missing


def mlflow_client(uri: str) -> "MlflowClient":
    """A client of runs and models that writes nothing to the terminal."""
    # MLflow reads these on import; without them it logs its database migrations and draws a bar for every artifact.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")  # from MLflow's own tables
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def mlflow_answers(uri: str) -> Iterator[None]:
    """Check that MLflow can be used, then turn its errors into a UserError of one line, as `mlflow_errors` does."""
    check(uri)
    with mlflow_errors(uri):
        yield


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Raise UserError for a request that MLflow refuses, that fails on the way, or that its store cannot do."""
    extras.require(extras.TRACKING)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, UnicodeDecodeError, OSError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"request to MLflow at {uri} failed: {reason[:300]}; fix the cause and rerun the command"
        ) from error


def check(uri: str, attempts: int = 3) -> None:
    """Raise UserError if the tracking server or file at `uri` cannot be used."""
    extras.require(extras.TRACKING)
    hint = "start it, correct MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_URI=off to train without tracking"
    if uri.startswith(("http://", "https://")):
        trusted = ssl.create_default_context(cafile=settings().mlflow_certificate)
        for attempt in range(1, attempts + 1):
            try:
                with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=30, context=trusted):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if attempt == attempts:
                    raise UserError(f"the MLflow server {uri} does not answer ({error}); {hint}") from None
            time.sleep(1)
    elif uri.startswith(("sqlite:///", "file://")):
        folder = Path(uri.removeprefix("sqlite:///").removeprefix("file://")).parent
        if not os.access(next(parent for parent in (folder, *folder.parents) if parent.exists()), os.W_OK):
            raise UserError(f"the MLflow store {uri} is in a folder that cannot be written; {hint}")
        folder.mkdir(parents=True, exist_ok=True)
        if uri.startswith("sqlite:///"):
            _check_sqlite(Path(uri.removeprefix("sqlite:///")))


def _check_sqlite(path: Path) -> None:
    """Raise UserError for a damaged file. A missing one is fine: MLflow creates it."""
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as file:
            result = str(file.execute("PRAGMA quick_check(1)").fetchone()[0])
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a damaged table name need not be UTF-8
        result = str(error)
    if result != "ok":
        result = " ".join(result.split())
        raise UserError(f"the MLflow store {path} is damaged ({result}); restore a copy, or move it away")


@dataclass(frozen=True)
class Point:
    """One value of a metric; `time` in milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


def create_run(
    client: "MlflowClient", experiment: str, artifacts: str | None, name: str, tags: dict[str, str] | None = None
) -> str:
    """Create a run, and its experiment if there is none; returns the run's id.

    `artifacts` is where a new experiment keeps its files; None leaves it to the server.
    """
    known = client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known else client.create_experiment(experiment, artifacts, tags=KIND)
    return str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)


def log_run(
    uri: str, experiment: str, artifacts: str | None, name: str, tags: dict[str, str], points: list[Point]
) -> str:
    """Create a finished run with these tags and metrics, see `create_run`; returns its id."""
    client = mlflow_client(uri)
    from mlflow.entities import Metric

    run_id = create_run(client, experiment, artifacts, name, tags)
    metrics = [Metric(point.name, point.value, point.time, point.step) for point in points]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics[start : start + BATCH])
    client.set_terminated(run_id)
    return run_id


@contextmanager
def run_artifacts(uri: str, run_id: str, names: tuple[str, ...]) -> Iterator[list[Path]]:
    """Files of a run by their names, in a temporary folder. Raises UserError if the run or a file is missing."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder, mlflow_answers(uri):
        try:
            client = mlflow_client(uri)
            client.get_run(run_id)
            yield [Path(client.download_artifacts(run_id, name, folder)) for name in names]
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"run {run_id!r} has no readable record ({reason[:200]}); see `mlflow ui`") from None
