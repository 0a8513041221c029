"""Drift of new weeks from the weeks that a model was trained on."""

import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from salescast import schema
from salescast.features.contracts import COLUMNS
from salescast.features.history import Ints
from salescast.schema import KEYS, TIMESTAMP

BINS: Final = 10
# Features shared by all series of a store, of a department or of the dataset: too few values for a distribution.
POOLED: Final = ("market_level", *schema.SEASONAL_GROUPS["pooled"])
STRONG: Final = 0.25  # population stability index of a changed distribution (Siddiqi 2006)
LEAST: Final = 1e-4  # share of an empty bin, for which the index is not defined
SAMPLE: Final = 1_000_000  # most rows that an index is computed from


def stability(expected: pl.Series, actual: pl.Series) -> float:
    """Population stability index of `actual` against `expected`: sum of (a - e) ln(a / e) over the bins' shares.

    Bins are the deciles of `expected`, or its values where it is text, and one for missing values (Siddiqi, Credit
    Risk Scorecards, 2006; Yurdakul, Statistical Properties of the Population Stability Index, 2018). Below 0.1: no
    change; above 0.25: a large change. An empty bin counts as a share of 0.0001. NaN if either series is empty.
    """
    if not len(expected) or not len(actual):
        return math.nan
    assign = _text_bins if expected.dtype == pl.String else _number_bins
    count, *bins = assign(expected, actual)
    e, a = (np.maximum(np.bincount(bin, minlength=count) / len(bin), LEAST) for bin in bins)
    return float(((a - e) * np.log(a / e)).sum())


def _number_bins(expected: pl.Series, actual: pl.Series) -> tuple[int, Ints, Ints]:
    """The number of bins, and the bin of each value."""
    known = expected.drop_nulls().cast(pl.Float64).to_numpy()
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else known

    def binned(values: pl.Series) -> Ints:
        at = np.searchsorted(edges, values.cast(pl.Float64).fill_null(math.nan).to_numpy())
        return np.where(values.is_null().to_numpy(), len(edges) + 1, at)

    return len(edges) + 2, binned(expected), binned(actual)


def _text_bins(expected: pl.Series, actual: pl.Series) -> tuple[int, Ints, Ints]:
    number = {name: place for place, name in enumerate(expected.unique().to_list())}
    unseen = len(number)
    old, new = (np.array([number.get(name, unseen) for name in values], np.int64) for values in (expected, actual))
    return unseen + 1, old, new


def drift(training: pl.LazyFrame, views: Mapping[str, Path], cutoff: date) -> pl.DataFrame:
    """Drift of the weeks after `cutoff` from a training set: feature, psi (stability index), largest first.

    The comparison is with training weeks up to `cutoff` of the same months, if there are any, so that the season is not
    reported as drift. A list counts by its mean. Store features, which do not depend on the week, are compared per
    series. POOLED is left out.
    """
    indices: list[tuple[str, float]] = []
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
            indices.append((name, stability(expected, actual)))
    table = pl.DataFrame(indices, schema={"feature": pl.String, "psi": pl.Float64}, orient="row")
    return table.sort("psi", descending=True, nulls_last=True)


def _sample(values: pl.Series) -> pl.Series:
    return values.gather_every(max(1, len(values) // SAMPLE))
