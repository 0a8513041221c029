"""The stages of the pipeline. Each can be run again; results that are still valid are reused."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import polars as pl

from salescast import schema
from salescast.config import settings
from salescast.data import dataset, tables
from salescast.errors import UserError
from salescast.evaluation import backtest, drift, metrics
from salescast.features.build import FeatureSummary, build_features
from salescast.model.config import TrainConfig
from salescast.runtime import parquet
from salescast.runtime.atomic_files import replace_file
from salescast.tracking.journal import Tracking
from salescast.tracking.mlflow import tracking_uri
from salescast.tracking.registry import Registration
from salescast.training.plan import Fit, Plan
from salescast.workdir import Workdir

logger = logging.getLogger(__name__)

MODEL: Final = "salescast"
EXPERIMENT: Final = "salescast"
FINAL_FIT: Final = "final"


@dataclass(frozen=True)
class Trained:
    """The fits of one launch: the final bundle, the bundles of the backtest by cutoff, the training set of both."""

    training: Path
    final: Path
    tested: dict[date, Path]


def features_stage(work: Workdir, raw: Path, horizon: int) -> FeatureSummary:
    """Build the feature tables of the workdir from a dataset folder, and keep the dataset's description beside them."""
    summary = build_features(raw, work.data, horizon)
    with replace_file(work.data / dataset.META) as temporary:
        shutil.copyfile(raw / dataset.META, temporary)
    _check_drift(work, summary)
    return summary


def _check_drift(work: Workdir, summary: FeatureSummary) -> None:
    """Compare the weeks since the workdir's model was trained with its training set; tell of features that drifted."""
    if not work.models.is_dir():
        return
    from salescast.features import training_set
    from salescast.model import bundle

    try:
        trained = bundle.read_metadata(work.models)
    except UserError as error:  # features do not depend on a model
        logger.warning("drift is not measured: %s", error)
        return
    cutoff, training = date.fromisoformat(trained["cutoff"]), work.training / trained["data_digest"]
    if summary.upcoming - timedelta(weeks=1) <= cutoff or not training_set.is_complete(training):
        return
    found = drift.drift(training_set.scan(training), summary.files, cutoff)
    parquet.write(found, work.drift)
    strong = found.filter(pl.col("psi") > drift.STRONG)
    if strong.height:
        worst = ", ".join(f"{name} {psi:.2f}" for name, psi in strong.head(5).iter_rows())
        logger.warning(
            "%d of %d features have drifted since the model was trained (stability index above %g): %s; all are in %s",
            strong.height, found.height, drift.STRONG, worst, work.drift,
        )  # fmt: skip


def plan_fits(work: Workdir, config: TrainConfig, cutoffs: Sequence[date], *, final: date | None) -> Plan:
    """Retrieve the training set; plan a fit at every cutoff, and one up to `final`, for one launch of torchrun.

    The bundles of the cutoffs go to `fits/<digest>/<cutoff>`, the final one to `models`.
    """
    from salescast.feature_store import retrieval

    meta = dataset.Dataset.read(work.data)
    training = retrieval.retrieve(work, config.feature_service)
    return Plan(
        training=training,
        data_digest=training.name,
        country=meta.country,
        config=config,
        fits=tuple(_fits(work, training.name, cutoffs, final)),
        checkpoints=work.fits / "checkpoints",
        tracking=_tracking(work),
        dataset_digest=meta.digest,
    )


def trained_by(work: Workdir, plan: Plan) -> Trained:
    """Where the bundles of a plan are, once it has been trained."""
    return Trained(plan.training, work.models, {fit.cutoff: fit.out for fit in plan.fits if fit.name != FINAL_FIT})


def train_stage(work: Workdir, config: TrainConfig, cutoffs: Sequence[date], *, final: date | None) -> Trained:
    """Train the fits of `plan_fits` on this machine."""
    from salescast.training import launch

    plan = plan_fits(work, config, cutoffs, final=final)
    launch.train(plan, work.plan, settings().nproc_per_node)
    return trained_by(work, plan)


def _fits(work: Workdir, digest: str, cutoffs: Sequence[date], final: date | None) -> Iterator[Fit]:
    for cutoff in cutoffs:
        yield Fit(f"cutoff-{cutoff}", cutoff, work.fits / digest / str(cutoff))
    if final is not None:
        yield Fit(FINAL_FIT, final, work.models)


def _tracking(work: Workdir) -> Tracking | None:
    uri = tracking_uri(work)
    if uri == "off":
        return None
    local = settings().mlflow_tracking_uri is None
    return Tracking(uri, EXPERIMENT, MODEL, _journals(work), str(work.artifacts.resolve()) if local else None)


def _journals(work: Workdir) -> Path:
    """One folder a training, of what MLflow is to be told of it."""
    return work.fits / "journal"


def default_cutoffs(work: Workdir, config: TrainConfig) -> list[date]:
    """The dataset's quarterly cutoffs, see `evaluate.quarterly_cutoffs`."""
    return tested_cutoffs(work.data, config, None)


