"""`run`: every stage in order, from the dataset to an answer of the model server."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salescast import schema
from salescast.data import dataset
from salescast.evaluation.metrics import Score, score_rows
from salescast.model.config import TrainConfig
from salescast.pipeline.stages import (
    MODEL,
    ServedBundle,
    backtest_stage,
    features_stage,
    register_stage,
    served,
    tested_cutoffs,
    train_stage,
)
from salescast.runtime.atomic_files import replace_file
from salescast.tracking.mlflow import tracking_uri, why_off
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from salescast.tracking.registry import Registration


@dataclass(frozen=True)
class RunSummary:
    """The results of `run`, written to run.json for the report."""

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
    scores: list[Score]
    noise_floor_mape: float | None
    digest: str
    version: int | None
    champion: bool
    reason: str
    served: str
    paths: dict[str, str]
    answers: list[dict[str, Any]] = field(default_factory=list)  # of the model server, for the largest series
    warning: str | None = None  # why there are no answers, and what to do

    def write(self, work: Workdir) -> None:
        with replace_file(work.root / "run.json") as temporary:
            temporary.write_text(json.dumps(asdict(self), default=str, indent=1))


class Timings:
    """Seconds by stage, in the order of the stages; calls `started` with the name of each stage."""

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
) -> RunSummary:
    """Run all stages. `source` writes the dataset to the folder it is given; `started` gets the name of each stage.

    Summary and report are written before the server is started. A server that is not installed or does not get ready
    leads to a warning in the summary. Raises UserError from any stage; the results of earlier stages stay, and the next
    run reuses them.
    """
    from salescast.feature_store import repo, retrieval
    from salescast.report.build import build_report
    from salescast.serving import batch

    tracking_uri(work)  # raises before any work where MLflow is asked for and is not installed
    timed = Timings(started)
    with timed("data"):
        source(work.raw)
        dates = tested_cutoffs(work.raw, config, cutoffs)
    with timed("features"):
        features_stage(work, work.raw, config.horizon)
    with timed("apply"):
        repo.apply(work)
    with timed("retrieval"):
        retrieval.retrieve(work, config.feature_service)
    with timed("training"):
        trained = train_stage(work, config, dates, final=dataset.Dataset.read(work.data).last_week)
    with timed("backtest"):
        frame, _ = backtest_stage(work, trained)
    with timed("registry"):
        registered = register_stage(work)
    with timed("materialize"):
        repo.materialize(work)
    with timed("forecasts"):
        bundle = served(work, config.horizon)
        batch.write_all(work, work.forecasts, bundle.folder)
    summary = _summary(work, timed.seconds, score_rows(frame), registered, bundle)
    summary.write(work)
    with timed("report"):
        build_report(work)
    with timed("serving"):
        summary = _with_answers(work, summary, bundle.folder if bundle.folder == work.models else None)
    summary.write(work)
    return summary


def _summary(
    work: Workdir,
    seconds: dict[str, float],
    scores: list[Score],
    registered: "Registration | None",
    bundle: ServedBundle,
) -> RunSummary:
    from salescast.model.metadata import read_metadata

    meta = dataset.Dataset.read(work.data)
    return RunSummary(
        model=MODEL,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        rows=meta.rows,
        series=meta.series,
        features=len(schema.SALES_FEATURES) + len(schema.STORE_FEATURES),
        seasonal_features=len(schema.SEASONAL_FEATURES),
        first_week=meta.first_week,
        last_week=meta.last_week,
        seconds=seconds,
        scores=scores,
        noise_floor_mape=meta.noise_floor_mape,
        digest=read_metadata(work.models).digest,
        version=registered.version if registered else None,
        champion=bool(registered and registered.champion),
        reason=registered.reason if registered else why_off(),
        served=bundle.description,
        paths={"report": str(work.report), "forecasts": str(work.forecasts), "mlflow": str(tracking_uri(work))},
    )


def _with_answers(work: Workdir, summary: RunSummary, model_dir: Path | None) -> RunSummary:
    """The summary with the answers of a model server, or with a warning when there is none or it does not get ready.

    Raises UserError when the answers differ from the offline forecasts.
    """
    from salescast.runtime.extras import MissingExtraError
    from salescast.runtime.processes import NotReadyError
    from salescast.serving import smoke_test

    try:
        return replace(summary, answers=smoke_test.ask(work, model_dir))
    except (NotReadyError, MissingExtraError) as error:
        command = smoke_test.by_hand(work, model_dir)
        return replace(
            summary, warning=f"{error}; all results are there, but the server was not tested; start it with: {command}"
        )
