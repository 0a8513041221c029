"""From retrieved features to model inputs: the one function that training, backtest and server share.

A forecast is `anchor + unit * network output`, and all inputs are ratios: multiplying all sales of a series by a
constant multiplies its anchor, unit and forecasts, and changes no input. Inputs are named `group:name`.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.features.columns import Array, Columns, categories, columns
from salescast.model import seasonal_inputs
from salescast.model.arrays import LEVEL, Prepared, first_known, horizon_inputs, per_week, positive, stack, target_weeks
from salescast.retail_calendar import Calendar, published
from salescast.schema import (
    INFERENCE_SERVICE,
    INFERENCE_SERVICE_SEASONAL,
    KEYS,
    PLANNED,
    PRODUCT,
    SEASONAL_FEATURES,
    STORE_FEATURES,
    TIMESTAMP,
    TRAINING_SERVICE,
    TRAINING_SERVICE_SEASONAL,
)

SERVICES = (TRAINING_SERVICE, INFERENCE_SERVICE, TRAINING_SERVICE_SEASONAL, INFERENCE_SERVICE_SEASONAL)


@dataclass(frozen=True)
class Inputs:
    """Inputs of n base rows for H horizons; NaN = missing."""

    base: NDArray[np.float32]  # [n, Fb], no unit
    step: NDArray[np.float32]  # [n, H, Fs], no unit
    base_names: tuple[str, ...]
    step_names: tuple[str, ...]
    anchor: NDArray[np.float64]  # [n, H], sales: the forecast at network output 0
    unit: NDArray[np.float64]  # [n, H], sales, > 0
    categories: dict[str, pa.Array]  # name -> raw values [n], null = missing
    slow_mean: NDArray[np.float64]  # [n, H], sales: mean of a slow mover; NaN = of other series
    floor: NDArray[np.float64]  # [n], sales: no forecast is less; -inf = none
    anchor_kind: NDArray[np.int8]  # [n, H]: SEASONAL, PROFILE or LEVEL of `arrays`
    weeks: NDArray[np.datetime64]  # [n, H]: the forecast weeks


def build(rows: pl.DataFrame | Columns, service: str, horizon: int, calendar: Calendar) -> Inputs:
    """Inputs for `rows` (keys, event_timestamp and the features of `service`; the label is not read).

    Row order is kept. Raises UserError for an unknown service, a horizon < 1 or missing columns.
    """
    if horizon < 1:
        raise UserError(f"horizon must be at least 1 week, got {horizon}; give a number of weeks")
    if service not in SERVICES:
        raise UserError(f"unknown feature service {service!r}; known are {', '.join(SERVICES)}")
    seasonal = service in (TRAINING_SERVICE_SEASONAL, INFERENCE_SERVICE_SEASONAL)
    used = SEASONAL_FEATURES if seasonal else (*BASE_LEVELS, *BASE_RATIOS, *BASE_PLAIN)
    needed = (*KEYS, TIMESTAMP, *used, *STORE_FEATURES)
    given = rows.columns if isinstance(rows, pl.DataFrame) else rows
    missing = [name for name in needed if name not in given]
    if missing:
        raise UserError(f"columns {missing} of feature service {service!r} are missing; run `salescast retrieve` again")
    if isinstance(rows, pl.DataFrame):
        rows = columns(rows.select(*needed, *(name for name in given if name.startswith((PLANNED, PRODUCT)))))
    weeks = target_weeks(rows[TIMESTAMP], horizon)
    prepared = (seasonal_inputs.prepare_seasonal if seasonal else _prepare_published)(rows, weeks, calendar)
    return Inputs(
        base=stack(prepared.base),
        step=stack(prepared.step),
        base_names=tuple(prepared.base),
        step_names=tuple(prepared.step),
        anchor=prepared.anchor.astype(np.float64),
        unit=prepared.unit.astype(np.float64),
        categories={name: rows[name] for name in categories(rows)},
        slow_mean=prepared.slow_mean.astype(np.float64),
        floor=prepared.floor,
        anchor_kind=prepared.anchor_kind,
        weeks=weeks,
    )


# --- the published feature service: no seasonal anchor ---

BASE_LEVELS = {"lag_1": "lags", "lag_2": "lags", "lag_4": "lags", "lag_8": "lags"}
BASE_RATIOS = {"rolling_mean_4w": "rolling", "rolling_std_4w": "rolling"}
BASE_PLAIN = {
    "sales_vs_avg": "rolling",
    "temperature": "economics",
    "fuel_price": "economics",
    "cpi": "economics",
    "unemployment": "economics",
}


def _prepare_published(rows: Columns, weeks: NDArray[np.datetime64], calendar: Calendar) -> Prepared:
    """Anchor: the mean of the last 4 weeks. Unit: its absolute value plus the standard deviation of these weeks."""
    mean, std = rows["rolling_mean_4w"], rows["rolling_std_4w"]
    lags = {name: rows[name] for name in BASE_LEVELS}
    level = first_known(mean, *lags.values(), np.zeros_like(mean))
    scale = positive(np.abs(level) + np.nan_to_num(std))
    base: dict[str, Array] = {f"{group}:{name}": (lags[name] - level) / scale for name, group in BASE_LEVELS.items()}
    base |= {"rolling:level": level / scale, "rolling:std": std / scale}
    base |= {f"{group}:{name}": rows[name] for name, group in BASE_PLAIN.items()}
    base["store:log_size"] = np.log(positive(rows["store_size"]))
    step = horizon_inputs(weeks.shape) | {
        f"{'holiday' if 'holiday' in name else 'calendar'}:{name}": values
        for name, values in per_week(weeks, published, calendar).items()
    }
    anchor, unit = (np.repeat(values[:, None], weeks.shape[1], axis=1) for values in (level, scale))
    unknown, floor = np.full(weeks.shape, np.nan), np.full(len(level), -np.inf)
    return Prepared(base, step, anchor, unit, unknown, floor, np.full(weeks.shape, LEVEL, dtype=np.int8))
