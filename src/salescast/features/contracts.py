"""What feature tables promise: columns, keys, weeks without holes, values in their range; and how far new weeks have
drifted from those that a model was trained on.
"""

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
