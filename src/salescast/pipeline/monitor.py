"""Forecasts that were given out, beside the sales that followed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Final

import polars as pl

from salescast.data import dataset
from salescast.errors import UserError
from salescast.evaluation.metrics import scores
from salescast.pipeline.stages import EXPERIMENT
from salescast.runtime import parquet
from salescast.schema import KEYS, LABEL
from salescast.tracking.mlflow import Point, log_run, mlflow_answers, tracking_uri
from salescast.workdir import Workdir

RUN: Final = "monitor"
MEASURES: Final = ("wmape", "bias", "coverage")
WORSE: Final = 1.5  # times the backtest's WMAPE is too much, unless the user says what is


@dataclass(frozen=True)
class Limits:
    """What is still fine, over the last `weeks` weeks with sales together. Shares; bias in either direction."""

    wmape: float
    bias: float = 0.1
    coverage: float = 0.6
    weeks: int = 4


@dataclass(frozen=True)
class Report:
    """`by_week`: week, rows and the measures; `recent`: the measures of the last weeks; `beyond`: limits exceeded."""

    by_week: pl.DataFrame
    recent: dict[str, float]
    beyond: tuple[str, ...]
    run_id: str | None = None


def matched(forecasts: pl.DataFrame, sales: pl.DataFrame) -> pl.DataFrame:
    """Every forecast whose week has sales: store_id, dept_id, week, horizon, y, yhat, p10, p90.

    `forecasts` as `salescast forecast --all` writes them, of any number of origins; `sales`: RAW_SALES. A week without
    a row of the series is a gap and counts neither for nor against the forecast.
    """
    actual = sales.select(*KEYS, "week", y=pl.col(LABEL))
    given = forecasts.select(*KEYS, "week", "horizon", "p10", "p90", yhat="forecast").filter(
        pl.col("yhat").is_not_null()
    )
    return given.join(actual, on=[*KEYS, "week"])


def judge(pairs: pl.DataFrame, limits: Limits) -> Report:
    """Measures by week and of the last weeks together, and which limits these exceed."""
    by_week = scores(pairs, ["week"]).select("week", "rows", *MEASURES).sort("week")
    last = by_week["week"].tail(limits.weeks).implode()
    together = scores(pairs.filter(pl.col("week").is_in(last)).with_columns(model=pl.lit(RUN)))
    recent = {name: float(together[name].item()) for name in MEASURES}
    failed = {
        f"WMAPE {recent['wmape']:.2%} is above {limits.wmape:.2%}": not recent["wmape"] <= limits.wmape,
        f"bias {recent['bias']:+.2%} is beyond {limits.bias:.2%}": not abs(recent["bias"]) <= limits.bias,
        f"coverage {recent['coverage']:.2%} is below {limits.coverage:.2%}": not recent["coverage"] >= limits.coverage,
    }
    return Report(by_week, recent, tuple(text for text, wrong in failed.items() if wrong))


def monitor(work: Workdir, raw: Path, forecasts: Sequence[Path], limits: Limits) -> Report:
    """Judge stored forecasts (default: all the workdir has kept) by the sales in `raw`; the result is logged to MLflow.

    Raises UserError when there are no forecasts, or none of a week with sales.
    """
    paths = list(forecasts) or sorted(work.kept_forecasts.glob("*.parquet"))
    if not paths:
        raise UserError(
            f"no forecasts in {work.kept_forecasts}; run `salescast forecast --all` or `salescast run` first"
        )
    given = pl.concat([parquet.read(path, "give another --forecasts") for path in paths])
    found = dataset.load(raw)
    first, last = given["week"].min(), found.meta.last_week
    pairs = matched(given, found.sales.filter(pl.col("week") >= first).collect())
    if pairs.is_empty():
        raise UserError(
            f"the forecasts begin with {first!s}, the sales in {raw} end with {last}: nothing to compare yet; "
            "import newer sales, or name their dataset folder with --data"
        )
    report = judge(pairs, limits)
    with mlflow_answers(tracking_uri(work)):
        return Report(report.by_week, report.recent, report.beyond, _log(work, report))


def default_wmape(work: Workdir) -> float:
    """WORSE times the WMAPE of the model in the workdir's backtest. Raises UserError without one."""
    tested = parquet.read(work.backtest, "give --max-wmape, or run `salescast backtest`")
    return WORSE * float(scores(tested).filter(pl.col("model") == tested["model"][0])["wmape"].item())


def _log(work: Workdir, report: Report) -> str | None:
    """One MLflow run: each week's measures with the week as their time and step; None when tracking is off."""
    uri = tracking_uri(work)
    if uri == "off":
        return None
    place = None if work.tracking_uri != uri else str(work.artifacts.resolve())
    points = [
        Point(f"{RUN}_{name}", value, _milliseconds(row["week"]), row["week"].toordinal())
        for row in report.by_week.iter_rows(named=True)
        for name in (*MEASURES, "rows")
        if (value := row[name]) is not None
    ]
    return log_run(uri, EXPERIMENT, place, RUN, {"beyond": "; ".join(report.beyond) or "nothing"}, points)


def _milliseconds(week: date) -> int:
    return int(datetime.combine(week, time(), UTC).timestamp() * 1000)
