"""Effects of planned inputs (promotions, prices) on sales, and sales without them.

Sales are modelled as base * exp(terms @ effects). History is divided by that factor before level and season are read
from it, and forecasts are multiplied by the factor of the weeks ahead.
"""

from itertools import combinations
from typing import Final

import numpy as np

from salescast.features.history import Floats, Ints

RIDGE: Final = 10.0  # strength of the pooled penalty: pseudo-observations of "no effect" for each term
SHRINKAGE: Final = 30.0  # pseudo-observations of the pooled effects in those of a department
BOUND: Final = np.log(10.0)  # of the factor's logarithm


def terms(values: Floats) -> Floats:
    """What the effects multiply, [K, ...]: the inputs [P, ...] and their products in pairs; NaN = unknown counts as 0.

    Products: promotions that come together do more, or less, than the sum of what each does.
    """
    known = np.nan_to_num(values)
    pairs = [known[i] * known[j] for i, j in combinations(range(len(known)), 2)]
    return np.concatenate([known, np.stack(pairs)]) if pairs else known


def effects(term: Floats, sales: Floats, dept: Ints) -> Floats:
    """Effects of the terms [K, n, T] on log sales by department, [departments, T + 1, K], from weeks before each base.

    Ridge regression of log sales on the terms, both as differences from their mean in the series: over all series, and
    then over those of each department with the pooled effects as its prior, worth SHRINKAGE observations (a g-prior,
    Zellner 1986).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sales = np.where(sales > 0, np.log(sales), np.nan)
    order = np.argsort(dept, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(dept[order])) + 1)
    moments = [_moments(term[:, rows], log_sales[rows]) for rows in groups]
    gram, cross, count = (sum(parts) for parts in zip(*moments, strict=True))
    mean_gram = gram / np.maximum(count, 1.0)[:, None, None]
    spread = np.einsum("tkk->tk", mean_gram)
    penalty = np.where(spread > 0, RIDGE * spread, 1.0)[:, :, None] * np.eye(len(term))
    pooled = np.linalg.solve(gram + penalty, cross[:, :, None])
    prior = SHRINKAGE * mean_gram + penalty / RIDGE
    own = [np.linalg.solve(gram + prior, cross[:, :, None] + prior @ pooled)[:, :, 0] for gram, cross, _ in moments]
    return np.stack(own)


def _moments(term: Floats, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Of the weeks before each base, within series: sums of squares [T + 1, K, K] and products [T + 1, K], a count.

    Of series with two weeks and more: sum of x y less sum of x times sum of y / n.
    """
    known = np.isfinite(values)
    x = np.concatenate([np.where(known, term, 0.0), np.where(known, values, 0.0)[None]])  # [K + 1, n, T]
    weeks = known.shape[1]
    count = np.cumsum(known, axis=1)
    sums = np.cumsum(x, axis=2) / np.sqrt(np.maximum(count, 1))
    by_week, means = x.transpose(2, 0, 1), sums.transpose(2, 0, 1)  # [T, K + 1, n]
    products = np.zeros((weeks + 1, len(x), len(x)))
    products[1:] = np.cumsum(by_week @ by_week.transpose(0, 2, 1), axis=0) - means @ means.transpose(0, 2, 1)
    degrees = np.concatenate([[0.0], np.maximum(count - 1, 0).sum(axis=0)])
    return products[:, :-1, :-1], products[:, :-1, -1], degrees


def log_factor(term: Floats, effect: Floats) -> Floats:
    """The logarithm of what the terms [K, ...] multiply sales by; `effect` [..., K] is that of each element."""
    return np.asarray(np.clip(np.einsum("k...,...k->...", term, effect), -BOUND, BOUND))
