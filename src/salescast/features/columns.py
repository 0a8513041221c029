"""Columns of retrieved tables as arrays."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.schema import KEY_TYPES, STORE_FEATURES, TIMESTAMP, product_columns

Array = NDArray[np.floating[Any]]  # float64, or float32 where it is [n, H] and there are many
# Features of n rows by name. Numbers are float64 [n] and lists float32 [n, width], NaN = missing (width 0: all are);
# the week is datetime64 [n]; categories are Arrow arrays, null = missing.
Columns = Mapping[str, Any]
CATEGORIES: Final = {**KEY_TYPES, "store_type": STORE_FEATURES["store_type"], "region": STORE_FEATURES["region"]}


def categories(names: Iterable[str]) -> dict[str, pl.DataType]:
    """The categories among the columns `names` with their types; those of products differ by dataset."""
    return {**CATEGORIES, **product_columns(names)}


def columns(frame: pl.DataFrame) -> Columns:
    """The columns of a retrieved table. Raises UserError when the lists of a column differ in length."""
    return {series.name: _column(series) for series in frame.get_columns()}


def _column(series: pl.Series) -> Any:
    known = categories([series.name])
    if series.name in known:
        return series.cast(known[series.name]).to_arrow()
    if series.name == TIMESTAMP:
        return series.to_numpy()
    if not isinstance(series.dtype, pl.List):
        return series.to_numpy().astype(np.float64)
    values = series.to_arrow()
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    lengths = np.unique(np.diff(values.offsets.to_numpy())[valid])
    if len(lengths) > 1:
        raise UserError(f"feature {series.name} holds lists of {lengths} weeks; build the features again")
    width = int(lengths[0]) if len(lengths) else 0
    out = np.full((len(values), width), np.nan, dtype=np.float32)
    out[valid] = values.flatten().to_numpy(zero_copy_only=False).reshape(int(valid.sum()), width)
    return out
