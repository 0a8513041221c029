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
from salescast.schema import (
    INFERENCE_SERVICE,
    INFERENCE_SERVICE_SEASONAL,
    KEYS,
    SEASON,
    SEASONAL_FEATURES,
    STORE_FEATURES,
    TIMESTAMP,
    TRAINING_SERVICE,
    TRAINING_SERVICE_SEASONAL,
    WINDOWS,
)
from salescast.weeks import Calendar, easter_offset, holidays_in_week, month_start_days, published

Array = NDArray[np.floating[Any]]  # float64, or float32 where it is [n, H] and there are many
CATEGORIES = ("store_id", "dept_id", "store_type", "region")

SEASONAL, PROFILE, LEVEL = 0, 1, 2  # which anchor a row uses
SERVICES = (TRAINING_SERVICE, INFERENCE_SERVICE, TRAINING_SERVICE_SEASONAL, INFERENCE_SERVICE_SEASONAL)
LARGEST = 1e6  # of an input: anything beyond is as good as infinite, and no infinity reaches the network
MAX_ONE_HOT = 13  # horizons with an input of their own
WEEK = np.timedelta64(7, "D")


@dataclass(frozen=True)
class Inputs:
    """Inputs of n base rows for H horizons; NaN = missing."""

    base: NDArray[np.float32]  # [n, Fb], no unit
    step: NDArray[np.float32]  # [n, H, Fs], no unit
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
    if service not in SERVICES:
        raise UserError(f"unknown feature service {service!r}; known are {', '.join(SERVICES)}")
    seasonal = service in (TRAINING_SERVICE_SEASONAL, INFERENCE_SERVICE_SEASONAL)
    used = SEASONAL_FEATURES if seasonal else (*BASE_LEVELS, *BASE_RATIOS, *BASE_PLAIN)
    missing = [name for name in (*KEYS, TIMESTAMP, *used, *STORE_FEATURES) if name not in frame.columns]
    if missing:
        raise UserError(f"columns {missing} of feature service {service!r} are missing; retrieve the frame again")
    return (_seasonal if seasonal else _published)(frame, horizon, calendar)


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
    base |= {f"{group}:{name}": column(frame, name) for name, group in BASE_PLAIN.items()}
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


# --- the seasonal service: ratios to a seasonal anchor, from the primitives of `seasonal_features` ---

GROWTH_BOUNDS = (0.3, 3.0)
DAMPING = 0.8  # of growth
SEASONAL_SHARE = 0.6  # of last year's reconstruction in the anchor; the rest is level times department profile
PROFILE_BOUNDS = (0.0, 20.0)
CANDIDATE_BOUND = 3.0  # units
SMALLEST = 1e-4  # of the market's level: the least scale of a series
CLOSED = 1e-30  # unit of a week without opening days, whose forecast is 0
ANCHOR_WINDOW = 13
EASTER_WEEKS = (-2, -1, 0, 1)  # weeks since Easter's that have an input of their own: shops feel the ones before it
PLACE = {weeks: i for i, weeks in enumerate(WINDOWS)}


@dataclass(frozen=True)
class _Parts:
    """What anchor and inputs share. [n] or [n, H]; `year`, `smooth`: weeks t-53, t-52, t-51."""

    scale: Array
    growth: dict[int, Array]
    level: dict[int, Array]
    profile: dict[int, Array]
    year: tuple[Array, Array, Array]
    smooth: tuple[Array, Array, Array]
    lift: Array  # effect of the plan on the seasonal pattern, 1 = none
    level_lift: Array


