"""The stages of the pipeline, in order. Each can be run again and reuses results that are still valid."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from salescast import schema
from salescast.config import settings
from salescast.data import dataset, tables
from salescast.errors import UserError
from salescast.evaluation import backtest, drift, metrics
from salescast.features.build import FeatureSummary, build_features
from salescast.model.config import TrainConfig
from salescast.model.metadata import read_metadata
from salescast.runtime import parquet
from salescast.runtime.atomic_files import replace_file
from salescast.tracking.journal import Tracking
from salescast.tracking.mlflow import OFF, tracking_uri
from salescast.tracking.registry import Registration
from salescast.training.plan import Fit, Plan
from salescast.workdir import Workdir

logger = logging.getLogger(__name__)

MODEL: Final = "salescast"
EXPERIMENT: Final = "salescast"
FINAL_FIT: Final = "final"


@dataclass(frozen=True)
class Trained:
    """The results of one launch: the training set, the folder of the final bundle, those of the backtest by cutoff."""

    training: Path
    final: Path
    tested: dict[date, Path]


class ServedBundle(NamedTuple):
    """A bundle folder, and a description of why it is the one that is served."""

    folder: Path
    description: str


def features_stage(work: Workdir, raw: Path, horizon: int) -> FeatureSummary:
    """Build the feature tables of the workdir from the dataset folder `raw`, and copy the dataset's description."""
    summary = build_features(raw, work.data, horizon)
    with replace_file(work.data / dataset.META) as temporary:
        shutil.copyfile(raw / dataset.META, temporary)
    _check_drift(work, summary)
    return summary


def _check_drift(work: Workdir, summary: FeatureSummary) -> None:
    """Measure how far the weeks after the model's cutoff drifted from its training set, and warn of strong drift."""
    if not work.models.is_dir():
        return
    from salescast.features import training_set

    try:
        model = read_metadata(work.models).metadata
    except UserError as error:  # features do not depend on a model
        logger.warning("drift is not measured: %s", error)
        return
    training = work.training / model.data_digest
    if summary.upcoming - timedelta(weeks=1) <= model.cutoff or not training_set.is_complete(training):
        return
    table = drift.drift(training_set.scan(training), summary.files, model.cutoff)
    parquet.write(table, work.drift)
    strong = table.filter(pl.col("psi") > drift.STRONG)
    if strong.height:
        worst = ", ".join(f"{name} {psi:.2f}" for name, psi in strong.head(5).iter_rows())
        logger.warning(
            "%d of %d features have drifted since the model was trained (stability index above %g): %s; all are in %s",
            strong.height, table.height, drift.STRONG, worst, work.drift,
        )  # fmt: skip


def plan_fits(work: Workdir, config: TrainConfig, cutoffs: Sequence[date], *, final: date | None) -> Plan:
    """Retrieve the training set and plan one launch of torchrun: a fit per cutoff and one up to `final`.

    The bundles of the cutoffs go to `fits/<digest>/<cutoff>`, the final one to `models`.
    """
    from salescast.feature_store import retrieval

    meta = dataset.Dataset.read(work.data)
    training = retrieval.retrieve(work, config.feature_service)
    fits = [Fit(f"cutoff-{cutoff}", cutoff, work.fits / training.name / str(cutoff)) for cutoff in cutoffs]
    if final is not None:
        fits.append(Fit(FINAL_FIT, final, work.models))
    return Plan(
        training=training,
        data_digest=training.name,
        country=meta.country,
        config=config,
        fits=tuple(fits),
        checkpoints=work.fits / "checkpoints",
        tracking=_tracking(work),
        dataset_digest=meta.digest,
    )


def trained_by(work: Workdir, plan: Plan) -> Trained:
    """The results of a plan that has been trained."""
    return Trained(plan.training, work.models, {fit.cutoff: fit.out for fit in plan.fits if fit.name != FINAL_FIT})


def train_stage(work: Workdir, config: TrainConfig, cutoffs: Sequence[date], *, final: date | None) -> Trained:
    """Train the fits of `plan_fits` on this machine."""
    from salescast.training import launch

    plan = plan_fits(work, config, cutoffs, final=final)
    launch.train(plan, work.plan, settings().nproc_per_node)
    return trained_by(work, plan)


def _tracking(work: Workdir) -> Tracking | None:
    uri = tracking_uri(work)
    if uri == OFF:
        return None
    local = settings().mlflow_tracking_uri is None
    return Tracking(uri, EXPERIMENT, MODEL, _journals(work), str(work.artifacts.resolve()) if local else None)


def _journals(work: Workdir) -> Path:
    """The tracking journals, one folder per training."""
    return work.fits / "journal"


def default_cutoffs(work: Workdir, config: TrainConfig) -> list[date]:
    """The dataset's quarterly cutoffs, see `backtest.quarterly_cutoffs`."""
    return tested_cutoffs(work.data, config, None)


