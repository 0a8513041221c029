"""Planned inputs (promotions, opening days, prices ...): what each base week knew of them, and their effects."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from salescast.features.history import Floats, Ints
from salescast.schema import KEYS

USUAL = 13  # known weeks that determine the usual number of open days
EVERY_DAY = 7.0
BLOCK = 1000  # series computed at a time


@dataclass(frozen=True)
class PlanVersions:
    """Planned values, each with the first base week that knows it.

    Version j holds the j-th value by time for a series and week; most plans have one. A later version replaces an
    earlier one where it has a value: a row with promotions only leaves the opening days as they were.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]  # [versions, P, n, W]
    known: NDArray[np.int32]  # [versions, n, W]: first base week that may use it

    def at(self, rows: Ints, base: Ints, week: Ints) -> Floats:
        """Values of `week` [m, K] as known by `base` [m] for `rows` [m], [P, m, K]; NaN = unknown or out of range."""
        inside = (week >= 0) & (week < self.known.shape[2])
        place = rows[:, None], np.where(inside, week, 0)
        out = np.full((len(self.names), *week.shape), np.nan)
        for values, known in zip(self.values, self.known, strict=True):
            usable = inside & (known[place] <= base[:, None])
            value = values[:, place[0], place[1]]
            out = np.where(usable[None] & np.isfinite(value), value, out)
        return out

    def history(self, weeks: int) -> Floats:
        """The value of each week as known right after it, [P, n, weeks]."""
        n = self.known.shape[1]
        out = np.full((len(self.names), n, weeks), np.nan)
        after = np.arange(1, weeks + 1)
        for values, known in zip(self.values[..., :weeks], self.known[..., :weeks], strict=True):
            out = np.where((known <= after) & np.isfinite(values), values, out)
        return out


def plan_versions(
    plan: pl.DataFrame, names: tuple[str, ...], series: pl.DataFrame, first: np.datetime64, weeks: int
) -> PlanVersions:
    """Arrange `plan` by series: store, dept (null = all), week, known_at (null = always), one column for each name.

    `series` has the keys in row order; week 0 is `first`. Base week b starts six days before its date and knows values
    whose `known_at` is before that. A row of the department replaces that of the store.
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
        .with_columns(pl.int_range(pl.len()).over("row", "week").alias("version"))
    )
    depth = int(rows["version"].max() or 0) + 1 if rows.height else 0  # type: ignore[arg-type]
    values = np.full((depth, len(names), series.height, weeks), np.nan, dtype=np.float32)
    known_from = np.full((depth, series.height, weeks), np.iinfo(np.int32).max, dtype=np.int32)
    place = tuple(rows[name].to_numpy() for name in ("version", "row", "week"))
    known_from[place] = rows["known"].to_numpy()
    for i, name in enumerate(names):
        values[:, i][place] = rows[name].fill_null(np.nan).to_numpy()
    return PlanVersions(names, values, known_from)


def prices(history: Floats) -> list[int]:
    """The places of the inputs, of [P, n, T], that are prices: numbers above 0, and not all the same."""
    known = [values[np.isfinite(values)] for values in history]
    return [i for i, values in enumerate(known) if len(values) and values.min() > 0 and values.min() < values.max()]


def log_ratio(values: Floats, usual: Floats) -> Floats:
    """log(values / usual); NaN where one of them is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((values > 0) & (usual > 0), np.log(values / usual), np.nan)


def usual_prices(history: Floats) -> Floats:
    """The median of the last USUAL known prices before each base week, [n, T] -> [n, T + 1]; NaN before the first."""
    known = np.cumsum(history > 0, axis=1) > 0
    never = np.concatenate([np.ones((len(history), 1), bool), ~known], axis=1)
    return np.where(never, np.nan, usual_open_days(history))


def usual_open_days(history: Floats) -> Floats:
    """The usual number of open days before each base week, [n, T] -> [n, T + 1]; never NaN.

    The median of the last USUAL known numbers above 0. Before the first known number it is the median of the first
    ones, so that sales of weeks with and without a number have the same scale. EVERY_DAY where no number is known.
    """
    out = np.empty((len(history), history.shape[1] + 1))
    for start in range(0, len(history), BLOCK):
        out[start : start + BLOCK] = _usual(history[start : start + BLOCK])
    return out


def _usual(history: Floats) -> Floats:
    n, weeks = history.shape
    count = np.zeros((n, weeks + 1), np.int64)  # known numbers before each base week
    np.cumsum(history > 0, axis=1, out=count[:, 1:])
    numbers = np.full((n, USUAL - 1 + weeks), np.nan)  # the known numbers of each series, without the gaps
    row, week = np.nonzero(history > 0)
    numbers[row, USUAL - 1 + count[row, week]] = history[row, week]
    last = np.sort(sliding_window_view(numbers, USUAL, axis=1), axis=2)  # [n, T, USUAL]: NaN last
    middle = np.minimum(np.arange(1, weeks + 1), USUAL) // 2  # the larger one of two
    medians = np.take_along_axis(last, middle[None, :, None], axis=2)[:, :, 0]  # column k: of the first k + 1 numbers
    seen = np.where(count > 0, count, np.minimum(count[:, -1:], USUAL))
    return np.where(seen > 0, np.take_along_axis(medians, np.maximum(seen - 1, 0), axis=1), EVERY_DAY)
