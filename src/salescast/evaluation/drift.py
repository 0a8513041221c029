"""How far new weeks have drifted from the weeks that a model was trained on."""

import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast import schema
from salescast.features.contracts import COLUMNS
from salescast.schema import KEYS, TIMESTAMP

BINS: Final = 10
# What the series of a store, a department or all share in a week has too few values for a distribution.
POOLED: Final = ("market_level", *schema.SEASONAL_GROUPS["pooled"])
STRONG: Final = 0.25  # of the population stability index: the distribution is another one (Siddiqi 2006)
LEAST: Final = 1e-4  # a share of nothing: the index has no value for an empty bin
SAMPLE: Final = 1_000_000  # rows from which quantiles are taken


def stability(expected: pl.Series, actual: pl.Series) -> float:
    """Population stability index of `actual` against `expected`: sum of (a - e) ln(a / e) over the bins' shares.

    Bins are the deciles of `expected`, or its values where it is text, and one for what is missing (Siddiqi, Credit
    Risk Scorecards, 2006; Yurdakul, Statistical Properties of the Population Stability Index, 2018). Below 0.1 nothing
    has changed, above 0.25 a lot has. An empty bin counts as a share of 0.0001. NaN without values to compare.
    """
    if not len(expected) or not len(actual):
        return math.nan
    number = _text_bins if expected.dtype == pl.String else _number_bins
    count, *bins = number(expected, actual)
    e, a = (np.maximum(np.bincount(found, minlength=count) / len(found), LEAST) for found in bins)
    return float(((a - e) * np.log(a / e)).sum())


Bins = NDArray[np.int64]


def _number_bins(expected: pl.Series, actual: pl.Series) -> tuple[int, Bins, Bins]:
    """The number of bins, and that of each value's bin."""
    known = expected.drop_nulls().cast(pl.Float64).to_numpy()
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else known

    def numbered(values: pl.Series) -> Bins:
        at = np.searchsorted(edges, values.cast(pl.Float64).fill_null(math.nan).to_numpy())
        return np.where(values.is_null().to_numpy(), len(edges) + 1, at)

    return len(edges) + 2, numbered(expected), numbered(actual)


def _text_bins(expected: pl.Series, actual: pl.Series) -> tuple[int, Bins, Bins]:
    number = {name: place for place, name in enumerate(expected.unique().to_list())}
    unseen = len(number)
    old, new = (np.array([number.get(name, unseen) for name in values], np.int64) for values in (expected, actual))
    return unseen + 1, old, new


def drift(training: pl.LazyFrame, views: Mapping[str, Path], cutoff: date) -> pl.DataFrame:
    """How far the weeks after `cutoff` have drifted from a training set: feature, stability index, most drifted first.

    Compared with the training weeks up to `cutoff` of the same months, where there are any: a summer is no drift from
    a winter. A list counts by its mean; of a store, which has no week, every series counts once. POOLED is left out.
    """
    found: list[tuple[str, float]] = []
    week = pl.col(TIMESTAMP).dt.date()
    for view, path in views.items():
        fresh = pl.scan_parquet(path)
        old = training.filter(week <= cutoff)
        if view == schema.STORE_VIEW:
            old = old.unique(KEYS, maintain_order=True)
        else:
            fresh = fresh.filter(week > cutoff)
            months = fresh.select(week.dt.month().unique()).collect().to_series()
            season = old.filter(week.dt.month().is_in(months.implode()))
            old = old if season.select(pl.len()).collect().item() == 0 else season
        for name, dtype in ((name, dtype) for name, dtype in COLUMNS[view].items() if name not in POOLED):
            value = pl.col(name).list.mean() if isinstance(dtype, pl.List) else pl.col(name)
            expected, actual = (_sample(rows.select(value).collect().to_series()) for rows in (old, fresh))
            found.append((name, stability(expected, actual)))
    table = pl.DataFrame(found, schema={"feature": pl.String, "psi": pl.Float64}, orient="row")
    return table.sort("psi", descending=True, nulls_last=True)


def _sample(values: pl.Series) -> pl.Series:
    return values.gather_every(max(1, len(values) // SAMPLE))
