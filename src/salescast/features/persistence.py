"""How much of last year comes back, and whether the level has shifted since."""

from typing import Final

import numpy as np

from salescast.features.history import (
    SERIES_BLOCK,
    Floats,
    Ints,
    at,
    cumulative_sums,
    ratio,
    window_mean,
    window_sums,
)
from salescast.schema import SEASON

SMOOTHED: Final = 2  # weeks that are averaged
NOISIER: Final = 1.5  # how much noisier single weeks are (neighbours are correlated)
USUAL_SLOPE: Final = 0.5
PAIRS: Final = 26.0  # pairs that a prior is worth
LARGEST_SPREAD: Final = 4.0  # of relative deviations, squared: no series decides for all
SHIFTS: Final = (4, 8, 13)  # weeks since a shift of the level
SHIFT_SPAN: Final = 26  # weeks in which it is looked for
SHIFT_KNOWN: Final = 8  # known weeks that it is seen against


def pooled_slope(now: Floats, ago: Floats) -> Floats:
    """The slope of this year's on last year's relative deviations over all series, [T + 1], shrunk to USUAL_SLOPE.

    `now`, `ago`: paired sales of n series, [n, T]. Deviations are from the mean of the pairs of the last 52 weeks.
    Means of two weeks are compared, since holidays move from one week to the next.
    """
    sums = np.zeros((3, now.shape[1] + 1))
    for start in range(0, len(now), SERIES_BLOCK):
        block = slice(start, start + SERIES_BLOCK)
        sums += np.stack([part.sum(axis=0) for part in _deviations(now[block], ago[block])])
    common, spread, pairs = sums
    prior = PAIRS * np.nan_to_num(ratio(spread, pairs), nan=1.0)
    return np.asarray((common + USUAL_SLOPE * prior) / (spread + prior))


def persistence(now: Floats, ago: Floats, pooled: Floats) -> Floats:
    """How much of last year's deviations from its mean comes back this year, 0 to 1, [n, T + 1].

    Each series' own slope (see `pooled_slope`), shrunk towards the pooled one as if that were PAIRS further pairs.
    """
    common, spread, pairs = _deviations(now, ago)
    prior = PAIRS * np.where(pairs > 0, spread / np.maximum(pairs, 1.0), 1.0)
    slope = np.clip((common + pooled * prior) / (spread + prior), 0.0, 1.0)
    return np.asarray(slope / (slope + NOISIER * (1 - slope)))


def _deviations(now: Floats, ago: Floats) -> tuple[Floats, Floats, Floats]:
    """Of the pairs of the last 52 weeks: sums of products and of squares of relative deviations, a count; [n, T + 1].

    The squares are of last year's, bounded by LARGEST_SPREAD in the mean. All are 0 where there is nothing to compare.
    """
    now, ago = (window_mean(values, SMOOTHED)[:, 1:] for values in (now, ago))
    pairs = window_sums(cumulative_sums(np.isfinite(now).astype(np.float64)), SEASON)
    x, y, xx, xy = (ratio(window_sums(cumulative_sums(part), SEASON), pairs) for part in (ago, now, ago**2, ago * now))
    spread, common = ratio(xx - x**2, x**2), ratio(xy - x * y, x * y)
    used = (spread > 0) & (x > 0) & (y > 0)
    weight = np.where(used, pairs * np.minimum(1.0, LARGEST_SPREAD / np.where(used, spread, 1.0)), 0.0)
    return np.where(used, common, 0.0) * weight, np.where(used, spread, 0.0) * weight, np.where(used, pairs, 0.0)


def shifted(sales: Floats, row: Ints, base: Ints) -> Floats:
    """[m]: the least of SHIFTS for which the last so many weeks are all above, or all below, the weeks before them.

    0 where there is none. Compared are the last SHIFT_SPAN weeks.
    """
    span = at(sales, row, base[:, None] - np.arange(1, SHIFT_SPAN + 1))
    out = np.zeros(len(row))
    for weeks in reversed(SHIFTS):
        last, earlier = span[:, :weeks], span[:, weeks:]
        known = np.isfinite(last).all(axis=1) & (np.isfinite(earlier).sum(axis=1) >= SHIFT_KNOWN)
        above = last.min(axis=1) > np.fmax.reduce(earlier, axis=1)
        below = last.max(axis=1) < np.fmin.reduce(earlier, axis=1)
        out[known & (above | below)] = weeks
    return out
