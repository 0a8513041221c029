"""Forecasts of stores, regions and the total that add up from the series', with intervals of their own.

Points: sums of the series' medians, so every level agrees with the one below it. Intervals: conformal at their own
level. Earlier out-of-sample forecasts are added up the same way, and how far those sums were off, relative to their
forecasts, is how far the new ones may be: what series have in common (weather, a holiday, a trend) is in it, and so is
what cancels out. The sign of an error is not used: in the few weeks there are, errors of a whole level mostly share one
sign, and the next weeks' may have the other.
"""

import math
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast.errors import UserError

Floats = NDArray[np.float64]

LEVELS: Final = ("store", "region", "total")
NEIGHBOURS: Final = 2  # errors of this many horizons to both sides are used too: there are few base weeks
SHARE: Final = 0.8  # of the values that an interval is to hold
TOTAL: Final = "total"
PLACE: Final = ("group", "cutoff", "horizon", "week")


def aggregate(forecasts: pl.DataFrame, errors: pl.DataFrame, stores: pl.DataFrame) -> pl.DataFrame:
    """Forecasts of every store, region and of the total: level, group, cutoff, horizon, week, y, yhat, p10, p90.

    `forecasts`: keys, cutoff, horizon, week, yhat of the series, and y where known. `errors`: the same columns of
    out-of-sample forecasts with `y`, whose weeks were all known when `forecasts` were made. `stores`: store_id, region
    (null = in no region). `y` of a group is null unless it is known for every series in it; to evaluate, give the rows
    of `forecasts` that have one.
    Raises UserError without a single known error.
    """
    known = errors.filter(pl.col("y").is_not_null())
    if known.is_empty():
        raise UserError("no errors of earlier forecasts to make the intervals of sums from; back-test earlier weeks")
    if "y" not in forecasts.columns:
        forecasts = forecasts.with_columns(pl.lit(None, pl.Float64).alias("y"))
    parts = []
    for level in LEVELS:
        new, old = (_sums(frame, level, stores) for frame in (forecasts, known))
        half = _half_widths(new, old.filter(pl.col("yhat") != 0))
        around = ((name, pl.col("yhat") + sign * half) for name, sign in (("p10", -1), ("p90", 1)))
        parts.append(new.select(pl.lit(level).alias("level"), *PLACE, "y", "yhat", **dict(around)))
    return pl.concat(parts).sort("level", "group", "cutoff", "horizon")


def _sums(frame: pl.DataFrame, level: str, stores: pl.DataFrame) -> pl.DataFrame:
    """The forecasts of a level's groups, and their sales where every series' are known."""
    group = {"store": pl.col("store_id").cast(pl.String), "region": pl.col("region"), "total": pl.lit(TOTAL)}[level]
    return (
        frame.join(stores.select("store_id", "region"), on="store_id", how="left")
        .with_columns(group=group)
        .filter(pl.col("group").is_not_null())
        .group_by(PLACE)
        .agg(pl.when(pl.col("y").is_not_null().all()).then(pl.col("y").sum()), pl.col("yhat").sum())
        .sort(PLACE)
    )


def _half_widths(new: pl.DataFrame, old: pl.DataFrame) -> pl.Series:
    """By row of `new`, from errors at the same level and about the same horizon; all groups of a level together."""
    relative = old.select("horizon", ((pl.col("y") - pl.col("yhat")) / pl.col("yhat")).abs().alias("off"))
    widths = {}
    for horizon in new["horizon"].unique():
        near = relative.filter((pl.col("horizon") - horizon).abs() <= NEIGHBOURS)
        # At the longest horizons there may be none: then those of all horizons.
        widths[horizon] = conformal((near if near.height else relative)["off"].to_numpy())
    return new["yhat"].abs() * new["horizon"].replace_strict(widths, return_dtype=pl.Float64)


def conformal(errors: Floats, share: float = SHARE) -> float:
    """The ceil((n + 1) * share)-th smallest of n absolute errors (Lei et al. 2018); the largest if there is none; 0
    without errors."""
    if not len(errors):
        return 0.0
    rank = min(math.ceil((len(errors) + 1) * share), len(errors))
    return float(np.partition(errors, rank - 1)[rank - 1])
