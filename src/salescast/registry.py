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
PEAK: Final = 1.2


@dataclass(frozen=True)
class Verdict:
    """Whether a model may serve, and the sentence that says why."""

    champion: bool
    reason: str


def judge(backtest: pl.DataFrame, model: str, champion: pl.DataFrame | None) -> Verdict:
    """Compare `model` with every other model of its backtest and with the champion's backtest on the rows both have.

    The model must have the lower WMAPE pooled, at every cutoff and in the peak weeks. A champion without a common row
    (its data are older than every cutoff) cannot be compared and gives way.
    """
    lost = _lost(backtest, model)
    if lost:
        return Verdict(False, lost)
    won = "beats every baseline, pooled, at every cutoff and in the peak weeks"
    if champion is None:
        return Verdict(True, f"{won}; there was no champion")
    mine = backtest.filter(pl.col("model") == model)
    theirs = mine.drop("yhat", "p10", "p90", "model").join(champion.select(*ROW, "yhat", "p10", "p90"), on=ROW)
    if theirs.is_empty():
        return Verdict(True, f"{won}; the champion was tested on other cutoffs and cannot be compared")
    theirs = theirs.with_columns(model=pl.lit("the champion")).select(mine.columns)
    both = pl.concat([mine.join(theirs, on=ROW, how="semi"), theirs])
    lost = _lost(both, model)
    if lost:
        return Verdict(False, f"{lost}, on the same rows")
    new, old = (scores(both).filter(pl.col("model") == name)["wmape"].item() for name in (model, "the champion"))
    return Verdict(True, f"{won}, and the champion: WMAPE {new:.2%} against {old:.2%} on the same rows")


def _lost(backtest: pl.DataFrame, model: str) -> str | None:
    """Where `model` does not have the least WMAPE of all; None if it has it everywhere."""
    for place, rows in _places(backtest, model):
        table = scores(rows)
        mine = table.filter(pl.col("model") == model)["wmape"]
        better = table.filter((pl.col("model") != model) & (pl.col("wmape") <= mine.first()))
        if better.height:
            name, other = better.select("model", "wmape").row(0)
            return f"{place}: WMAPE {mine.item():.2%} does not beat {name} with {other:.2%}"
    return None


def _places(backtest: pl.DataFrame, model: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows that must be won: all together, those of each cutoff, and those of the peak weeks.

    Peak weeks: weeks of a cutoff in which all series together sold PEAK times the median week of the backtest, or more.
    There may be none.
    """
    yield "pooled", backtest
    for (cutoff,), rows in backtest.partition_by("cutoff", as_dict=True, maintain_order=True).items():
        yield f"at cutoff {cutoff}", rows
    sold = backtest.filter(pl.col("model") == model).group_by("cutoff", "week").agg(pl.col("y").sum())
    peaks = sold.filter(pl.col("y") >= PEAK * pl.col("y").median()).select("cutoff", "week")
    if peaks.height:
        yield "in the peak weeks", backtest.join(peaks, on=["cutoff", "week"], how="semi")


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
    except (MlflowException, SQLAlchemyError, UnicodeDecodeError) as error:
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
    """The backtest frame, its tables and the model's metrics, in the run of the final fit.

    Metrics by horizon have the horizon as their step, so that MLflow draws them as curves.
    """
    table = scores(backtest)
    own = backtest.filter(pl.col("model") == model)
    for row in (table.filter(pl.col("model") == model), scores(own, ["model", "horizon"])):
        for values in row.to_dicts():
            step, name = values.pop("horizon", None), "backtest_by_horizon" if "horizon" in row.columns else "backtest"
            for metric, value in values.items():
                if isinstance(value, float) and math.isfinite(value):
                    client.log_metric(run_id, f"{name}_{metric}", value, step=step)
    client.log_text(run_id, table.write_csv(), "backtest_scores.csv")
    for column in ("cutoff", "horizon", "week", "dept_id", "store_id"):
        client.log_text(run_id, scores(backtest, ["model", column]).write_csv(), f"backtest_scores_by_{column}.csv")
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
