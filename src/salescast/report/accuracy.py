"""The backtest in tables and charts: overall, by horizon, cutoff, holiday week, store, department and series."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, TypedDict

import numpy as np
import polars as pl

from salescast import retail_calendar
from salescast.evaluation.hierarchy import SHARE
from salescast.evaluation.metrics import coverage, scores, seasonal_scales
from salescast.report.results import Results
from salescast.report.totals import MAX_ROWS
from salescast.schema import KEYS

WORST: Final = 20
TOLERANCE: Final = 0.03  # coverage this near to SHARE is called right

QUANTILES: Final = ("p10", "yhat", "p90")


@dataclass(frozen=True)
class ModelScores:
    model: str
    wmape: float
    mape: float | None
    bias: float
    wql: float | None
    coverage: float | None
    wmae: float
    rows: int
    rmsse: float | None
    mase: float | None


@dataclass(frozen=True)
class GroupScores:
    """Scores of the own model for a store, a department or a series; `rival`: WMAPE of the best other model."""

    store_id: int | None
    dept_id: int | None
    wmape: float
    bias: float
    coverage: float | None
    rival: float | None
    sold: float
    off: float  # sum of the absolute errors
    share: float  # of all absolute errors


@dataclass(frozen=True)
class Step:
    """One horizon: median relative error and coverage."""

    horizon: int
    half: float | None
    within: float | None


@dataclass(frozen=True)
class Comparison:
    """WMAPE by model (rows, best first) and by the values of a column."""

    columns: list[str]
    rows: list[tuple[str, list[float | None]]]


class BacktestCharts(TypedDict):
    """By horizon: WMAPE of every model, and the share of sales at or below each quantile of the own model."""

    horizon: list[int]
    error: dict[str, list[float | None]]
    below: dict[str, list[float | None]]


@dataclass(frozen=True)
class Accuracy:
    cutoffs: list[date]
    models: list[ModelScores]
    own: ModelScores
    rival: ModelScores | None
    steps: list[Step]
    stores: int
    departments: int
    series: int
    across: Comparison
    by_store: list[GroupScores]
    by_dept: list[GroupScores]
    worst: list[GroupScores]
    verdict: str
    charts: BacktestCharts


def build_accuracy(results: Results, tested: pl.DataFrame) -> Accuracy:
    model, cal = results.model, retail_calendar.calendar(results.raw.meta.country)
    weeks = tested["week"].unique().sort()
    flags = pl.DataFrame({"week": weeks, "is_holiday": retail_calendar.is_holiday(weeks.to_numpy(), cal) > 0})
    sales = results.raw.sales.join(tested.select(KEYS).unique().lazy(), on=KEYS, how="semi").collect()
    cutoffs = tested["cutoff"].unique().sort().to_list()
    marked = tested.join(flags, on="week")
    scaled = scores(marked.join(seasonal_scales(sales, cutoffs), on=[*KEYS, "cutoff"], how="left"))
    names = list(ModelScores.__dataclass_fields__)
    models = [ModelScores(*row) for row in scaled.select(names).iter_rows()]
    rivals = [one for one in models if one.model != model]
    own = tested.filter(pl.col("model") == model)
    pair = tested.filter(pl.col("model").is_in([model, *(one.model for one in rivals[:1])]))
    mine = next(one for one in models if one.model == model)
    return Accuracy(
        cutoffs=cutoffs,
        models=models,
        own=mine,
        rival=rivals[0] if rivals else None,
        steps=_steps(own),
        stores=own["store_id"].n_unique(),
        departments=own["dept_id"].n_unique(),
        series=own.select(KEYS).n_unique(),
        across=_across(marked, ["cutoff", "is_holiday"]),
        by_store=_by_group(pair, model, ["store_id"]),
        by_dept=_by_group(pair, model, ["dept_id"]),
        worst=_by_group(pair, model, list(KEYS))[:WORST],
        verdict=verdict(mine.coverage),
        charts=_charts(tested, model),
    )


def verdict(inside: float | None) -> str:
    """Whether the ranges held what they promise, in words; `inside` is the measured coverage."""
    if inside is None:
        return "The forecasts had no ranges"
    said = (
        "too narrow" if inside < SHARE - TOLERANCE else "wider than needed" if inside > SHARE + TOLERANCE else "right"
    )
    return f"Ranges {said}: {inside:.0%} of weeks were inside, {SHARE:.0%} promised"


def _steps(own: pl.DataFrame) -> list[Step]:
    relative = pl.when(pl.col("y") != 0).then(((pl.col("y") - pl.col("yhat")) / pl.col("y")).abs())
    steps = own.group_by("horizon").agg(half=relative.median(), within=coverage()).sort("horizon")
    return [Step(*row) for row in steps.iter_rows()]


def _across(tested: pl.DataFrame, columns: Sequence[str]) -> Comparison:
    """WMAPE with a row for every model, best first, and a column for every value of each of `columns`."""
    wide = scores(tested).select("model")
    for column in columns:
        part = scores(tested, ["model", column]).pivot(column, index="model", values="wmape", sort_columns=True)
        wide = wide.join(part, on="model", how="left", maintain_order="left")
    return Comparison(wide.columns[1:], [(row[0], list(row[1:])) for row in wide.iter_rows()])


def _by_group(pair: pl.DataFrame, model: str, by: list[str]) -> list[GroupScores]:
    """Scores of `model` by `by` beside the WMAPE of the other model in `pair`, the largest missed sales first."""
    sized = pair.with_columns(sold=pl.col("y").abs(), off=(pl.col("y") - pl.col("yhat")).abs())
    mine = pl.col("model") == model
    size = sized.filter(mine).group_by(by).agg(pl.col("sold", "off").sum())
    table = scores(sized, ["model", *by])
    other = table.filter(~mine).select(*by, rival="wmape")
    joined = table.filter(mine).join(size, on=by).join(other, on=by, how="left").sort("off", descending=True)
    missing = [pl.lit(None, pl.Int32).alias(key) for key in KEYS if key not in by]
    shares = joined.with_columns(*missing, share=pl.col("off") / pl.col("off").sum()).head(MAX_ROWS)
    return [GroupScores(*row) for row in shares.select(list(GroupScores.__dataclass_fields__)).iter_rows()]


def _charts(tested: pl.DataFrame, model: str) -> BacktestCharts:
    errors = scores(tested, ["model", "horizon"]).sort("horizon")
    order = scores(tested)["model"].to_list()
    below = {name: (pl.col("y") <= pl.col(name)).filter(pl.col(name).is_not_null()).mean() for name in QUANTILES}
    own = tested.filter(pl.col("model") == model).group_by("horizon").agg(**below).sort("horizon")
    return {
        "horizon": errors["horizon"].unique().sort().to_list(),
        "error": {name: _finite(errors.filter(pl.col("model") == name)["wmape"]) for name in order},
        "below": {name: _finite(own[name]) for name in QUANTILES},
    }


def _finite(values: pl.Series) -> list[float | None]:
    return [None if value is None or not np.isfinite(value) else round(value, 5) for value in values]
