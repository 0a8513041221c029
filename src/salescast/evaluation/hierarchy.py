"""Forecasts of stores, regions, categories and the total as sums of the series' forecasts, with their own intervals.

Points: sums of the series' means, which are unbiased; medians of slow movers add up to far too little. Every level
agrees with the one below it. Intervals: conformal at each level, from the relative errors of earlier out-of-sample
forecasts summed the same way. These errors contain both what series have in common (weather, holidays, trends) and what
cancels out. Their sign is not used: in a few held-out weeks the errors of a whole level mostly have the same sign, and
the next weeks may have the other.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl

from salescast.errors import UserError
from salescast.features.history import Floats

LEVELS: Final = ("store", "region", "category", "total")
NEIGHBOURS: Final = 2  # also use the errors of this many horizons on both sides: there are few base weeks
SHARE: Final = 0.8  # nominal coverage of the intervals
TOTAL: Final = "total"
GROUP_KEYS: Final = ("group", "cutoff", "horizon", "week")


def aggregate(
    forecasts: pl.DataFrame, errors: pl.DataFrame, stores: pl.DataFrame, categories: Mapping[int, str] | None = None
) -> pl.DataFrame:
    """Forecasts of every group of LEVELS: level, group, cutoff, horizon, week, y, yhat, p10, p90.

    `forecasts`: keys, cutoff, horizon, week, mean of the series, and y where known. `errors`: the same columns of
    out-of-sample forecasts with `y`, for weeks before those of `forecasts`. `stores`: store_id, region (null = none).
    `categories`: by department.
    `y` of a group is null unless it is known for every series in it; to evaluate, pass only rows with `y`.
    Raises UserError when no `y` of `errors` is known.
    """
    known = errors.filter(pl.col("y").is_not_null())
    if known.is_empty():
        raise UserError("no errors of earlier forecasts for the intervals of sums; run `salescast backtest`")
    if "y" not in forecasts.columns:
        forecasts = forecasts.with_columns(pl.lit(None, pl.Float64).alias("y"))
    parts = []
    for level in LEVELS:
        new, old = (_sums(frame, level, stores, categories or {}) for frame in (forecasts, known))
        half = _half_widths(new, old.filter(pl.col("yhat") != 0))
        around = ((name, pl.col("yhat") + sign * half) for name, sign in (("p10", -1), ("p90", 1)))
        parts.append(new.select(pl.lit(level).alias("level"), *GROUP_KEYS, "y", "yhat", **dict(around)))
    return pl.concat(parts).sort("level", "group", "cutoff", "horizon")


def _sums(frame: pl.DataFrame, level: str, stores: pl.DataFrame, categories: Mapping[int, str]) -> pl.DataFrame:
    """Sums of forecasts by group of a level, and of sales where they are known for every series."""
    group = {
        "store": pl.col("store_id").cast(pl.String),
        "region": pl.col("region"),
        "category": pl.col("dept_id").replace_strict(categories, default=None, return_dtype=pl.String),
        "total": pl.lit(TOTAL),
    }[level]
    return (
        frame.join(stores.select("store_id", "region"), on="store_id", how="left")
        .with_columns(group=group)
        .filter(pl.col("group").is_not_null())
        .group_by(GROUP_KEYS)
        .agg(pl.when(pl.col("y").is_not_null().all()).then(pl.col("y").sum()), pl.col("mean").sum().alias("yhat"))
        .sort(GROUP_KEYS)
    )


def _half_widths(new: pl.DataFrame, old: pl.DataFrame) -> pl.Series:
    """Half-widths for the rows of `new`, from the errors of all groups of the level at about the same horizon."""
    relative = old.select("horizon", ((pl.col("y") - pl.col("yhat")) / pl.col("yhat")).abs().alias("error"))
    widths = {}
    for horizon in new["horizon"].unique():
        near = relative.filter((pl.col("horizon") - horizon).abs() <= NEIGHBOURS)
        # The longest horizons may have no errors; use those of all horizons then.
        widths[horizon] = conformal((near if near.height else relative)["error"].to_numpy())
    return new["yhat"].abs() * new["horizon"].replace_strict(widths, return_dtype=pl.Float64)


def conformal(errors: Floats, share: float = SHARE) -> float:
    """The ceil((n + 1) * share)-th smallest of n absolute errors (Lei et al. 2018), at most the largest; 0 if n = 0."""
    if not len(errors):
        return 0.0
    rank = min(math.ceil((len(errors) + 1) * share), len(errors))
    return float(np.partition(errors, rank - 1)[rank - 1])
