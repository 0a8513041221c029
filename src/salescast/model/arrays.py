"""Arrays that the inputs of both feature services are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.features.columns import Array, Columns
from salescast.retail_calendar import Calendar

WeekFunction = Callable[[NDArray[np.datetime64], Calendar], Mapping[str, NDArray[Any]]]

LARGEST: Final = 1e6  # bound of an input, so that no infinity reaches the network
MAX_ONE_HOT: Final = 13  # horizons that have a one-hot input
CLOSED: Final = 1e-30  # unit of a week without opening days and of a series that ended, whose forecast is 0
WEEK: Final = np.timedelta64(7, "D")
SEASONAL, PROFILE, LEVEL = 0, 1, 2  # anchor kinds, see seasonal_inputs


@dataclass(frozen=True)
class Prepared:
    """Named inputs of n base rows for H horizons, before they are stacked."""

    base: dict[str, Array]  # [n] each
    step: dict[str, Array]  # [n, H] each
    anchor: Array  # [n, H], sales
    unit: Array  # [n, H], sales, > 0
    slow_mean: Array  # [n, H], sales: mean of a series that sells in fewer than half of the weeks; NaN = of others
    floor: NDArray[np.float64]  # [n], sales: no forecast is less; -inf = none
    anchor_kind: NDArray[np.int8]  # [n, H]: SEASONAL, PROFILE or LEVEL


def target_weeks(first: NDArray[np.datetime64], horizon: int) -> NDArray[np.datetime64]:
    """The weeks that rows of the weeks `first` [n] forecast, datetime64[D] [n, H]: `first` and the weeks after it."""
    return np.asarray(first.astype("datetime64[D]")[:, None] + np.arange(horizon) * WEEK, "datetime64[D]")


def first_known(*candidates: Array) -> Array:
    """Per element the first candidate that is not NaN."""
    values = candidates[0]
    for candidate in candidates[1:]:
        values = np.where(np.isnan(values), candidate, values)
    return values


def positive(values: Array) -> Array:
    """Values > 0, with 1 instead of the others (NaN stays): a series of zeros has no scale."""
    return np.where(values > 0, values, np.where(np.isnan(values), np.nan, 1.0))


def stack(named: Mapping[str, Array]) -> NDArray[np.float32]:
    """Named arrays of one shape, stacked along a new last axis, float32."""
    first = next(iter(named.values()))
    out = np.empty((*first.shape, len(named)), dtype=np.float32)
    with np.errstate(over="ignore"):
        for position, values in enumerate(named.values()):
            out[..., position] = values
    return np.clip(out, -LARGEST, LARGEST, out=out)


def horizon_inputs(shape: tuple[int, ...]) -> dict[str, Array]:
    """The horizon 1..H as one-hot inputs (up to MAX_ONE_HOT) and as a logarithm, [n, H] each."""
    steps = np.arange(shape[1])
    named = {"calendar:log_horizon": np.log1p(steps)}
    named |= {f"calendar:horizon_{h + 1}": steps == h for h in steps[:MAX_ONE_HOT]}
    return {name: np.broadcast_to(values, shape).astype(np.float64) for name, values in named.items()}


def per_week(weeks: NDArray[np.datetime64], function: WeekFunction, calendar: Calendar) -> dict[str, Array]:
    """A calendar function of `weeks`, computed once per distinct week: thousands of rows share a few weeks."""
    distinct, where = np.unique(weeks, return_inverse=True)
    where = where.reshape(weeks.shape)
    return {name: values[where] for name, values in _distinct_weeks(function, distinct.tobytes(), calendar).items()}


@lru_cache(maxsize=64)  # a server needs the same weeks for every request
def _distinct_weeks(function: WeekFunction, weeks: bytes, calendar: Calendar) -> dict[str, Array]:
    named = function(np.frombuffer(weeks, "datetime64[D]"), calendar)
    return {name: values.astype(np.float64) for name, values in named.items()}


def list_column(rows: Columns, name: str, width: int) -> Array:
    """The first `width` values of a list column, [n, width], NaN = missing. Raises UserError for shorter lists."""
    values: Array = rows[name]
    available = values.shape[1]
    if available == 0:
        return np.full((len(values), width), np.nan, dtype=np.float32)
    if available < width:
        raise UserError(
            f"feature {name} holds {available} weeks, not {width}; run `salescast features` with a longer --horizon"
        )
    return values[:, :width]
