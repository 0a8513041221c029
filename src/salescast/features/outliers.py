"""Histories in which no single value, and sums in which no single series, decides alone."""

import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray

from salescast.features.history import (
    SERIES_BLOCK,
    Floats,
    Ints,
    cumulative_sums,
    group_sums,
    ratio,
    window_max,
    window_mean,
    window_median,
    window_sums,
)
from salescast.schema import SEASON

ODD: Final = 5.0  # times the largest value of a year: taken for a mistake
CAP: Final = 2.0  # times the largest value of a year: what a mistake becomes
ENOUGH: Final = 13  # known weeks before a value can be odd
SEVERAL, SHARE = 3, 0.25  # series, and their share, that make a season of an odd week
LARGEST: Final = 100.0  # times the median series: what one series may add to the total


def without_mistakes(values: Floats, groups: Ints) -> Floats:
    """The histories with values that are most likely mistyped, or happen once, bounded: other weeks come from them.

    Such a value is more than ODD times the largest of the year before it, in a series that usually sells. It becomes
    CAP times that. A week in which a good part of the group, or of all series, leaves its range is a season.
    """
    over, known = np.zeros(values.shape, np.float32), np.zeros(values.shape, bool)
    for start in range(0, len(values), SERIES_BLOCK):  # the arrays of all series at once would be the largest in memory
        block = slice(start, start + SERIES_BLOCK)
        over[block], known[block] = _over_peak(values[block])
    season = np.zeros(values.shape, bool)
    for group in (groups, np.zeros_like(groups)):
        high, all_known = (group_sums(part.astype(np.float64), group) for part in (over > CAP, known))
        season |= ((high >= SEVERAL) & (high >= SHARE * all_known))[group]
    odd = (over > ODD) & ~season
    return np.where(odd, values * CAP / np.where(odd, over, 1.0), values)


def _over_peak(values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Each value over the largest of the year before it, 0 where that is not known, and where it is, [n, T] each."""
    peak, usual = window_max(values, SEASON)[:, :-1], window_median(values, SEASON)[:, :-1]
    seen = window_sums(cumulative_sums(np.isfinite(values).astype(np.float64)), SEASON)[:, :-1]
    known = np.isfinite(values) & (seen >= ENOUGH) & (usual > 0)
    return np.divide(values, peak, out=np.zeros_like(values), where=known & (peak > 0)), known


def bounded(sales: Floats) -> Floats:
    """Sales [n, T], of series larger than LARGEST times the median one brought down to that: no series is the total."""
    scale = window_mean(np.abs(sales), SEASON)[:, 1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # weeks without any sales
        largest = LARGEST * np.nanmedian(np.where(scale > 0, scale, np.nan), axis=0)
    return np.where(scale > largest, sales * ratio(np.broadcast_to(largest, scale.shape), scale), sales)
