"""Columns of retrieved frames as arrays, and arrays as inputs."""

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


def target_weeks(first: NDArray[np.datetime64], horizon: int) -> NDArray[np.datetime64]:
    """The weeks that rows of the weeks `first` [n] forecast, datetime64[D] [n, H]: their own and those after it."""
    return np.asarray(first.astype("datetime64[D]")[:, None] + np.arange(horizon) * WEEK, "datetime64[D]")


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
    with np.errstate(over="ignore"):
        for position, values in enumerate(named.values()):
            out[..., position] = values
    return np.clip(out, -LARGEST, LARGEST, out=out)


def horizon_inputs(shape: tuple[int, ...]) -> dict[str, Array]:
    """The horizon 1..H itself: one-hot where it is short, and its logarithm. Arrays [n, H]."""
    steps = np.arange(shape[1])
    named = {"calendar:log_horizon": np.log1p(steps)}
    named |= {f"calendar:horizon_{h + 1}": steps == h for h in steps[:MAX_ONE_HOT]}
    return {name: np.broadcast_to(values, shape).astype(np.float64) for name, values in named.items()}


def per_week(weeks: NDArray[np.datetime64], function: WeekFunction, calendar: Calendar) -> dict[str, Array]:
    """A calendar function of each distinct week, spread over `weeks`: thousands of rows share a few weeks."""
    distinct, where = np.unique(weeks, return_inverse=True)
    where = where.reshape(weeks.shape)
    return {name: values[where] for name, values in _known_weeks(function, distinct.tobytes(), calendar).items()}


@lru_cache(maxsize=64)  # a server asks for the same weeks at every request
def _known_weeks(function: WeekFunction, weeks: bytes, calendar: Calendar) -> dict[str, Array]:
    named = function(np.frombuffer(weeks, "datetime64[D]"), calendar)
    return {name: values.astype(np.float64) for name, values in named.items()}


def lists(rows: Columns, name: str, width: int) -> Array:
    """The first `width` values of a list column, [n, width], NaN = missing. Raises UserError when lists are shorter."""
    values: Array = rows[name]
    whole = values.shape[1]
    if whole == 0:
        return np.full((len(values), width), np.nan, dtype=np.float32)
    if whole < width:
        raise UserError(f"feature {name} holds {whole} weeks, not {width}; build the features for a longer horizon")
    return values[:, :width]
