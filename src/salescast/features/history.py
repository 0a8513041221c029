"""Sales histories as dense matrices, and statistics of the weeks before each base week.

A matrix is [series, weeks], NaN = no observation. A statistic is [series, weeks + 1]: its column b is computed from
columns < b only, and its last column belongs to the upcoming week.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from salescast.schema import KEYS, LABEL, SEASON

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WEEK: Final = np.timedelta64(7, "D")

RANK = 8  # of the reconstruction; departments with no more series than this are not reconstructed
TRACK = 8  # weeks over which the recent error of the seasonal naive forecast is measured
SPAN = SEASON + TRACK  # weeks before a base week that are reconstructed
BLOCK = 32  # base weeks computed at a time
SERIES_BLOCK = 1000  # series computed at a time


@dataclass(frozen=True)
class History:
    """Sales of n series in T weeks."""

    series: pl.DataFrame  # the keys of the n series, in key order
    first_week: np.datetime64
    sales: Floats  # [n, T], NaN = not observed


def dense(sales: pl.DataFrame, last: date | None = None) -> History:
    """Rows of observed sales (keys, week, weekly_sales) as a matrix from the first week to `last`.

    `last` is a week not before the newest row, which is the default.
    """
    series = sales.select(KEYS).unique().sort(KEYS)
    row = sales.join(series.with_row_index("row"), on=KEYS, how="left", maintain_order="left")["row"].to_numpy()
    week = sales["week"].to_numpy().astype("datetime64[D]")
    first, newest = week.min(), week.max() if last is None else np.datetime64(last)
    matrix = np.full((series.height, (newest - first) // WEEK + 1), np.nan)
    matrix[row, (week - first) // WEEK] = sales[LABEL].to_numpy()
    return History(series, first, matrix)


def cumulative_sums(values: Floats) -> Floats:
    """Cumulative sums of the columns before each base week, [n, T] -> [n, T + 1]; NaN adds nothing."""
    out = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(np.nan_to_num(values), axis=1, out=out[:, 1:])
    return out


def window_sums(sums: Floats, weeks: int) -> Floats:
    """Sums of the last `weeks` columns before each base week, from the result of `cumulative_sums`."""
    out = sums.copy()
    out[:, weeks:] -= sums[:, :-weeks] if weeks < sums.shape[1] else 0
    return out


def ratio(above: Floats, below: Floats) -> Floats:
    """above / below; NaN where below is 0."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    np.divide(above, below, out=out, where=below != 0)
    return out