def _seasonal(frame: pl.DataFrame, horizon: int, calendar: Calendar) -> Inputs:
    """The recipe of docs/LOG.md: forecast = anchor + unit * output, with
    anchor = 0.6 * last year's reconstruction * damped growth + 0.4 * recent level * department profile.
    """
    parts = _parts(frame, horizon)
    anchor, fallback = _anchor(parts)
    unit = positive((np.abs(anchor) + parts.scale[:, None]) / 2)
    weeks = target_weeks(frame, horizon)
    base = _base_inputs(frame, parts)
    step = _candidates(frame, parts, anchor, unit) | _step_inputs(frame, parts, anchor, horizon)
    step |= _week_inputs(weeks, calendar) | _planned_inputs(frame, horizon)
    days = _lists(frame, "planned__open_days", horizon) if "planned__open_days" in frame.columns else np.float32(1.0)
    return Inputs(
        base=stack(base),
        step=stack(step),
        base_names=tuple(base),
        step_names=tuple(step),
        anchor=(anchor * days).astype(np.float64),
        unit=np.maximum(unit * days, CLOSED).astype(np.float64),
        categories=categories(frame),
        fallback=fallback,
    )


def _lists(frame: pl.DataFrame, name: str, width: int) -> Array:
    """The first `width` values of a list column, [n, width], NaN = missing. Raises UserError when lists are shorter."""
    values = frame[name]
    lengths = np.unique(values.list.len().drop_nulls().to_numpy())
    whole = int(lengths[0]) if len(lengths) else width
    if whole < width or len(lengths) > 1:
        raise UserError(f"feature {name} holds {lengths} weeks, not {width}; build the features for a longer horizon")
    flat = values.fill_null([None] * whole).explode().cast(pl.Float32).fill_null(np.nan).to_numpy()
    return np.ascontiguousarray(flat.reshape(-1, whole)[:, :width])


def _ratio(above: Array, below: Array) -> Array:
    """above / below where below is positive, else NaN."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan, dtype=np.float32)
    np.divide(above, below, out=out, where=below > 0)
    return out


def _growth(frame: pl.DataFrame, prefix: str) -> dict[int, Array]:
    """This year over last year by window, 1 where a sum is not positive, [n] each."""
    now, ago = (_lists(frame, f"{prefix}growth_{year}", len(WINDOWS)) for year in ("now", "ago"))
    bounded = np.where(now > 0, np.clip(np.nan_to_num(_ratio(now, ago), nan=1.0), *GROWTH_BOUNDS), np.float32(1.0))
    return {weeks: bounded[:, place] for weeks, place in PLACE.items()}


def _around(frame: pl.DataFrame, name: str, horizon: int) -> tuple[Array, Array, Array]:
    """Last year's values one week before, in, and one week after each target week, [n, H] each."""
    values = _lists(frame, name, horizon + 2)
    return values[:, :horizon], values[:, 1 : horizon + 1], values[:, 2:]


def _parts(frame: pl.DataFrame, horizon: int) -> _Parts:
    market = column(frame, "market_level").astype(np.float32)
    scale = np.fmax(column(frame, "scale").astype(np.float32), SMALLEST * market)
    level = _lists(frame, "level", len(WINDOWS))
    profile = _profiles(frame, "dept", horizon)
    store = _profiles(frame, "store", horizon)
    lifts = (
        np.exp(_lists(frame, name, horizon)) if name in frame.columns else np.ones((frame.height, horizon), np.float32)
        for name in ("planned__effect", "planned__level_effect")
    )
    lift, level_lift = (np.clip(np.nan_to_num(values, nan=1.0), 0.1, 10.0) for values in lifts)
    return _Parts(
        scale=np.asarray(positive(np.nan_to_num(scale)), np.float32),
        growth=_growth(frame, ""),
        level={weeks: level[:, place] for weeks, place in PLACE.items()},
        profile={weeks: first_known(profile[weeks], store[weeks]) for weeks in profile},
        year=_around(frame, "last_year", horizon),
        smooth=_around(frame, "denoised_last_year", horizon),
        lift=lift,
        level_lift=level_lift,
    )


