"""The MLflow registry: every model gets a version, the best one the alias `champion`."""

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from salescast import parquet, tracking
from salescast.config import Workdir, settings
from salescast.errors import UserError
from salescast.evaluate import scores
from salescast.schema import KEYS, MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

CHAMPION: Final = "champion"
BACKTEST: Final = "backtest.parquet"
ROW: Final = (*KEYS, "cutoff", "horizon")


@dataclass(frozen=True)
class Verdict:
    """Whether a model may serve, and the sentence that says why."""

    champion: bool
    reason: str


def judge(backtest: pl.DataFrame, model: str, champion: pl.DataFrame | None) -> Verdict:
    """Compare `model` with every other model of its backtest and with the champion's backtest on the rows both have.

    The model must have the lower WMAPE pooled and at every cutoff. A champion without a common row (its data are
    older than every cutoff) cannot be compared and gives way.
    """
    for by, where in (([], "pooled"), (["cutoff"], "at cutoff")):
        table = scores(backtest, ["model", *by])
        mine = table.filter(pl.col("model") == model)
        others = table.filter(pl.col("model") != model)
        pairs = mine.join(others, how="cross" if not by else "inner", on=by or None, suffix="_other")
        lost = pairs.filter(pl.col("wmape") >= pl.col("wmape_other")).sort("wmape_other")
        if lost.height:
            row = lost.row(0, named=True)
            place = f"{where} {row['cutoff']}" if by else where
            return Verdict(
                False,
                f"{place}: WMAPE {row['wmape']:.2%} does not beat {row['model_other']} with {row['wmape_other']:.2%}",
            )
    if champion is None:
        return Verdict(True, "beats every baseline, pooled and at every cutoff; there was no champion")
    mine = backtest.filter(pl.col("model") == model).select(*ROW, "y", "yhat", "p10", "p90", model=pl.lit("new"))
    both = mine.join(champion.select(*ROW, old="yhat"), on=ROW)
    if both.is_empty():
        return Verdict(True, "beats every baseline; the champion was tested on other cutoffs and cannot be compared")
    new = scores(both)["wmape"].item()
    old = scores(both.with_columns(yhat=pl.col("old")))["wmape"].item()
    if new < old:
        return Verdict(
            True, f"beats every baseline and the champion: WMAPE {new:.2%} against {old:.2%} on the same rows"
        )
    return Verdict(False, f"does not beat the champion: WMAPE {new:.2%} against {old:.2%} on the same rows")


@dataclass(frozen=True)
class Registration:
    version: int
    champion: bool
    reason: str


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
    tracking.check(uri)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"MLflow at {uri} does not do it: {reason[:300]}; mend that and run the command again"
        ) from error


def register(workdir: Workdir, run_id: str, digest: str, backtest: pl.DataFrame, model: str) -> Registration:
    """Register the bundle that `run_id` logged under `bundle/`; give it the alias `champion` if `judge` agrees.

    A bundle with the digest of a registered version is that version: registering twice changes nothing.
    """
    with mlflow_answers(tracking_uri(workdir)):
        return _register(mlflow_client(tracking_uri(workdir)), run_id, digest, backtest, model)


def _register(client, run_id: str, digest: str, backtest: pl.DataFrame, model: str) -> Registration:  # type: ignore[no-untyped-def]
    from mlflow.exceptions import MlflowException

    _log_results(client, run_id, backtest, model)
    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name='{MODEL_NAME}'")
    alias = client.get_registered_model(MODEL_NAME).aliases.get(CHAMPION)
    champion = None if alias is None else int(alias)
    same = [version for version in known if version.tags.get("digest") == digest]
    if same:
        version = same[0]
        reason = version.tags.get("verdict", "registered before")
        return Registration(int(version.version), int(version.version) == champion, reason)
    verdict = judge(backtest, model, _champion_backtest(client, known, champion))
    source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
    tags = {"digest": digest, "verdict": verdict.reason, "model": model}
    version = client.create_model_version(MODEL_NAME, source, run_id=run_id, tags=tags)
    if verdict.champion:
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version.version)
    return Registration(int(version.version), verdict.champion, verdict.reason)


def _log_results(client, run_id: str, backtest: pl.DataFrame, model: str) -> None:  # type: ignore[no-untyped-def]
    """The backtest frame, its table and the model's metrics, in the run of the final fit."""
    table = scores(backtest)
    mine = table.filter(pl.col("model") == model).row(0, named=True)
    for name, value in mine.items():
        if isinstance(value, float) and math.isfinite(value):
            client.log_metric(run_id, f"backtest_{name}", value)
    client.log_text(run_id, table.write_csv(), "backtest_scores.csv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / BACKTEST
        parquet.write(backtest, path)
        client.log_artifact(run_id, str(path))


def _champion_backtest(client, known, champion: int | None) -> pl.DataFrame | None:  # type: ignore[no-untyped-def]
    """The champion's forecasts in its own backtest, from its run's artifacts; None without a champion."""
    champions = [version for version in known if int(version.version) == champion]
    if not champions:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(champions[0].run_id, BACKTEST, folder))
        frame = parquet.read(path, f"give the alias {CHAMPION!r} of {MODEL_NAME!r} to a version whose run is whole")
    return frame.filter(pl.col("model") == champions[0].tags["model"])
