"""Inputs planned ahead (promotions, opening days, prices ...): what each base week knew of them, and their effect."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from salescast.features.history import Floats, Ints
from salescast.schema import KEYS

USUAL = 13  # known weeks that tell a usual number of open days
EVERY_DAY = 7.0
BLOCK = 1000  # series at a time
RIDGE = 10.0  # pseudo-observations of "no effect" per input, in units of its own variance


@dataclass(frozen=True)
class Layers:
    """Values of one table of plans, each with the base week from which on it is known.

    Layer j holds the j-th version (by time) of a value; most plans have one. Later versions replace earlier ones
    where they hold a value: a row of promotions alone says nothing of the opening days.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]  # [layers, P, n, W]
    known: NDArray[np.int32]  # [layers, n, W]: first base week that may use it

    def at(self, rows: Ints, base: Ints, week: Ints) -> Floats:
        """What base weeks knew of weeks: rows, base [m], week [m, K] -> [P, m, K]; NaN = nothing, or out of range."""
        inside = (week >= 0) & (week < self.known.shape[2])
        place = rows[:, None], np.where(inside, week, 0)
        out = np.full((len(self.names), *week.shape), np.nan)
        for values, known in zip(self.values, self.known, strict=True):
            usable = inside & (known[place] <= base[:, None])
            value = values[:, place[0], place[1]]
            out = np.where(usable[None] & np.isfinite(value), value, out)
        return out

    def history(self, weeks: int) -> Floats:
        """[P, n, weeks]: each week's value as it was known right after that week."""
        n = self.known.shape[1]
        out = np.full((len(self.names), n, weeks), np.nan)
        after = np.arange(1, weeks + 1)
        for values, known in zip(self.values[..., :weeks], self.known[..., :weeks], strict=True):
            out = np.where((known <= after) & np.isfinite(values), values, out)
        return out


def layers(
    plan: pl.DataFrame, names: tuple[str, ...], series: pl.DataFrame, first: np.datetime64, weeks: int
) -> Layers:
    """`plan` (store, dept or null for all, week, known_at or null for always, one column per name) by series.

    `series` has the keys in row order; week 0 is `first`. Base week b starts six days before its date: a value is
    known to it if `known_at` lies before that. A department's own row replaces the store's.
    """
    general = plan.filter(pl.col("dept_id").is_null()).drop("dept_id").join(series, on="store_id")
    own = plan.filter(pl.col("dept_id").is_not_null()).join(series, on=list(KEYS))
    start = pl.lit(first.astype("datetime64[us]").item()) - pl.duration(days=6)
    known = (pl.col("known_at").dt.replace_time_zone(None) - start).dt.total_microseconds() // (7 * 86_400_000_000) + 1
    columns = ("row", "week", "known", "own", *names)
    rows = (
        pl.concat(
            [frame.with_columns(own=pl.lit(flag)) for frame, flag in ((general, False), (own, True))], how="diagonal"
        )
        .with_columns(
            ((pl.col("week") - pl.lit(first.item())).dt.total_days() // 7).alias("week"),
            known.fill_null(np.iinfo(np.int32).min).cast(pl.Int32).alias("known"),
        )
        .filter(pl.col("week").is_between(0, weeks - 1))
        .select(columns)
        .sort("own", "known")
        .with_columns(pl.int_range(pl.len()).over("row", "week").alias("layer"))
    )
    depth = int(rows["layer"].max() or 0) + 1 if rows.height else 0  # type: ignore[arg-type]
    values = np.full((depth, len(names), series.height, weeks), np.nan, dtype=np.float32)
    known_from = np.full((depth, series.height, weeks), np.iinfo(np.int32).max, dtype=np.int32)
    place = tuple(rows[name].to_numpy() for name in ("layer", "row", "week"))
    known_from[place] = rows["known"].to_numpy()
    for i, name in enumerate(names):
        values[:, i][place] = rows[name].fill_null(np.nan).to_numpy()
    return Layers(names, values, known_from)


def effects(history: Floats, sales: Floats) -> Floats:
    """Effects of planned inputs on log sales, [T + 1, P], as each base week could estimate them.

    Ridge regression of log(y[w] / y[w-1]) on x[w] - x[w-1] over all series and all weeks before the base week; week
    to week, so that levels, slow growth and the season hardly matter. A missing value is no change.
    """
    inputs, weeks = len(history), sales.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.diff(np.where(sales > 0, np.log(sales), np.nan), axis=1)
    used = np.isfinite(growth) & (np.abs(growth) < 3)
    change = np.nan_to_num(np.diff(history, axis=2)) * used
    growth = np.where(used, growth, 0.0)
    gram = np.zeros((weeks + 1, inputs, inputs))
    cross = np.zeros((weeks + 1, inputs))
    gram[2:] = np.cumsum(np.einsum("ist,jst->tij", change, change), axis=0)
    cross[2:] = np.cumsum(np.einsum("ist,st->ti", change, growth), axis=0)
    count = np.zeros(weeks + 1)
    count[2:] = np.cumsum(used.sum(axis=0))
    spread = np.einsum("tii->ti", gram) / np.maximum(count, 1)[:, None]
    penalty = np.where(spread > 0, RIDGE * spread, 1.0)
    return np.asarray(np.linalg.solve(gram + penalty[:, :, None] * np.eye(inputs), cross[:, :, None])[:, :, 0])


def usual_open_days(history: Floats) -> Floats:
    """The usual number of open days as each base week has it, [n, T] -> [n, T + 1]; never NaN.

    The median of the last USUAL known numbers above 0; before the first known week that of the first ones, so that
    weeks without a number are on the scale of those with one; EVERY_DAY where no number is known at all.
    """
    out = np.empty((len(history), history.shape[1] + 1))
    for start in range(0, len(history), BLOCK):
        out[start : start + BLOCK] = _usual(history[start : start + BLOCK])
    return out


def _usual(history: Floats) -> Floats:
    n, weeks = history.shape
    count = np.zeros((n, weeks + 1), np.int64)  # known numbers before each base week
    np.cumsum(history > 0, axis=1, out=count[:, 1:])
    numbers = np.full((n, USUAL - 1 + weeks), np.nan)  # of each series side by side
    row, week = np.nonzero(history > 0)
    numbers[row, USUAL - 1 + count[row, week]] = history[row, week]
    last = np.sort(sliding_window_view(numbers, USUAL, axis=1), axis=2)  # [n, T, USUAL]: NaN last
    middle = np.minimum(np.arange(1, weeks + 1), USUAL) // 2  # the larger one of two
    medians = np.take_along_axis(last, middle[None, :, None], axis=2)[:, :, 0]  # column k: of the first k + 1 numbers
    seen = np.where(count > 0, count, np.minimum(count[:, -1:], USUAL))
    return np.where(seen > 0, np.take_along_axis(medians, np.maximum(seen - 1, 0), axis=1), EVERY_DAY)