def _profiles(frame: pl.DataFrame, group: str, horizon: int) -> dict[int, Array]:
    """Last year's sales of a group in the target week over its mean of the weeks before the base week, by window."""
    year, before = _around(frame, f"{group}_last_year", horizon)[1], _lists(frame, f"{group}_before", len(WINDOWS))
    return {weeks: np.clip(_ratio(year, before[:, place, None]), *PROFILE_BOUNDS) for weeks, place in PLACE.items()}


def _anchor(parts: _Parts) -> tuple[Array, NDArray[np.int8]]:
    """The seasonal anchor [n, H] and which kind each element is.

    SEASONAL: last year's week is known. PROFILE: it is not, but the department's (or the store's) is: level times
    profile. LEVEL: the mean of the last 13 weeks or what is known of the last 52, 0 for a series silent for a year.
    """
    windows = (ANCHOR_WINDOW, 26, 52)
    level = np.nan_to_num(first_known(*(parts.level[weeks] for weeks in windows)))[:, None]
    profiled = level * parts.profile[ANCHOR_WINDOW] * parts.lift
    pattern = parts.smooth[1] * _damped(parts, ANCHOR_WINDOW) * parts.lift
    seasonal = SEASONAL_SHARE * pattern + (1 - SEASONAL_SHARE) * first_known(profiled, pattern)
    anchor = first_known(seasonal, profiled, np.broadcast_to(level, pattern.shape) * parts.level_lift)
    kind = np.where(np.isfinite(seasonal), SEASONAL, np.where(np.isfinite(profiled), PROFILE, LEVEL))
    return anchor, kind.astype(np.int8)


def _damped(parts: _Parts, weeks: int) -> Array:
    return np.asarray(1 + DAMPING * (parts.growth[weeks] - 1))[:, None]


def _candidates(frame: pl.DataFrame, parts: _Parts, anchor: Array, unit: Array) -> dict[str, Array]:
    """Other forecasts of the same week, [n, H] each, as their distance from the anchor in units."""
    before, year, after = parts.year
    lift, level_lift, level = parts.lift, parts.level_lift, {k: v[:, None] for k, v in parts.level.items()}
    growth = _damped(parts, ANCHOR_WINDOW)
    now, ago = (_lists(frame, f"growth_{name}", len(WINDOWS)) for name in ("now", "ago"))
    gained = {weeks: (now - ago)[:, [place]] for weeks, place in PLACE.items()}
    dept, store, total = (_growth(frame, f"{name}_")[ANCHOR_WINDOW] for name in ("dept", "store", "total"))
    pooled_growth = np.asarray(1 + DAMPING * (dept * store / total - 1))[:, None]
    named = {
        "last_year:same": year * lift,
        "last_year:grown": year * growth * lift,
        "last_year:grown_before": before * growth * lift,
        "last_year:grown_after": after * growth * lift,
        "last_year:grown_around": (before + year + after) / 3 * growth * lift,
        "pooled:denoised_pooled_growth": parts.smooth[1] * pooled_growth * lift,
        "pooled:denoised_gained_8": (parts.smooth[1] + gained[8]) * lift,
    }
    for weeks in (4, 8, 13, 26):
        named[f"pooled:denoised_grown_{weeks}"] = parts.smooth[1] * _damped(parts, weeks) * lift
        named[f"pooled:level_profile_{weeks}"] = level[weeks] * parts.profile[weeks] * lift
    for weeks in (8, 13):
        named[f"last_year:gained_{weeks}"] = (year + gained[weeks]) * lift
    for weeks in (4, 8, 13):
        named[f"level:mean_{weeks}"] = level[weeks] * level_lift
    recent = _lists(frame, "recent", 4)
    for lag in range(4):
        named[f"level:lag_{lag + 1}"] = recent[:, [lag]] * level_lift
    return {name: _bounded((values - anchor) / unit) for name, values in named.items()}


def _bounded(values: Array) -> Array:
    return np.clip(values, -CANDIDATE_BOUND, CANDIDATE_BOUND)