def tested_cutoffs(folder: Path, config: TrainConfig, cutoffs: Sequence[date] | None) -> list[date]:
    """`cutoffs`, or the quarterly cutoffs of the dataset described in `folder`, in ascending order.

    Needs dataset.json only, so that it can run before any feature is built. Raises UserError for cutoffs that the data
    do not allow.
    """
    meta = dataset.Dataset.read(folder)
    first, last = meta.first_week, meta.last_week
    if not cutoffs:
        return backtest.quarterly_cutoffs(first, last, config.horizon, config.holdout_weeks, config.min_history)
    metrics.check_cutoffs(first, last, config.min_history, cutoffs)
    return sorted(cutoffs)


def backtest_stage(
    work: Workdir, trained: Trained, references: Sequence[str] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The backtest frame of the model, the baselines and the reference models, and the importance of feature groups.

    Both are also written to the workdir, then the manifest of the tested bundles.
    """
    from salescast.evaluation import baselines, lineage, reference_models
    from salescast.features.training_set import scan
    from salescast.model import bundle

    training = scan(trained.training)
    bundles = {cutoff: bundle.load(folder) for cutoff, folder in trained.tested.items()}
    frames = []
    for cutoff, model in bundles.items():
        rows = backtest.base_rows(training, cutoff)
        frames.append(backtest.model_frame(model.predict(rows), rows, MODEL))
        frames.append(baselines.forecasts(training, cutoff, model.horizon))
        country = model.metadata.country
        frames += [reference_models.forecasts(name, training, cutoff, model.horizon, country) for name in references]
    frame = backtest.with_actuals(pl.concat(frames), training)
    importance = backtest.importance(bundles, training, _groups(training.collect_schema().names()), seed=0)
    parquet.write(frame, work.backtest)
    parquet.write(importance, work.root / "importance.parquet")
    lineage.write_evaluation(work, trained.tested)
    return frame, importance


def _groups(columns: list[str]) -> dict[str, tuple[str, ...]]:
    """The feature groups of a training set with these columns."""
    groups = schema.FEATURE_GROUPS | schema.SEASONAL_GROUPS
    groups |= {"planned": tuple(schema.planned_columns(columns)), "product": tuple(schema.product_columns(columns))}
    return {name: group for name, group in groups.items() if not set(columns).isdisjoint(group)}


def run_backtest(
    work: Workdir,
    raw: Path,
    config: TrainConfig,
    cutoffs: Sequence[date] | None,
    out: Path,
    *,
    refit: bool = True,
    references: Sequence[str] = (),
) -> pl.DataFrame:
    """Run features, retrieval, fits and backtest from the dataset folder `raw`; write the frame to `out` too.

    Without `refit` the model of the first cutoff forecasts from all cutoffs, like a model that is not retrained.
    `references` names methods of `reference_models`. Raises UserError, before any work, for a method that cannot run
    and for an `out` without a known file ending.
    """
    from salescast.evaluation import reference_models
    from salescast.feature_store import repo

    tables.check_target(out)
    reference_models.check(references, config.feature_service)
    dates = tested_cutoffs(raw, config, cutoffs)
    features_stage(work, raw, config.horizon)
    repo.apply(work)
    trained = train_stage(work, config, dates if refit else dates[:1], final=None)
    if not refit:
        trained = replace(trained, tested=dict.fromkeys(dates, trained.tested[dates[0]]))
    frame, _ = backtest_stage(work, trained, references)
    tables.write(frame, out)
    return frame


def register_stage(work: Workdir) -> Registration | None:
    """Log the backtest to the run of the final fit and register its bundle; None when tracking is switched off.

    Then fetches the champion's bundle into the workdir. Raises UserError without a trained bundle or a backtest, and
    when the backtest is of another recipe (see `lineage.candidate`).
    """
    from salescast.evaluation import lineage
    from salescast.tracking import champion, journal, registry

    if tracking_uri(work) == OFF:
        return None
    candidate = lineage.candidate(work)
    run_id = journal.run_id(journal.journal_folder(_journals(work), candidate.final.fit_digest))
    if run_id is None:
        raise UserError(f"MLflow has no run of the training of {work.models}; run `salescast train` again to send it")
    tested = parquet.read(work.backtest, "run `salescast backtest` again")
    result = registry.register(work, run_id, candidate, tested, MODEL)
    with suppress(champion.NoChampionError):
        champion.keep(work)
    return result


def served(work: Workdir, horizon: int) -> ServedBundle:
    """The bundle that a run forecasts and serves with: the champion, if there is one.

    Without one, and when it forecasts more than the `horizon` weeks that the features were built for, the run's own
    bundle, with a warning.
    """
    from salescast.tracking import champion

    try:
        folder = champion.keep(work)
    except champion.NoChampionError as error:
        logger.warning("using this run's own bundle: %s", error)
        return ServedBundle(work.models, "the last bundle: there is no champion")
    weeks = read_metadata(folder).metadata.config.horizon
    if weeks > horizon:
        logger.warning(
            "using this run's own bundle: the champion forecasts %d weeks and the features are built for %d; run "
            "`salescast run --horizon %d` to serve the champion", weeks, horizon, weeks,
        )  # fmt: skip
        return ServedBundle(work.models, f"the last bundle: the champion needs features of {weeks} weeks")
    return ServedBundle(folder, "the champion")
