"""Forecasts of stores, regions and the total that add up from the series', with intervals of their own.

Points: sums of the series' medians, so every level agrees with the one below it. Intervals: simulated. The errors that
forecasts made at several earlier base weeks are laid over the new forecasts, all series of a base week together, so
that what they have in common (weather, a holiday) is kept; the quantiles are taken of the sums.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.schema import KEYS

Floats = NDArray[np.float64]

LEVELS: Final = ("store", "region", "total")
NEIGHBOURS: Final = 2  # errors of this many horizons to both sides are used too: there are few base weeks
SHARES: Final = (0.1, 0.9)
TOTAL: Final = "total"


def aggregate(forecasts: pl.DataFrame, errors: pl.DataFrame, stores: pl.DataFrame) -> pl.DataFrame:
    """Forecasts of every store, region and of the total: level, group, cutoff, horizon, week, y, yhat, p10, p90.

    `forecasts`: keys, cutoff, horizon, week, yhat, p10, p90 of the series, and y where known. `errors`: the same
    columns of out-of-sample forecasts with `y`, whose weeks were all known when `forecasts` were made. `stores`:
    store_id, region (null = in no region). `y` of a group is null unless it is known for every series in it; to
    evaluate, give the rows of `forecasts` that have one.
    Raises UserError without a single known error.
    """
    known = errors.filter(pl.col("y").is_not_null())
    if known.is_empty():
        raise UserError("no errors of earlier forecasts to make the intervals of sums from; back-test earlier weeks")
    if "y" not in forecasts.columns:
        forecasts = forecasts.with_columns(pl.lit(None, pl.Float64).alias("y"))
    named = forecasts.join(stores.select("store_id", "region"), on="store_id", how="left").with_columns(
        store=pl.col("store_id").cast(pl.String), total=pl.lit(TOTAL)
    )
    parts = []
    for (horizon,), held in named.partition_by("horizon", as_dict=True, maintain_order=True).items():
        near = known.filter((pl.col("horizon") - horizon).abs() <= NEIGHBOURS)
        # At the longest horizons there may be none: then those of all horizons.
        used = near if near.height else known
        parts.append(_sums(held, _simulated(held, used), used["week"].n_unique()))
    return pl.concat(parts).sort("level", "group", "cutoff", "horizon")


def _simulated(forecasts: pl.DataFrame, known: pl.DataFrame) -> Floats:
    """Errors laid over forecasts of one horizon, [scenarios, rows], in sales.

    One scenario for each (cutoff, horizon) of `known`. An error is taken relative to the width of its own interval
    and given in that of the new one; a series without an error in a scenario has 0 there.
    """
    width = pl.col("p90") - pl.col("p10")
    relative = known.select(
        *KEYS,
        pl.struct("cutoff", "horizon").rank("dense").alias("scenario") - 1,
        pl.when(width > 0).then((pl.col("y") - pl.col("yhat")) / width).otherwise(0.0).alias("relative"),
    )
    at = forecasts.select(KEYS).with_row_index("row").join(relative, on=KEYS)
    out = np.zeros((int(relative["scenario"].max()) + 1, forecasts.height))  # type: ignore[arg-type]
    out[at["scenario"].to_numpy(), at["row"].to_numpy()] = at["relative"].to_numpy()
    return np.asarray(out * forecasts.select(width.fill_null(0.0)).to_series().to_numpy())


def _sums(forecasts: pl.DataFrame, simulated: Floats, weeks: int) -> pl.DataFrame:
    """Every level's groups of one horizon, by cutoff."""
    frames = []
    for level in LEVELS:
        keys = forecasts.select(pl.col(level).alias("group"), "cutoff")
        group = keys.select(pl.struct("group", "cutoff").rank("dense") - 1).to_series().to_numpy().astype(np.int64)
        inside = keys["group"].is_not_null().to_numpy()
        sums = np.zeros((int(group.max()) + 1, len(simulated)))
        np.add.at(sums, group[inside], simulated.T[inside])
        table = (
            forecasts.with_columns(group=pl.col(level), place=pl.Series(group))
            .filter(pl.col("group").is_not_null())
            .group_by("place", "group", "cutoff", "horizon", "week", maintain_order=True)
            .agg(
                pl.when(pl.col("y").is_not_null().all()).then(pl.col("y").sum()).alias("y"),
                pl.col("yhat").sum(),
            )
        )
        around = quantiles(sums[table["place"].to_numpy()], SHARES, weeks)
        frames.append(
            table.select(
                pl.lit(level).alias("level"),
                *("group", "cutoff", "horizon", "week", "y", "yhat"),
                *(
                    (pl.col("yhat") + pl.Series(name, around[:, i])).alias(name)
                    for i, name in enumerate(("p10", "p90"))
                ),
            )
        )
    return pl.concat(frames)


def quantiles(values: Floats, shares: Sequence[float], weeks: int) -> Floats:
    """Conformal quantiles of each row of `values` [m, n], [m, shares].

    Conformal ranks count a new value as one more. What counts are the `weeks` the values are from: values of one week
    have their weather and their holiday in common, whatever the number of scenarios. Of few weeks the outermost values
    are the widest that can be promised.
    """
    n = values.shape[1]
    ordered = np.sort(values, axis=1)
    beyond = [math.ceil((weeks + 1) * max(share, 1 - share)) / weeks for share in shares]
    places = [min(max(math.ceil(share * n), 1), n) - 1 for share in beyond]
    return ordered[:, [at if share >= 0.5 else n - 1 - at for at, share in zip(places, shares, strict=True)]]
