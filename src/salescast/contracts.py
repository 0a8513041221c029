"""What feature tables promise: columns, keys, weeks without holes, values in their range; and how far new weeks have
drifted from those that a model was trained on.
"""

import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast import schema
from salescast.checks import MAX_SALES
from salescast.errors import UserError
from salescast.schema import KEY_TYPES, KEYS, LABEL, TIMESTAMP, TIMESTAMP_TYPE

COLUMNS: Final[dict[str, Mapping[str, pl.DataType]]] = {
    schema.SALES_VIEW: schema.SALES_FEATURES,
    schema.STORE_VIEW: schema.STORE_FEATURES,
    schema.SEASONAL_VIEW: schema.SEASONAL_FEATURES,
}
MOST: Final = 1.001 * MAX_SALES  # features have 32 bits
_NOT_NEGATIVE: Final = dict.fromkeys(
    ("rolling_std_4w", "store_size", "scale", "deviation", "market_level", "denoise_error", "naive_error"),
    (0, math.inf),
)
# Bounds of values that are there; null is missing and always allowed.
RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys((LABEL, "lag_1", "lag_2", "lag_4", "lag_8", "rolling_mean_4w"), (-MOST, MOST)),
    "week_of_year": (1, 53),
    "month": (1, 12),
    "quarter": (1, 4),
    "week_of_month": (1, 6),
    "is_month_end": (0, 1),
    "is_holiday": (0, 1),
    "days_to_holiday": (0, 366),
    **_NOT_NEGATIVE,
}  # fmt: skip

BINS: Final = 10
# What the series of a store, a department or all share in a week has too few values for a distribution.
POOLED: Final = ("market_level", *schema.SEASONAL_GROUPS["pooled"])
STRONG: Final = 0.25  # of the population stability index: the distribution is another one (Siddiqi 2006)
LEAST: Final = 1e-4  # a share of nothing: the index has no value for an empty bin
SAMPLE: Final = 1_000_000  # rows from which quantiles are taken


def check(view: str, table: pl.DataFrame) -> None:
    """Raise UserError unless `table`, some whole series of a view, keeps its contract.

    Columns and types; strictly increasing (store_id, dept_id, week), so that no key comes twice; in the weekly views no
    week left out within a series; values within RANGES and not NaN.
    """
    fixed = {**KEY_TYPES, TIMESTAMP: TIMESTAMP_TYPE, **COLUMNS[view]}
    expected = fixed | schema.planned_columns(set(table.columns) - set(fixed))
    if dict(table.schema) != expected:
        wrong = [name for name in {**expected, **table.schema} if table.schema.get(name) != expected.get(name)]
        raise UserError(f"{view} has other columns or types than it promises: {wrong}; report this")
    _check_keys(view, table)
    wrong_values = {name: ~pl.col(name).is_between(*RANGES[name]) for name in table.columns if name in RANGES}
    floats = [name for name, dtype in table.schema.items() if dtype == pl.Float32 and name not in RANGES]
    wrong_values |= {name: pl.col(name).is_nan() for name in floats}
    counts = table.select(**{name: wrong.sum() for name, wrong in wrong_values.items()}).to_dicts()
    for name, count in counts[0].items() if counts else ():
        if count:
            bounds = RANGES.get(name, "the numbers")
            raise UserError(
                f"{view}: {count} values of {name} are not within {bounds}; look for absurd values in the data"
            )


def _check_keys(view: str, table: pl.DataFrame) -> None:
    store, dept = (pl.col(key) for key in KEYS)
    before_store, before_dept = store.shift(1), dept.shift(1)
    same = (store == before_store) & (dept == before_dept)
    later = (store > before_store) | ((store == before_store) & (dept > before_dept))
    weeks = pl.col(TIMESTAMP).diff().dt.total_days()
    follows = later if view == schema.STORE_VIEW else later | (same & (weeks == 7))
    broken = table.select(*KEYS, pl.col(TIMESTAMP).dt.date(), ok=follows.fill_null(True)).filter(~pl.col("ok"))
    if broken.height:
        store_id, dept_id, week, _ = broken.row(0)
        raise UserError(
            f"{view}: week {week} of store {store_id}, department {dept_id} is there twice, out of order or after a "
            "hole; the dataset was not made by `salescast data`: import it again"
        )


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
