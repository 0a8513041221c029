"""Compare published forecasts with the sales that followed."""

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
from salescast.tracking.mlflow import OFF, Point, log_run, mlflow_answers, tracking_uri
from salescast.workdir import Workdir

RUN: Final = "monitor"
FORECAST_COLUMNS: Final = (*KEYS, "week", "horizon", "forecast", "p10", "p90")
MEASURES: Final = ("wmape", "bias", "coverage")
WORSE: Final = 1.5  # default limit, as a multiple of the backtest's WMAPE


@dataclass(frozen=True)
class Limits:
    """Limits of the measures over the last `weeks` weeks with sales, pooled. Shares; `bias` applies to both signs."""

    wmape: float
    bias: float = 0.1
    coverage: float = 0.6
    weeks: int = 4


@dataclass(frozen=True)
class Report:
    """`by_week`: week, rows and the measures; `recent`: the measures of the last weeks; `beyond`: exceeded limits."""

    by_week: pl.DataFrame
    recent: dict[str, float]
    beyond: tuple[str, ...]
    run_id: str | None = None


def matched(forecasts: pl.DataFrame, sales: pl.DataFrame) -> pl.DataFrame:
    """Every forecast whose week has sales: store_id, dept_id, week, horizon, y, yhat, p10, p90.

    `forecasts` as `salescast forecast --all` writes them, of any number of origins; `sales`: RAW_SALES. Weeks without a
    row of the series are left out.
    """
    actual = sales.select(*KEYS, "week", y=pl.col(LABEL))
    given = forecasts.select(*KEYS, "week", "horizon", "p10", "p90", yhat="forecast").filter(
        pl.col("yhat").is_not_null()
    )
    return given.join(actual, on=[*KEYS, "week"])


def compare_with_limits(pairs: pl.DataFrame, limits: Limits) -> Report:
    """The measures by week and over the last weeks, and the limits that the latter exceed."""
    by_week = scores(pairs, ["week"]).select("week", "rows", *MEASURES).sort("week")
    last = by_week["week"].tail(limits.weeks).implode()
    pooled = scores(pairs.filter(pl.col("week").is_in(last)).with_columns(model=pl.lit(RUN)))
    recent = {name: float(pooled[name].item()) for name in MEASURES}
    failed = {
        f"WMAPE {recent['wmape']:.2%} is above {limits.wmape:.2%}": not recent["wmape"] <= limits.wmape,
        f"bias {recent['bias']:+.2%} is beyond {limits.bias:.2%}": not abs(recent["bias"]) <= limits.bias,
        f"coverage {recent['coverage']:.2%} is below {limits.coverage:.2%}": not recent["coverage"] >= limits.coverage,
    }
    return Report(by_week, recent, tuple(text for text, wrong in failed.items() if wrong))


def monitor(work: Workdir, raw: Path, forecasts: Sequence[Path], limits: Limits) -> Report:
    """Compare stored forecasts (default: all in the workdir) with the sales in `raw`, and log the result to MLflow.

    Raises UserError when there are no forecasts, or none of a week with sales.
    """
    paths = list(forecasts) or sorted(work.kept_forecasts.glob("*.parquet"))
    if not paths:
        raise UserError(
            f"no forecasts in {work.kept_forecasts}; run `salescast forecast --all` or `salescast run` first"
        )
    stored = pl.concat([parquet.read(path, "give another --forecasts").select(FORECAST_COLUMNS) for path in paths])
    data = dataset.load(raw)
    first, last = stored["week"].min(), data.meta.last_week
    pairs = matched(stored, data.sales.filter(pl.col("week") >= first).collect())
    if pairs.is_empty():
        raise UserError(
            f"the forecasts begin with {first!s}, the sales in {raw} end with {last}: nothing to compare yet; "
            "import newer sales, or name their dataset folder with --data"
        )
    report = compare_with_limits(pairs, limits)
    return Report(report.by_week, report.recent, report.beyond, _log(work, report))


def default_wmape(work: Workdir) -> float:
    """WORSE times the WMAPE of the model in the workdir's backtest. Raises UserError without one."""
    backtest = parquet.read(work.backtest, "give --max-wmape, or run `salescast backtest`")
    return WORSE * float(scores(backtest).filter(pl.col("model") == backtest["model"][0])["wmape"].item())


def _log(work: Workdir, report: Report) -> str | None:
    """Log one MLflow run with the measures by week, the week as time and step; None when tracking is off."""
    uri = tracking_uri(work)
    if uri == OFF:
        return None
    artifacts = None if work.tracking_uri != uri else str(work.artifacts.resolve())
    points = [
        Point(f"{RUN}_{name}", value, _milliseconds(row["week"]), row["week"].toordinal())
        for row in report.by_week.iter_rows(named=True)
        for name in (*MEASURES, "rows")
        if (value := row[name]) is not None
    ]
    tags = {"beyond": "; ".join(report.beyond) or "nothing"}
    with mlflow_answers(uri):
        return log_run(uri, EXPERIMENT, artifacts, RUN, tags, points)


def _milliseconds(week: date) -> int:
    return int(datetime.combine(week, time(), UTC).timestamp() * 1000)
