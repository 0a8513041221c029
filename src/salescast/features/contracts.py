"""The contract of feature tables: columns and types, keys, weeks without gaps, values within their ranges."""

import math
from collections.abc import Mapping
from typing import Final

import polars as pl

from salescast import schema
from salescast.data.validation import MAX_SALES
from salescast.errors import UserError
from salescast.schema import KEY_TYPES, KEYS, LABEL, TIMESTAMP, TIMESTAMP_TYPE

COLUMNS: Final[dict[str, Mapping[str, pl.DataType]]] = {
    schema.SALES_VIEW: schema.SALES_FEATURES,
    schema.STORE_VIEW: schema.STORE_FEATURES,
    schema.SEASONAL_VIEW: schema.SEASONAL_FEATURES,
}
MAX_FEATURE: Final = 1.001 * MAX_SALES  # features are rounded to 32 bits
_NOT_NEGATIVE: Final = dict.fromkeys(
    ("rolling_std_4w", "store_size", "scale", "deviation", "market_level", "denoise_error", "naive_error"),
    (0, math.inf),
)
# Bounds of known values; null = missing, which is always allowed.
RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys((LABEL, "lag_1", "lag_2", "lag_4", "lag_8", "rolling_mean_4w"), (-MAX_FEATURE, MAX_FEATURE)),
    "week_of_year": (1, 53),
    "month": (1, 12),
    "quarter": (1, 4),
    "week_of_month": (1, 6),
    "is_month_end": (0, 1),
    "is_holiday": (0, 1),
    "days_to_holiday": (0, 366),
    **_NOT_NEGATIVE,
}  # fmt: skip


def check(view: str, table: pl.DataFrame) -> None:
    """Raise UserError unless `table`, complete series of a view, satisfies the contract.

    Columns and types are as declared; (store_id, dept_id, week) is strictly increasing, so no key occurs twice; weekly
    views leave out no week within a series; values are within RANGES and not NaN.
    """
    declared = {**KEY_TYPES, TIMESTAMP: TIMESTAMP_TYPE, **COLUMNS[view]}
    expected = declared | schema.dataset_columns(set(table.columns) - set(declared))
    if dict(table.schema) != expected:
        wrong = [name for name in {**expected, **table.schema} if table.schema.get(name) != expected.get(name)]
        raise UserError(f"{view} has other columns or types than declared: {wrong}; report this")
    _check_keys(view, table)
    invalid = {name: ~pl.col(name).is_between(*RANGES[name]) for name in table.columns if name in RANGES}
    floats = [name for name, dtype in table.schema.items() if dtype == pl.Float32 and name not in RANGES]
    invalid |= {name: pl.col(name).is_nan() for name in floats}
    counts = table.select(**{name: values.sum() for name, values in invalid.items()}).to_dicts()
    for name, count in counts[0].items() if counts else ():
        if count:
            bounds = RANGES.get(name, "the numbers")
            raise UserError(
                f"{view}: {count} values of {name} are not within {bounds}; look for absurd values in the data"
            )


def _check_keys(view: str, table: pl.DataFrame) -> None:
    store, dept = (pl.col(key) for key in KEYS)
    before_store, before_dept = store.shift(1), dept.shift(1)
    same_series = (store == before_store) & (dept == before_dept)
    next_series = (store > before_store) | ((store == before_store) & (dept > before_dept))
    days = pl.col(TIMESTAMP).diff().dt.total_days()
    valid = next_series if view == schema.STORE_VIEW else next_series | (same_series & (days == 7))
    broken = table.select(*KEYS, pl.col(TIMESTAMP).dt.date(), ok=valid.fill_null(True)).filter(~pl.col("ok"))
    if broken.height:
        store_id, dept_id, week, _ = broken.row(0)
        raise UserError(
            f"{view}: week {week} of store {store_id}, department {dept_id} is there twice, out of order or after a "
            "gap; the dataset was not made by `salescast data`: import it again"
        )
