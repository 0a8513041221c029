"""The stages in their order, and `run`, which is all of them. Each stage can be run again; what is there is reused."""

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl

from salescast import contracts, data, evaluate, features, parquet, schema, tables
from salescast.config import TrainConfig, Workdir, settings
from salescast.errors import UserError
from salescast.files import replace_file
from salescast.plan import Fit, Plan, Tracking
from salescast.registry import Registration, tracking_uri

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


def features_stage(work: Workdir, raw: Path, horizon: int) -> features.Summary:
    """Build the feature tables of the workdir from a dataset folder, and keep the dataset's description beside them."""
    summary = features.build(raw, work.data, horizon)
    with replace_file(work.data / data.META) as temporary:
        shutil.copyfile(raw / data.META, temporary)
    _check_drift(work, summary)
    return summary


def _check_drift(work: Workdir, summary: features.Summary) -> None:
    """Compare the weeks since the workdir's model was trained with its training set; tell of features that drifted."""
    if not work.models.is_dir():
        return
    from salescast import bundle, dataset, retrieval

    try:
        trained = bundle.read_metadata(work.models)
    except UserError as error:  # features do not depend on a model
        logger.warning("drift is not measured: %s", error)
        return
    cutoff, training = date.fromisoformat(trained["cutoff"]), work.training / trained["data_digest"]
    if summary.upcoming - timedelta(weeks=1) <= cutoff or not retrieval.is_whole(training):
        return
    found = contracts.drift(dataset.scan(training), summary.files, cutoff)
    parquet.write(found, work.drift)
    strong = found.filter(pl.col("psi") > contracts.STRONG)
    if strong.height:
        worst = ", ".join(f"{name} {psi:.2f}" for name, psi in strong.head(5).iter_rows())
        logger.warning(
            "%d of %d features have drifted since the model was trained (stability index above %g): %s; all are in %s",
            strong.height, found.height, contracts.STRONG, worst, work.drift,
        )  # fmt: skip


def plan_fits(work: Workdir, config: TrainConfig, cutoffs: Sequence[date], *, final: date | None) -> Plan:
    """Retrieve the training set; plan a fit at every cutoff, and one up to `final`, for one launch of torchrun.

    The bundles of the cutoffs go to `fits/<digest>/<cutoff>`, the final one to `models`.
    """
    from salescast import retrieval

    meta = data.Dataset.read(work.data)
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
    from salescast import launch

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
    meta = data.Dataset.read(folder)
    first, last = meta.first_week, meta.last_week
    if not cutoffs:
        return evaluate.quarterly_cutoffs(first, last, config.horizon, config.holdout_weeks, config.min_history)
    evaluate.check_cutoffs(first, last, config.min_history, cutoffs)
    return sorted(cutoffs)


