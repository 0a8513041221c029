"""The MLflow registry: every model gets a version, the best one the alias `champion`."""

import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from salescast.errors import UserError
from salescast.evaluation.lineage import Candidate
from salescast.evaluation.metrics import scores
from salescast.runtime import parquet
from salescast.schema import MODEL_NAME
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
from salescast.evaluation import promotion
from salescast.tracking.mlflow import mlflow_answers, mlflow_client, tracking_uri

logger = logging.getLogger(__name__)

CHAMPION: Final = "champion"
PROMOTED: Final = "promoted"  # tag of a version: whether it has been given the alias
BACKTEST: Final = "backtest.parquet"
BUNDLES: Final = "bundles"  # registered ones by their digest, among the files of a run


@dataclass(frozen=True)
class Registration:
    version: int
    champion: bool
    reason: str


def register(workdir: Workdir, run_id: str, candidate: Candidate, backtest: pl.DataFrame, model: str) -> Registration:
    """Register the workdir's bundle, which `candidate` describes; give it the alias `champion` if it is promoted.

    A bundle with the digest of a registered version is that version. Every step can be repeated: what is there stays
    as it is, what is missing is done. An alias that a version once had and somebody moved is not taken back.
    Raises UserError when MLflow does not do it, or keeps another bundle than the workdir's.
    """
    with mlflow_answers(tracking_uri(workdir)):
        return _register(mlflow_client(tracking_uri(workdir)), workdir, run_id, candidate, backtest, model)


def _register(
    client: "MlflowClient",
    workdir: Workdir,
    run_id: str,
    candidate: Candidate,
    backtest: pl.DataFrame,
    model: str,
) -> Registration:
    digest, artifacts = candidate.final.digest, _artifacts_of(client, run_id)
    _named_model(client)
    known = client.search_model_versions(f"name='{MODEL_NAME}'")
    champion = _champion(client, known)
    found = next((version for version in known if version.tags.get("digest") == digest), None)
    serves = found is not None and found is champion
    before = None if serves else _champion_backtest(client, champion)  # its run may be the one that is written to
    place = _upload(client, run_id, workdir.models, digest)
    _log_results(client, run_id, backtest, model)
    client.log_text(run_id, json.dumps(asdict(candidate), default=str, indent=1), workdir.evaluation.name)
    if found is not None and serves:
        client.set_model_version_tag(MODEL_NAME, found.version, PROMOTED, "yes")
        return Registration(int(found.version), True, found.tags.get("verdict", "given the alias by hand"))
    if found is not None and found.tags.get(PROMOTED) == "yes":
        now = f"version {champion.version}" if champion else "no version"
        return Registration(int(found.version), False, f"it was champion before; now {now} has the alias")
    decision = promotion.decide(backtest, model, before)
    tags = {"digest": digest, "verdict": decision.reason, "model": model, PROMOTED: "no"}
    tags["backtest"] = candidate.evaluation.backtest
    version = found or client.create_model_version(MODEL_NAME, f"{artifacts}/{place}", run_id=run_id, tags=tags)
    for name, value in tags.items():
        if version.tags.get(name) != value:  # judged before, by another backtest or beside another champion
            client.set_model_version_tag(MODEL_NAME, version.version, name, value)
    if decision.promoted:
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version.version)
        client.set_model_version_tag(MODEL_NAME, version.version, PROMOTED, "yes")
    return Registration(int(version.version), decision.promoted, decision.reason)


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
    from salescast.model import bundle

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