def mean(values: Floats) -> Floats:
    """Mean of the known values along the last axis; NaN where there are none."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


def at(values: Floats, row: Ints, week: Ints) -> Floats:
    """values[row, week] for week [m, K]; NaN outside the history."""
    inside = (week >= 0) & (week < values.shape[1])
    return np.where(inside, values[row[:, None], np.where(inside, week, 0)], np.nan)


def window_mean(values: Floats, weeks: int) -> Floats:
    """Mean of the observations of the last `weeks` weeks; NaN where there are none."""
    seen = np.isfinite(values).astype(np.float64)
    return ratio(window_sums(cumulative_sums(values), weeks), window_sums(cumulative_sums(seen), weeks))


def window_deviation(values: Floats, weeks: int) -> Floats:
    """Population standard deviation of the observations of the last `weeks` weeks.

    Values are shifted by the first one of their series, so that the deviation of a constant series is exactly 0.
    """
    first = np.argmax(np.isfinite(values), axis=1)
    centred = values - values[np.arange(len(values)), first][:, None]
    square = window_mean(centred**2, weeks) - window_mean(centred, weeks) ** 2
    return np.sqrt(np.maximum(square, 0.0))


def window_median(values: Floats, weeks: int) -> Floats:
    """Median of the observations of the last `weeks` weeks; NaN where there are none."""
    n, length = values.shape
    seen = window_sums(cumulative_sums(np.isfinite(values).astype(np.float64)), weeks).astype(np.int64)
    out = np.empty((n, length + 1))
    for start in range(0, n, SERIES_BLOCK):
        part = slice(start, start + SERIES_BLOCK)
        padded = np.hstack([np.full((len(values[part]), weeks), np.nan), values[part]])
        ordered = np.sort(sliding_window_view(padded, weeks, axis=1), axis=2)  # NaN last
        middle = np.maximum(np.stack([(seen[part] - 1) // 2, seen[part] // 2], axis=2), 0)
        out[part] = np.take_along_axis(ordered, np.minimum(middle, weeks - 1), axis=2).mean(axis=2)
    return np.where(seen > 0, out, np.nan)


def window_max(values: Floats, weeks: int) -> Floats:
    """Largest observation of the last `weeks` weeks; NaN where there are none."""
    out = np.full((len(values), values.shape[1] + 1), np.nan)
    for back in range(1, min(weeks, values.shape[1]) + 1):
        out[:, back:] = np.fmax(out[:, back:], values[:, : values.shape[1] + 1 - back])
    return out


def paired(values: Floats) -> tuple[Floats, Floats]:
    """Sales of the weeks that are observed this year and last year: this year's and last year's, [n, T], NaN elsewhere.

    Growth is their ratio. A series that opens or closes changes the sales of its department but not its growth.
    """
    ago = np.full_like(values, np.nan)
    ago[:, SEASON:] = values[:, :-SEASON] if values.shape[1] > SEASON else values[:, :0]
    both = np.isfinite(values) & np.isfinite(ago)
    return np.where(both, values, np.nan), np.where(both, ago, np.nan)


def group_sums(values: Floats, groups: Ints) -> Floats:
    """Sums over the series of each group, [groups, T]; NaN where none is observed."""
    count = int(groups.max()) + 1
    total, seen = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(total, groups, np.nan_to_num(values))
    np.add.at(seen, groups, np.isfinite(values))
    return np.where(seen > 0, total, np.nan)


def fill_gaps(values: Floats) -> Floats:
    """Fill gaps in a department's series [n, T] with the level of the series times the department's index of the week.

    Level: mean of the 52 weeks before. Index: total sales over total level of the series observed in the week. Nothing
    later than the gap is used. NaN remains where a series has no sales for 52 weeks.
    """
    level = window_mean(values, SEASON)[:, :-1]
    both = np.isfinite(values) & np.isfinite(level)
    sums = (np.where(both, part, 0.0).sum(axis=0, keepdims=True) for part in (values, level))
    week = np.nan_to_num(ratio(*sums), nan=1.0)
    return np.where(np.isfinite(values), values, level * np.clip(week, 0.0, 20.0))


@dataclass(frozen=True)
class Denoised:
    """Low-rank reconstructions as of each base week b. Float32, since these are the largest arrays in memory."""

    around: NDArray[np.float32]  # [n, T + 1, H + 2]: weeks b - 53 .. b - 52 + H
    error: Floats  # [n, T + 1]: mean |y - V| of the last 52 weeks
    before: NDArray[np.float32]  # [n, T + 1, TRACK]: weeks b - 60 .. b - 53


def denoise(values: Floats, groups: Ints, horizon: int) -> Denoised:
    """Rank-8 reconstruction of each department's (weeks x stores) matrix, computed anew for every base week.

    A truncated SVD, as in the winning entry of Kaggle's Walmart competition (Thornton 2014): it keeps what stores have
    in common and drops the noise of single stores. A department with at most RANK series keeps its sales, gaps filled.
    """
    n, weeks = values.shape
    out = Denoised(
        around=np.full((n, weeks + 1, horizon + 2), np.nan, dtype=np.float32),
        error=np.full((n, weeks + 1), np.nan),
        before=np.full((n, weeks + 1, TRACK), np.nan, dtype=np.float32),
    )
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    for rows in members:
        _denoise_group(values[rows], rows, out)
    return out


def _denoise_group(values: Floats, rows: Ints, out: Denoised) -> None:
    n, weeks = values.shape
    width = out.around.shape[2]
    history = fill_gaps(values)
    started = (np.cumsum(np.isfinite(values), axis=1) > 0).sum(axis=0)  # number of series that have started, by week
    # First base week with more than RANK series and weeks.
    first = max(RANK, int(np.searchsorted(started, RANK, "right"))) + 1
    pad = np.full((n, SPAN), np.nan)
    # [n, T + 1, SPAN]: element k of base week b is week b - SPAN + k
    past, actual = (sliding_window_view(np.hstack([pad, part]), SPAN, axis=1) for part in (history, values))
    for start in range(0, weeks + 1, BLOCK):
        bases = np.arange(start, min(start + BLOCK, weeks + 1))
        smooth = past[:, bases].copy()
        if bases[-1] >= first:
            # Sums over weeks start at the block, so that even their rounding depends on nothing later.
            late = bases >= first
            rebuilt = np.where(np.isfinite(smooth), _reconstruct(np.nan_to_num(history), bases), np.nan)
            smooth[:, late] = rebuilt[:, late]
        gap = np.abs(actual[:, bases] - smooth)[:, :, TRACK:]
        out.error[rows[:, None], bases] = mean(gap)
        out.before[rows[:, None], bases] = smooth[:, :, :TRACK]
        around = smooth[:, :, TRACK - 1 : TRACK - 1 + width]
        out.around[rows[:, None], bases, : around.shape[2]] = around


def _reconstruct(matrix: Floats, bases: Ints) -> Floats:
    """The last SPAN weeks before each base week b in the best rank-8 approximation of matrix[:, :b], [n, bases, SPAN].

    Computed from the eigenvectors of the smaller of the two Gram matrices.
    """
    n, weeks = matrix.shape
    start = int(bases[0])
    windows = sliding_window_view(np.hstack([np.zeros((n, SPAN)), matrix]), SPAN, axis=1)[:, bases].transpose(1, 0, 2)
    if n <= weeks:
        gram = np.empty((len(bases), n, n))
        gram[0] = matrix[:, :start] @ matrix[:, :start].T
        new = matrix[:, start : start + len(bases) - 1].T
        gram[1:] = new[:, :, None] * new[:, None, :]
        vectors = np.linalg.eigh(np.cumsum(gram, axis=0))[1][:, :, -RANK:]
        return np.asarray((vectors @ (vectors.transpose(0, 2, 1) @ windows)).transpose(1, 0, 2))
    out = np.zeros((n, len(bases), SPAN))
    for i, b in enumerate(bases):
        vectors = np.linalg.eigh(matrix[:, :b].T @ matrix[:, :b])[1][:, -RANK:]
        last = min(SPAN, int(b))
        out[:, i, SPAN - last :] = (matrix[:, :b] @ vectors) @ vectors[b - last :].T
    return out