def tested_cutoffs(folder: Path, config: TrainConfig, cutoffs: Sequence[date] | None) -> list[date]:
    """The cutoffs that were asked for, or the quarterly ones of the dataset described in `folder`, the earliest first.

    Raises UserError when the data do not allow them: known from dataset.json, before any feature is built.
    """
    meta = dataset.Dataset.read(folder)
    first, last = meta.first_week, meta.last_week
    if not cutoffs:
        return backtest.quarterly_cutoffs(first, last, config.horizon, config.holdout_weeks, config.min_history)
    metrics.check_cutoffs(first, last, config.min_history, cutoffs)
    return sorted(cutoffs)


def backtest_stage(
    work: Workdir, trained: Trained, with_others: Sequence[str] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The backtest frame of the model, every baseline and `with_others`, and the importance of the feature groups.

    Both are also written to the workdir, and last the manifest that says which bundles were tested.
    """
    from salescast.evaluation import baselines, lineage, reference_models
    from salescast.features.training_set import scan
    from salescast.model import bundle

    training = scan(trained.training)
    bundles = {cutoff: bundle.load(folder) for cutoff, folder in trained.tested.items()}
    frames = []
    for cutoff, model in bundles.items():
        rows = backtest.base_rows(training, cutoff)
        frames.append(backtest.frame_of(model.predict(rows), rows, MODEL))
        frames.append(baselines.forecasts(training, cutoff, model.horizon))
        country = model.metadata.country
        frames += [reference_models.forecasts(name, training, cutoff, model.horizon, country) for name in with_others]
    frame = backtest.with_actuals(pl.concat(frames), training)
    groups = backtest.importance(bundles, training, _groups(training.collect_schema().names()), seed=0)
    parquet.write(frame, work.backtest)
    parquet.write(groups, work.root / "importance.parquet")
    lineage.note(work, trained.tested)
    return frame, groups


def _groups(columns: list[str]) -> dict[str, tuple[str, ...]]:
    """The feature groups of a training set with these columns."""
    every = schema.FEATURE_GROUPS | schema.SEASONAL_GROUPS | {"planned": tuple(schema.planned_columns(columns))}
    return {name: group for name, group in every.items() if not set(columns).isdisjoint(group)}


def run_backtest(
    work: Workdir,
    raw: Path,
    config: TrainConfig,
    cutoffs: Sequence[date] | None,
    out: Path,
    *,
    refit: bool = True,
    with_others: Sequence[str] = (),
) -> pl.DataFrame:
    """Features, retrieval, fits at the cutoffs and backtest, from a dataset folder; the frame also goes to `out`.

    Without `refit` the fit at the first cutoff forecasts from all of them, as a model does that is not trained again.
    `with_others` names methods of `others`. Raises UserError, before any work, for one that cannot be run and for an
    `out` whose name says no format of `tables.write`.
    """
    from salescast.evaluation import reference_models
    from salescast.feature_store import repo

    tables.check_target(out)
    reference_models.check(with_others, config.feature_service)
    dates = tested_cutoffs(raw, config, cutoffs)
    features_stage(work, raw, config.horizon)
    repo.apply(work)
    trained = train_stage(work, config, dates if refit else dates[:1], final=None)
    if not refit:
        trained = replace(trained, tested=dict.fromkeys(dates, trained.tested[dates[0]]))
    frame, _ = backtest_stage(work, trained, with_others)
    tables.write(frame, out)
    return frame


def register_stage(work: Workdir) -> Registration | None:
    """Log the backtest to the run of the final fit and register its bundle; None when tracking is switched off.

    The champion's bundle, this one or an earlier one, is then in the workdir too. Raises UserError when there is no
    trained bundle or no backtest, or when the backtest is of another recipe (see `lineage.judged`).
    """
    from salescast.evaluation import lineage
    from salescast.tracking import champion, journal, registry

    if tracking_uri(work) == "off":
        return None
    judged = lineage.judged(work)
    run_id = journal.run_id(journal.journal_folder(_journals(work), judged.final.fit_digest))
    if run_id is None:
        raise UserError(f"MLflow has nothing of the training of {work.models}; `salescast train` again sends it")
    tested = parquet.read(work.backtest, "run `salescast backtest` again")
    result = registry.register(work, run_id, judged, tested, MODEL)
    with suppress(champion.NoChampionError):
        champion.keep(work)
    return result


def served(work: Workdir, horizon: int) -> tuple[Path, str]:
    """The bundle folder that a run ends with, and what it is in words: the champion, if there is one.

    Without one, and when it forecasts more than the `horizon` weeks that the features were just built for, the run's
    own bundle is asked for by name, and that is said.
    """
    from salescast.model import bundle
    from salescast.tracking import champion

    try:
        folder = champion.keep(work)
    except champion.NoChampionError as error:
        logger.warning("this run's own bundle is asked for by name: %s", error)
        return work.models, "the last bundle, asked for by name: there is no champion"
    weeks = bundle.read_metadata(folder)["config"]["horizon"]
    if weeks > horizon:
        logger.warning(
            "the champion forecasts %d weeks and cannot be served: the features are built for %d now; run "
            "`salescast run --horizon %d` for it; this run's own bundle is asked for by name", weeks, horizon, weeks,
        )  # fmt: skip
        return work.models, f"the last bundle, asked for by name: the champion needs features of {weeks} weeks"
    return folder, "the champion"
