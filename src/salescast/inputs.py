"""From retrieved features to model inputs: the one function that training, backtest and server share.

A forecast is `anchor + unit * network output`, so the network sees only ratios: multiplying all sales of a series by
a constant multiplies its anchor, its unit and its forecasts, and leaves every input as it was.

Inputs are named `group:name`; a group is what measured importance permutes (the six published groups and ours).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.schema import INFERENCE_SERVICE, KEYS, TIMESTAMP, TRAINING_SERVICE
from salescast.weeks import Calendar, published

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
CATEGORIES = ("store_id", "dept_id", "store_type", "region")

SEASONAL, PROFILE, LEVEL = 0, 1, 2  # which anchor a row uses
MAX_ONE_HOT = 13  # horizons with an input of their own
WEEK = np.timedelta64(7, "D")


@dataclass(frozen=True)
class Inputs:
    """Inputs of n base rows for H horizons; NaN = missing."""

    base: Array  # [n, Fb], no unit
    step: Array  # [n, H, Fs], no unit
    base_names: tuple[str, ...]
    step_names: tuple[str, ...]
    anchor: NDArray[np.float64]  # [n, H], sales: the forecast of a network that answers 0
    unit: NDArray[np.float64]  # [n, H], sales, > 0
    categories: dict[str, NDArray[np.object_]]  # name -> raw values [n], None = missing
    fallback: NDArray[np.int8]  # [n, H]: SEASONAL, PROFILE or LEVEL


def build(frame: pl.DataFrame, service: str, horizon: int, calendar: Calendar) -> Inputs:
    """Inputs for the rows of `frame` (keys, event_timestamp and the features of `service`; the label is not read).

    Row order is kept. Raises UserError for an unknown service, a horizon < 1 or missing columns.
    """
    if horizon < 1:
        raise UserError(f"horizon must be at least 1 week, got {horizon}; give a number of weeks")
    if service not in (TRAINING_SERVICE, INFERENCE_SERVICE):
        raise UserError(f"unknown feature service {service!r}; known are {TRAINING_SERVICE}, {INFERENCE_SERVICE}")
    needed = (*KEYS, TIMESTAMP, *BASE_LEVELS, *BASE_RATIOS, *BASE_PLAIN, "store_size", "store_type", "region")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise UserError(f"columns {missing} of feature service {service!r} are missing; retrieve the frame again")
    return _published(frame, horizon, calendar)


def group_of(name: str) -> str:
    """The feature group of an input or of a category."""
    if name in CATEGORIES:
        return "store" if name in ("store_type", "region") else "identity"
    return name.partition(":")[0]


def target_weeks(frame: pl.DataFrame, horizon: int) -> NDArray[np.datetime64]:
    """The weeks each row forecasts, datetime64[D] [n, H]: its own and those after it."""
    first = frame[TIMESTAMP].dt.date().to_numpy().astype("datetime64[D]")
    return np.asarray(first[:, None] + np.arange(horizon) * WEEK, "datetime64[D]")


# --- the published service: 21 features, no seasonal anchor ---

BASE_LEVELS = {"lag_1": "lags", "lag_2": "lags", "lag_4": "lags", "lag_8": "lags"}
BASE_RATIOS = {"rolling_mean_4w": "rolling", "rolling_std_4w": "rolling"}
BASE_PLAIN = {
    "sales_vs_avg": "rolling",
    "temperature": "economics",
    "fuel_price": "economics",
    "cpi": "economics",
    "unemployment": "economics",
}


def _published(frame: pl.DataFrame, horizon: int, calendar: Calendar) -> Inputs:
    """Anchor: the mean of the last 4 weeks. Unit: its size plus the standard deviation of these weeks."""
    mean, std = column(frame, "rolling_mean_4w"), column(frame, "rolling_std_4w")
    lags = {name: column(frame, name) for name in BASE_LEVELS}
    level = first_known(mean, *lags.values(), np.zeros_like(mean))
    scale = positive(np.abs(level) + np.nan_to_num(std))
    base = {f"{group}:{name}": (lags[name] - level) / scale for name, group in BASE_LEVELS.items()}
    base |= {"rolling:level": level / scale, "rolling:std": std / scale}
    base |= {f"{group}:{name}": np.clip(column(frame, name), -1e6, 1e6) for name, group in BASE_PLAIN.items()}
    base["store:log_size"] = np.log(positive(column(frame, "store_size")))
    weeks = target_weeks(frame, horizon)
    step = horizon_inputs(weeks.shape) | {
        f"{'holiday' if 'holiday' in name else 'calendar'}:{name}": values
        for name, values in per_week(weeks, lambda week: published(week, calendar)).items()
    }
    return Inputs(
        base=stack(base),
        step=stack(step),
        base_names=tuple(base),
        step_names=tuple(step),
        anchor=np.repeat(level[:, None], horizon, axis=1),
        unit=np.repeat(scale[:, None], horizon, axis=1),
        categories=categories(frame),
        fallback=np.full(weeks.shape, LEVEL, dtype=np.int8),
    )


# --- parts ---


def column(frame: pl.DataFrame, name: str) -> Floats:
    """A numeric column as float64 [n], NaN = missing."""
    return frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def categories(frame: pl.DataFrame) -> dict[str, NDArray[np.object_]]:
    return {name: np.array(frame[name].to_list(), dtype=object) for name in CATEGORIES}


def first_known(*candidates: Floats) -> Floats:
    """Per element the first candidate that is not NaN."""
    found = candidates[0]
    for candidate in candidates[1:]:
        found = np.where(np.isnan(found), candidate, found)
    return found


def positive(values: Floats) -> Floats:
    """Values with 1 in the place of zero: a series of zeros has no scale of its own."""
    return np.where(values > 0, values, np.where(np.isnan(values), np.nan, 1.0))


def stack(named: dict[str, Floats]) -> Array:
    """Named arrays of one shape side by side along a last axis, float32."""
    first = next(iter(named.values()))
    out = np.empty((*first.shape, len(named)), dtype=np.float32)
    for position, values in enumerate(named.values()):
        out[..., position] = values
    return out


def horizon_inputs(shape: tuple[int, ...]) -> dict[str, Floats]:
    """The horizon 1..H itself: one-hot where it is short, and its logarithm. Arrays [n, H]."""
    steps = np.arange(shape[1])
    named = {"calendar:log_horizon": np.log1p(steps)}
    named |= {f"calendar:horizon_{h + 1}": steps == h for h in steps[:MAX_ONE_HOT]}
    return {name: np.broadcast_to(values, shape).astype(np.float64) for name, values in named.items()}


def per_week(
    weeks: NDArray[np.datetime64], function: Callable[[NDArray[np.datetime64]], Mapping[str, NDArray[Any]]]
) -> dict[str, Floats]:
    """A calendar function of each distinct week, spread over `weeks`: thousands of rows share a few weeks."""
    distinct, where = np.unique(weeks, return_inverse=True)
    where = where.reshape(weeks.shape)
    return {name: values.astype(np.float64)[where] for name, values in function(distinct).items()}
