"""MLflow: its client, its URI, a check that it can be used, and finished runs."""

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
from typing import TYPE_CHECKING

from salescast.config import settings
from salescast.errors import UserError
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_uri(workdir: Workdir) -> str:
    """Where runs and models are kept: MLFLOW_TRACKING_URI, else the workdir's own SQLite file."""
    return settings().mlflow_tracking_uri or workdir.tracking_uri


def mlflow_client(uri: str) -> "MlflowClient":
    """A client of runs and models that does not talk to the terminal."""
    # MLflow tells of its database tables and draws a bar for every artifact; it reads these on import.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")  # MLflow's own, of its own tables
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def mlflow_answers(uri: str) -> Iterator[None]:
    """What MLflow refuses or cannot do within becomes a UserError of one line, after a look whether it is there."""
    check(uri)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, UnicodeDecodeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"MLflow at {uri} does not do it: {reason[:300]}; mend that and run the command again"
        ) from error


def check(uri: str, attempts: int = 3) -> None:
    """Raise UserError if the tracking server or file at `uri` cannot be used."""
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
    """Raise UserError for a damaged file; none at all is fine, MLflow makes one."""
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as file:
            found = file.execute("PRAGMA quick_check(1)").fetchone()[0]
    except (sqlite3.Error, UnicodeDecodeError) as error:  # what is damaged may be a name
        found = str(error)
    if found != "ok":
        found = " ".join(str(found).split())
        raise UserError(f"the MLflow store {path} is damaged ({found}); put a copy in its place, or move it away")


@dataclass(frozen=True)
class Point:
    """One value of a metric; `time` in milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


def log_run(
    uri: str, experiment: str, artifacts: str | None, name: str, tags: dict[str, str], points: list[Point]
) -> str:
    """Create a finished run with these tags and metrics; returns its id.

    `artifacts` is where a new experiment keeps its files; None leaves it to the server.
    """
    client = mlflow_client(uri)
    from mlflow.entities import Metric

    known = client.get_experiment_by_name(experiment)
    number = known.experiment_id if known else client.create_experiment(experiment, artifacts)
    run_id = str(client.create_run(number, run_name=name, tags=tags).info.run_id)
    metrics = [Metric(point.name, point.value, point.time, point.step) for point in points]
    for at in range(0, len(metrics), 1000):  # the most that MLflow takes at once
        client.log_batch(run_id, metrics[at : at + 1000])
    client.set_terminated(run_id)
    return run_id


@contextmanager
def run_artifacts(uri: str, run_id: str, names: tuple[str, ...]) -> Iterator[list[Path]]:
    """Files of a run by their names, in a temporary folder. Raises UserError for a run or a file that is not there."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder, mlflow_answers(uri):
        try:
            client = mlflow_client(uri)
            client.get_run(run_id)
            yield [Path(client.download_artifacts(run_id, name, folder)) for name in names]
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"run {run_id!r} has no readable record ({reason[:200]}); see `mlflow ui`") from None