def _base_inputs(frame: pl.DataFrame, parts: _Parts) -> dict[str, Array]:
    """Growth, size and noise of the series, [n] each."""
    named = {f"growth:own_{weeks}": np.log(parts.growth[weeks]) for weeks in (1, 4, 8, 13, 26)}
    for group in ("dept", "store"):
        growth = _growth(frame, f"{group}_")
        named |= {f"pooled:{group}_growth_{weeks}": np.log(growth[weeks]) for weeks in (4, 8, 13)}
    noise = {name: column(frame, name).astype(np.float32) / parts.scale for name in NOISE}
    market = positive(np.nan_to_num(column(frame, "market_level")))
    return (
        named
        | {f"level:{name}": values for name, values in noise.items()}
        | {
            "level:log_scale": np.log(parts.scale / market),
            "store:log_size": np.log(positive(column(frame, "store_size"))),
        }
    )


NOISE = ("deviation", "denoise_error", "naive_error", "naive_bias")


def _step_inputs(frame: pl.DataFrame, parts: _Parts, anchor: Array, horizon: int) -> dict[str, Array]:
    """Shape of the season around the target week, [n, H] each."""
    before, year, after = _around(frame, "dept_last_year", horizon)
    store = _profiles(frame, "store", horizon)[ANCHOR_WINDOW]
    return {
        "level:log_anchor": np.log(np.maximum(anchor / parts.scale[:, None], 0.05)),
        "pooled:log_dept_profile": np.log(np.maximum(parts.profile[ANCHOR_WINDOW], 0.02)),
        "pooled:log_store_profile": np.log(np.maximum(store, 0.02)),
        "pooled:dept_peak": np.log(np.maximum(_ratio(2 * year, before + after), 0.02)),
    }


def _week_inputs(weeks: NDArray[np.datetime64], calendar: Calendar) -> dict[str, Array]:
    """The calendar of the target week and of the same week last year, [n, H] each."""

    def named(week: NDArray[np.datetime64]) -> dict[str, NDArray[Any]]:
        last_year = week - SEASON * WEEK
        held = holidays_in_week(week, calendar)
        offset, offset_last_year = easter_offset(week, calendar), easter_offset(last_year, calendar)
        return (
            {f"holiday:{name}": held[:, i] for i, name in enumerate(calendar.names)}
            | {f"holiday:easter_{k:+d}": offset == k for k in EASTER_WEEKS}
            | {f"holiday:easter_last_year_{k:+d}": offset_last_year == k for k in EASTER_WEEKS}
            | {"calendar:month_start_days": month_start_days(week)}
            | {"calendar:month_start_days_last_year": month_start_days(last_year)}
        )

    return horizon_inputs(weeks.shape) | per_week(weeks, named)


def _planned_inputs(frame: pl.DataFrame, horizon: int) -> dict[str, Array]:
    """Planned inputs of the target week, and how they differ from last year's and the recent weeks', [n, H] each."""
    suffix = "_last_year"
    names = [
        name.removesuffix(suffix) for name in frame.columns if name.startswith("planned_") and name.endswith(suffix)
    ]
    out: dict[str, Array] = {}
    for name in names:
        ahead, before = _lists(frame, name, horizon), _lists(frame, name + suffix, horizon)
        recent = column(frame, f"{name}_recent").astype(np.float32)[:, None]
        short = name.removeprefix("planned_")
        out |= {
            f"planned:{short}": ahead,
            f"planned:{short}_last_year": before,
            f"planned:{short}_gain": ahead - recent,
        }
    return out


# --- parts ---


def column(frame: pl.DataFrame, name: str) -> Array:
    """A numeric column as float64 [n], NaN = missing."""
    return frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def categories(frame: pl.DataFrame) -> dict[str, NDArray[np.object_]]:
    return {name: np.array(frame[name].to_list(), dtype=object) for name in CATEGORIES}


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
