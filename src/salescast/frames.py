"""Columns of retrieved frames as arrays, and arrays as inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.schema import TIMESTAMP

Array = NDArray[np.floating[Any]]  # float64, or float32 where it is [n, H] and there are many

LARGEST: Final = 1e6  # of an input: anything beyond is as good as infinite, and no infinity reaches the network
MAX_ONE_HOT: Final = 13  # horizons with an input of their own
WEEK: Final = np.timedelta64(7, "D")
SEASONAL, PROFILE, LEVEL = 0, 1, 2  # which anchor a forecast uses


@dataclass(frozen=True)
class Prepared:
    """Named inputs of n base rows for H horizons, before they are put side by side."""

    base: dict[str, Array]  # [n] each
    step: dict[str, Array]  # [n, H] each
    anchor: Array  # [n, H], sales
    unit: Array  # [n, H], sales, > 0
    fallback: NDArray[np.int8]  # [n, H]


def target_weeks(frame: pl.DataFrame, horizon: int) -> NDArray[np.datetime64]:
    """The weeks each row forecasts, datetime64[D] [n, H]: its own and those after it."""
    first = frame[TIMESTAMP].dt.date().to_numpy().astype("datetime64[D]")
    return np.asarray(first[:, None] + np.arange(horizon) * WEEK, "datetime64[D]")


def column(frame: pl.DataFrame, name: str) -> Array:
    """A numeric column as float64 [n], NaN = missing."""
    return frame[name].to_numpy().astype(np.float64)


def first_known(*candidates: Array) -> Array:
    """Per element the first candidate that is not NaN."""
    found = candidates[0]
    for candidate in candidates[1:]:
        found = np.where(np.isnan(found), candidate, found)
    return found


def positive(values: Array) -> Array:
    """Values with 1 in the place of zero: a series of zeros has no scale of its own."""
    return np.where(values > 0, values, np.where(np.isnan(values), np.nan, 1.0))


def stack(named: Mapping[str, Array]) -> NDArray[np.float32]:
    """Named arrays of one shape side by side along a last axis, float32."""
    first = next(iter(named.values()))
    out = np.empty((*first.shape, len(named)), dtype=np.float32)
    for position, values in enumerate(named.values()):
        np.clip(values, -LARGEST, LARGEST, out=out[..., position], casting="same_kind")
    return out


def horizon_inputs(shape: tuple[int, ...]) -> dict[str, Array]:
    """The horizon 1..H itself: one-hot where it is short, and its logarithm. Arrays [n, H]."""
    steps = np.arange(shape[1])
    named = {"calendar:log_horizon": np.log1p(steps)}
    named |= {f"calendar:horizon_{h + 1}": steps == h for h in steps[:MAX_ONE_HOT]}
    return {name: np.broadcast_to(values, shape).astype(np.float64) for name, values in named.items()}


def per_week(
    weeks: NDArray[np.datetime64], function: Callable[[NDArray[np.datetime64]], Mapping[str, NDArray[Any]]]
) -> dict[str, Array]:
    """A calendar function of each distinct week, spread over `weeks`: thousands of rows share a few weeks."""
    distinct, where = np.unique(weeks, return_inverse=True)
    where = where.reshape(weeks.shape)
    return {name: values.astype(np.float64)[where] for name, values in function(distinct).items()}


def lists(frame: pl.DataFrame, name: str, width: int) -> Array:
    """The first `width` values of a list column, [n, width], NaN = missing. Raises UserError when lists are shorter."""
    # Through Arrow and not by Polars expressions: a server calls this for some 20 columns of one row.
    values = frame[name].to_arrow()
    known = values.is_valid().to_numpy(zero_copy_only=False)
    lengths = np.unique(np.diff(values.offsets.to_numpy())[known])
    whole = int(lengths[0]) if len(lengths) else width
    if whole < width or len(lengths) > 1:
        raise UserError(f"feature {name} holds {lengths} weeks, not {width}; build the features for a longer horizon")
    out = np.full((len(values), whole), np.nan, dtype=np.float32)
    out[known] = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, whole)
    return np.ascontiguousarray(out[:, :width])