def backtest_stage(
    work: Workdir, trained: Trained, with_others: Sequence[str] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The backtest frame of the model, every baseline and `with_others`, and the importance of the feature groups.

    Both are also written to the workdir, and last the manifest that says which bundles were tested.
    """
    from salescast import baselines, bundle, lineage, others
    from salescast.dataset import scan

    training = scan(trained.training)
    bundles = {cutoff: bundle.load(folder) for cutoff, folder in trained.tested.items()}
    frames = []
    for cutoff, model in bundles.items():
        rows = evaluate.base_rows(training, cutoff)
        frames.append(evaluate.frame_of(model.predict(rows), rows, MODEL))
        frames.append(baselines.forecasts(training, cutoff, model.horizon))
        country = model.metadata.country
        frames += [others.forecasts(name, training, cutoff, model.horizon, country) for name in with_others]
    frame = evaluate.with_actuals(pl.concat(frames), training)
    groups = evaluate.importance(bundles, training, _groups(training.collect_schema().names()), seed=0)
    parquet.write(frame, work.backtest)
    parquet.write(groups, work.root / "importance.parquet")
    lineage.note(work, trained.tested)
    return frame, groups


def _groups(columns: list[str]) -> dict[str, tuple[str, ...]]:
    """The feature groups of a training set with these columns."""
    every = schema.FEATURE_GROUPS | schema.SEASONAL_GROUPS | {"planned": tuple(schema.planned_columns(columns))}
    return {name: group for name, group in every.items() if not set(columns).isdisjoint(group)}


def backtest(
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
    from salescast import others, retrieval

    tables.check_target(out)
    others.check(with_others, config.feature_service)
    dates = tested_cutoffs(raw, config, cutoffs)
    features_stage(work, raw, config.horizon)
    retrieval.apply(work)
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
    from salescast import champion, lineage, registry, tracking

    if tracking_uri(work) == "off":
        return None
    judged = lineage.judged(work)
    run_id = tracking.run_of(_journals(work), judged.final.fit_digest)
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
    from salescast import bundle, champion

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


@dataclass(frozen=True)
class Summary:
    """What `run` found out; written to run.json for the report."""

    model: str
    created: str
    machine: str
    rows: int
    series: int
    features: int
    seasonal_features: int
    first_week: date
    last_week: date
    seconds: dict[str, float]
    scores: list[dict[str, Any]]
    noise_floor_mape: float | None
    digest: str
    version: int | None
    champion: bool
    reason: str
    served: str
    paths: dict[str, str]
    answers: list[dict[str, Any]] = field(default_factory=list)  # of the forecast server, for the largest series
    warning: str | None = None  # why there are no answers, and what to do

    def write(self, work: Workdir) -> None:
        with replace_file(work.root / "run.json") as temporary:
            temporary.write_text(json.dumps(asdict(self), default=str, indent=1))


class Timings:
    """Seconds by stage, in the order of the stages; `started` is told each stage's name."""

    def __init__(self, started: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._started = started

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._started(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 2)


def run(
    work: Workdir,
    source: Callable[[Path], None],
    config: TrainConfig,
    cutoffs: Sequence[date] | None,
    started: Callable[[str], None],
) -> Summary:
    """Everything from data to an answer of the model server. `source` writes the dataset folder it is given.

    Summary and report are on disk before the server is asked. One that does not get ready is a warning of the summary.
    Raises UserError from any stage; what earlier stages wrote stays, and a second run reuses it where nothing changed.
    """
    from salescast import bundle, forecast, report, retrieval

    timed = Timings(started)
    with timed("data"):
        source(work.raw)
        dates = tested_cutoffs(work.raw, config, cutoffs)
    with timed("features"):
        features_stage(work, work.raw, config.horizon)
    with timed("apply"):
        retrieval.apply(work)
    with timed("retrieval"):
        retrieval.retrieve(work, config.feature_service)
    meta = data.Dataset.read(work.data)
    with timed("training"):
        trained = train_stage(work, config, dates, final=meta.last_week)
    with timed("backtest"):
        frame, _ = backtest_stage(work, trained)
    with timed("registry"):
        registered = register_stage(work)
    with timed("materialize"):
        retrieval.materialize(work)
    with timed("forecasts"):
        folder, what = served(work, config.horizon)
        forecast.write_all(work, work.forecasts, folder)
    summary = Summary(
        model=MODEL,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        rows=meta.rows,
        series=meta.series,
        features=len(schema.SALES_FEATURES) + len(schema.STORE_FEATURES),
        seasonal_features=len(schema.SEASONAL_FEATURES),
        first_week=meta.first_week,
        last_week=meta.last_week,
        seconds=timed.seconds,
        scores=evaluate.scores(frame).to_dicts(),
        noise_floor_mape=meta.noise_floor_mape,
        digest=bundle.read_metadata(work.models)["digest"],
        version=registered.version if registered else None,
        champion=bool(registered and registered.champion),
        reason=registered.reason if registered else "tracking is switched off",
        served=what,
        paths={"report": str(work.report), "forecasts": str(work.forecasts), "mlflow": str(tracking_uri(work))},
    )
    summary.write(work)
    with timed("report"):
        report.build(work)
    with timed("serving"):
        summary = _with_answers(work, summary, folder if folder == work.models else None)
    summary.write(work)
    return summary


def _with_answers(work: Workdir, summary: Summary, model_dir: Path | None) -> Summary:
    """The summary with the forecast server's answers, or with a warning when there is no server to ask.

    Raises UserError when the answers are not the offline forecast.
    """
    from salescast import serving_check
    from salescast.processes import NotReadyError

    try:
        return replace(summary, answers=serving_check.ask(work, model_dir))
    except NotReadyError as error:
        again = (
            f"all results are there, but no server was asked; to start one: {serving_check.by_hand(work, model_dir)}"
        )
        return replace(summary, warning=f"{error}; {again}")
