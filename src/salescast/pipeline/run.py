"""`run`: every stage in order, from data to an answer of the model server."""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from salescast import schema
from salescast.data import dataset
from salescast.evaluation import metrics
from salescast.model.config import TrainConfig
from salescast.pipeline.stages import (
    MODEL,
    backtest_stage,
    features_stage,
    register_stage,
    served,
    tested_cutoffs,
    train_stage,
)
from salescast.runtime.atomic_files import replace_file
from salescast.tracking.mlflow import tracking_uri
from salescast.workdir import Workdir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
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
) -> RunSummary:
    """Everything from data to an answer of the model server. `source` writes the dataset folder it is given.

    Summary and report are on disk before the server is asked. One that does not get ready is a warning of the summary.
    Raises UserError from any stage; what earlier stages wrote stays, and a second run reuses it where nothing changed.
    """
    from salescast.feature_store import repo, retrieval
    from salescast.model import bundle
    from salescast.report.build import build_report
    from salescast.serving import batch

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
    meta = dataset.Dataset.read(work.data)
    with timed("training"):
        trained = train_stage(work, config, dates, final=meta.last_week)
    with timed("backtest"):
        frame, _ = backtest_stage(work, trained)
    with timed("registry"):
        registered = register_stage(work)
    with timed("materialize"):
        repo.materialize(work)
    with timed("forecasts"):
        folder, what = served(work, config.horizon)
        batch.write_all(work, work.forecasts, folder)
    summary = RunSummary(
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
        scores=metrics.scores(frame).to_dicts(),
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
        build_report(work)
    with timed("serving"):
        summary = _with_answers(work, summary, folder if folder == work.models else None)
    summary.write(work)
    return summary


def _with_answers(work: Workdir, summary: RunSummary, model_dir: Path | None) -> RunSummary:
    """The summary with the forecast server's answers, or with a warning when there is no server to ask.

    Raises UserError when the answers are not the offline forecast.
    """
    from salescast.runtime.processes import NotReadyError
    from salescast.serving import smoke_test

    try:
        return replace(summary, answers=smoke_test.ask(work, model_dir))
    except NotReadyError as error:
        again = f"all results are there, but no server was asked; to start one: {smoke_test.by_hand(work, model_dir)}"
        return replace(summary, warning=f"{error}; {again}")
