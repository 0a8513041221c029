"""The MLflow registry: every model becomes a version, the best one has the alias `champion`."""

import json
import logging
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from salescast.errors import UserError
from salescast.evaluation import promotion
from salescast.evaluation.lineage import Candidate
from salescast.evaluation.metrics import scores
from salescast.runtime import parquet
from salescast.runtime.checksums import sha256
from salescast.schema import MODEL_NAME
from salescast.tracking.mlflow import mlflow_answers, mlflow_client, tracking_uri
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHAMPION: Final = "champion"
PROMOTED: Final = "promoted"  # tag of a version: whether it was ever given the alias
BACKTEST: Final = "backtest"  # tag of a version: the file of its run that holds the backtest of its verdict
BACKTESTS: Final = "backtests"  # folder of a run's files that holds backtests by digest
UNNAMED: Final = "backtest.parquet"  # that of a version whose tag has a digest only, as it was once
BUNDLES: Final = "bundles"  # folder of a run's files that holds registered bundles by digest


@dataclass(frozen=True)
class Registration:
    """Version of the model in MLflow, whether it is the champion, and the reason."""

    version: int
    champion: bool
    reason: str


def register(workdir: Workdir, run_id: str, candidate: Candidate, backtest: pl.DataFrame, model: str) -> Registration:
    """Register the workdir's bundle, which `candidate` describes; give it the alias `champion` if it is promoted.

    A bundle with the digest of a registered version is that version. Every step can be repeated: what exists is kept,
    what is missing is added. A version that is or was champion keeps its verdict and the results it rests on. An alias
    that a version once had and somebody moved is not taken back.
    Raises UserError when a request to MLflow fails, or when it keeps another bundle than the workdir's.
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
    digest, artifacts = candidate.final.digest, _artifact_uri(client, run_id)
    _create_model(client)
    versions = client.search_model_versions(f"name='{MODEL_NAME}'")
    champion = _champion(client, versions)
    registered = next((version for version in versions if version.tags.get("digest") == digest), None)
    is_champion = registered is not None and registered is champion
    before = None if is_champion else _champion_backtest(client, champion)
    path = _upload(client, run_id, workdir.models, digest)
    tested = _upload_backtest(client, str(registered.run_id) if registered is not None else run_id, backtest)
    if registered is not None and is_champion:
        client.set_model_version_tag(MODEL_NAME, registered.version, PROMOTED, "yes")
        return Registration(int(registered.version), True, registered.tags.get("verdict", "given the alias by hand"))
    if registered is not None and registered.tags.get(PROMOTED) == "yes":
        now = f"version {champion.version}" if champion else "no version"
        return Registration(int(registered.version), False, f"it was champion before; now {now} has the alias")
    _log_results(client, run_id, backtest, model)
    client.log_text(run_id, json.dumps(asdict(candidate), default=str, indent=1), workdir.evaluation.name)
    decision = promotion.decide(backtest, model, before)
    tags = {"digest": digest, "verdict": decision.reason, "model": model, BACKTEST: tested, PROMOTED: "no"}
    version = registered or client.create_model_version(MODEL_NAME, f"{artifacts}/{path}", run_id=run_id, tags=tags)
    client.update_model_version(MODEL_NAME, version.version, _description(backtest, model, decision.reason))
    for name, value in tags.items():
        if version.tags.get(name) != value:  # an earlier verdict, from another backtest or against another champion
            client.set_model_version_tag(MODEL_NAME, version.version, name, value)
    if decision.promoted:
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version.version)
        client.set_model_version_tag(MODEL_NAME, version.version, PROMOTED, "yes")
    return Registration(int(version.version), decision.promoted, decision.reason)


def _description(backtest: pl.DataFrame, model: str, verdict: str) -> str:
    """What a version was judged on, and how it did."""
    own = scores(backtest.filter(pl.col("model") == model)).row(0, named=True)
    cutoffs = ", ".join(map(str, backtest["cutoff"].unique().sort().to_list()))
    series, weeks = backtest.select("store_id", "dept_id").n_unique(), int(backtest["horizon"].to_numpy().max())
    return (
        f"Judged on {series:,} series, {weeks} weeks after each of {cutoffs}: WMAPE {own['wmape']:.2%}, "
        f"coverage of the 80 % range {own['coverage']:.1%}. Verdict: {verdict}"
    )


def _artifact_uri(client: "MlflowClient", run_id: str) -> str:
    """Where the run keeps its files. Raises UserError when MLflow does not have the run."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.artifact_uri)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"MLflow has no run {run_id} of this training; rerun `salescast train` to send it") from None


