"""The MLflow registry: every model gets a version, the best one the alias `champion`."""

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from salescast import parquet, tracking
from salescast.config import Workdir, settings
from salescast.errors import UserError
from salescast.evaluate import scores
from salescast.lineage import Judged
from salescast.schema import KEYS, MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHAMPION: Final = "champion"
PROMOTED: Final = "promoted"  # tag of a version: whether it has been given the alias
BACKTEST: Final = "backtest.parquet"
BUNDLES: Final = "bundles"  # registered ones by their digest, among the files of a run
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


def register(workdir: Workdir, run_id: str, judged: Judged, backtest: pl.DataFrame, model: str) -> Registration:
    """Register the workdir's bundle, which `judged` is of; give it the alias `champion` if `judge` agrees.

    A bundle with the digest of a registered version is that version. Every step can be repeated: what is there stays
    as it is, what is missing is done. An alias that a version once had and somebody moved is not taken back.
    Raises UserError when MLflow does not do it, or keeps another bundle than the workdir's.
    """
    with mlflow_answers(tracking_uri(workdir)):
        return _register(mlflow_client(tracking_uri(workdir)), workdir, run_id, judged, backtest, model)


def _register(
    client: "MlflowClient",
    workdir: Workdir,
    run_id: str,
    judged: Judged,
    backtest: pl.DataFrame,
    model: str,
) -> Registration:
    digest, artifacts = judged.final.digest, _artifacts_of(client, run_id)
    _named_model(client)
    known = client.search_model_versions(f"name='{MODEL_NAME}'")
    champion = _champion(client, known)
    found = next((version for version in known if version.tags.get("digest") == digest), None)
    serves = found is not None and found is champion
    before = None if serves else _champion_backtest(client, champion)  # its run may be the one that is written to
    place = _upload(client, run_id, workdir.models, digest)
    _log_results(client, run_id, backtest, model)
    client.log_text(run_id, json.dumps(asdict(judged), default=str, indent=1), workdir.evaluation.name)
    if found is not None and serves:
        client.set_model_version_tag(MODEL_NAME, found.version, PROMOTED, "yes")
        return Registration(int(found.version), True, found.tags.get("verdict", "given the alias by hand"))
    if found is not None and found.tags.get(PROMOTED) == "yes":
        now = f"version {champion.version}" if champion else "no version"
        return Registration(int(found.version), False, f"it was champion before; now {now} has the alias")
    verdict = judge(backtest, model, before)
    tags = {"digest": digest, "verdict": verdict.reason, "model": model, PROMOTED: "no"}
    tags["backtest"] = judged.evaluation.backtest
    version = found or client.create_model_version(MODEL_NAME, f"{artifacts}/{place}", run_id=run_id, tags=tags)
    for name, value in tags.items():
        if version.tags.get(name) != value:  # judged before, by another backtest or beside another champion
            client.set_model_version_tag(MODEL_NAME, version.version, name, value)
    if verdict.champion:
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version.version)
        client.set_model_version_tag(MODEL_NAME, version.version, PROMOTED, "yes")
    return Registration(int(version.version), verdict.champion, verdict.reason)


def _artifacts_of(client: "MlflowClient", run_id: str) -> str:
    """Where the run keeps its files. Raises UserError when MLflow does not have the run."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.artifact_uri)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"MLflow has no run {run_id} of this training; run `salescast train` again: it sends it"
        ) from None


def _named_model(client: "MlflowClient") -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _champion(client: "MlflowClient", known: "Sequence[ModelVersion]") -> "ModelVersion | None":
    alias = client.get_registered_model(MODEL_NAME).aliases.get(CHAMPION)
    return next((version for version in known if alias is not None and int(version.version) == int(alias)), None)


def _upload(client: "MlflowClient", run_id: str, folder: Path, digest: str) -> str:
    """Keep the bundle among the run's files under its digest, if it is not there; returns its path in the run.

    The run's `bundle/` is that of its last training and may change; what is registered does not.
    """
    place = f"{BUNDLES}/{digest[:16]}"
    if _kept(client, run_id, place) == digest:
        return place
    client.log_artifacts(run_id, str(folder), place)
    kept = _kept(client, run_id, place)
    if kept != digest:
        raise UserError(
            f"MLflow keeps {'no whole bundle' if kept is None else kept[:12]} where bundle {digest[:12]} of {folder} "
            "should be; look at the space and the rights of its artifacts, then run `salescast register` again"
        )
    return place


def _kept(client: "MlflowClient", run_id: str, place: str) -> str | None:
    """The digest of the bundle among the run's files; None where there is no whole one."""
    from salescast import bundle

    if not client.list_artifacts(run_id, place):
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return bundle.load(Path(client.download_artifacts(run_id, place, folder))).digest
        except UserError as error:
            logger.warning("%s in run %s is uploaded again: %s", place, run_id, error)
            return None


def _log_results(client: "MlflowClient", run_id: str, backtest: pl.DataFrame, model: str) -> None:
    """The backtest frame, its tables and the model's metrics, in the run of the final fit.

    Metrics by horizon have the horizon as their step, so that MLflow draws them as curves. A point that is there
    already is not logged again: MLflow would draw it twice.
    """
    table = scores(backtest)
    own = backtest.filter(pl.col("model") == model)
    for row in (table.filter(pl.col("model") == model), scores(own, ["model", "horizon"])):
        prefix = "backtest_by_horizon" if "horizon" in row.columns else "backtest"
        for metric in [name for name, kind in row.schema.items() if kind == pl.Float64]:
            name = f"{prefix}_{metric}"
            history = sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp)
            logged = {point.step: point.value for point in history}
            for values in row.to_dicts():
                step, value = values.get("horizon", 0), values[metric]
                if value is not None and math.isfinite(value) and logged.get(step) != value:
                    client.log_metric(run_id, name, value, step=step)
    client.log_text(run_id, table.write_csv(), "backtest_scores.csv")
    for column in ("cutoff", "horizon", "week", "dept_id", "store_id"):
        client.log_text(run_id, scores(backtest, ["model", column]).write_csv(), f"backtest_scores_by_{column}.csv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / BACKTEST
        parquet.write(backtest, path)
        client.log_artifact(run_id, str(path))


def _champion_backtest(client: "MlflowClient", champion: "ModelVersion | None") -> pl.DataFrame | None:
    """The champion's forecasts in its own backtest, from its run's artifacts; None without a champion."""
    if champion is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(champion.run_id, BACKTEST, folder))
        frame = parquet.read(path, f"give the alias {CHAMPION!r} of {MODEL_NAME!r} to a version whose run is whole")
    return frame.filter(pl.col("model") == champion.tags["model"])