def _create_model(client: "MlflowClient") -> None:
    """Create the registered model if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _champion(client: "MlflowClient", versions: "Sequence[ModelVersion]") -> "ModelVersion | None":
    alias = client.get_registered_model(MODEL_NAME).aliases.get(CHAMPION)
    return next((version for version in versions if alias is not None and int(version.version) == int(alias)), None)


def _upload(client: "MlflowClient", run_id: str, folder: Path, digest: str) -> str:
    """Upload the bundle to the run under its digest, if it is not there; returns its path in the run.

    The run's `bundle/` is that of its last training and may change; a registered bundle does not.
    """
    path = f"{BUNDLES}/{digest[:16]}"
    if _uploaded_digest(client, run_id, path) == digest:
        return path
    client.log_artifacts(run_id, str(folder), path)
    uploaded = _uploaded_digest(client, run_id, path)
    if uploaded != digest:
        raise UserError(
            f"MLflow has {'no complete bundle' if uploaded is None else uploaded[:12]} where bundle {digest[:12]} of "
            f"{folder} should be; check disk space and permissions of its artifacts, then rerun `salescast register`"
        )
    return path


def _uploaded_digest(client: "MlflowClient", run_id: str, path: str) -> str | None:
    """The digest of the bundle at `path` among the run's files; None where there is no complete one."""
    from salescast.model import bundle

    if not client.list_artifacts(run_id, path):
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return bundle.load(Path(client.download_artifacts(run_id, path, folder))).digest
        except UserError as error:
            logger.warning("%s in run %s is uploaded again: %s", path, run_id, error)
            return None


def _upload_backtest(client: "MlflowClient", run_id: str, backtest: pl.DataFrame) -> str:
    """Upload the backtest to the run under its digest; returns its path in the run.

    So no backtest takes the place of another, which a verdict may rest on, and a lost or damaged one is replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "backtest"
        parquet.write(backtest, written)
        named = written.rename(written.with_name(f"{sha256(written)}.parquet"))
        client.log_artifact(run_id, str(named), BACKTESTS)
    return f"{BACKTESTS}/{named.name}"


def _log_results(client: "MlflowClient", run_id: str, backtest: pl.DataFrame, model: str) -> None:
    """Log the tables of the backtest and the model's metrics to the run of the final fit."""
    metrics, logged = _metrics(backtest, model), client.get_run(run_id).data.metrics
    latest = {metric.key: metric.value for metric in metrics}
    if latest.items() - logged.items():  # logged again, MLflow would draw them twice
        client.log_batch(run_id, metrics)
    client.log_text(run_id, scores(backtest).write_csv(), "backtest_scores.csv")
    for column in ("cutoff", "horizon", "week", "dept_id", "store_id"):
        client.log_text(run_id, scores(backtest, ["model", column]).write_csv(), f"backtest_scores_by_{column}.csv")


def _metrics(backtest: pl.DataFrame, model: str) -> "list[Metric]":
    """The finite scores of `model`, pooled and by horizon, fewer than MLflow takes in one request.

    Metrics by horizon have the horizon as their step, so that MLflow draws them as curves.
    """
    from mlflow.entities import Metric

    own, now = backtest.filter(pl.col("model") == model), int(time.time() * 1000)
    tables = {"backtest": scores(own), "backtest_by_horizon": scores(own, ["model", "horizon"]).sort("horizon")}
    return [
        Metric(f"{prefix}_{name}", row[name], now, row.get("horizon", 0))
        for prefix, table in tables.items()
        for row in table.to_dicts()
        for name, kind in table.schema.items()
        if kind == pl.Float64 and row[name] is not None and math.isfinite(row[name])
    ]


def _champion_backtest(client: "MlflowClient", champion: "ModelVersion | None") -> pl.DataFrame | None:
    """The champion's forecasts in the backtest of its verdict, from its run's artifacts; None without a champion.

    Raises UserError when the file is not the one that the version names.
    """
    if champion is None:
        return None
    tag = champion.tags.get(BACKTEST, "")
    name = tag if tag.startswith(f"{BACKTESTS}/") else UNNAMED
    remedy = f"give the alias {CHAMPION!r} of {MODEL_NAME!r} to a version whose run is complete"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(champion.run_id, name, folder))
        if name != UNNAMED and sha256(path) != path.stem:
            raise UserError(f"{name} in run {champion.run_id} of MLflow is damaged or of another backtest; {remedy}")
        frame = parquet.read(path, remedy)
    return frame.filter(pl.col("model") == champion.tags["model"])
