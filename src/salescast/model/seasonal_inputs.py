"""Inputs of the seasonal feature service: ratios to a seasonal anchor.

What each part contributes on real data: docs/LOG.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salescast.features.columns import Array, Columns
from salescast.features.history import mean
from salescast.model.arrays import (
    CLOSED,
    LEVEL,
    PROFILE,
    SEASONAL,
    Prepared,
    first_known,
    horizon_inputs,
    list_column,
    per_week,
    positive,
)
from salescast.model.date_shift import shifts
from salescast.model.known_inputs import LIFT, averaged_years, planned_inputs, week_inputs
from salescast.retail_calendar import Calendar
from salescast.schema import WINDOWS

GROWTH_BOUNDS = (0.3, 3.0)
DAMPING = 0.8  # of growth
PROFILE_BOUNDS = (0.0, 20.0)
CANDIDATE_BOUND = 3.0  # units
UNSOLD = 1e-12  # scale of a series without sales in a year, as a share of the market level
SMALLEST = 1e-4  # lower bound of the input that says how large a series is, as a share of the market level
ENDED = 13  # weeks without sales, after a year with sales in them, that end a series
ANCHOR_WINDOWS = (4, 8, 13, 26)  # weeks; the anchor is the mean over them: no window is best everywhere
SHIFTS = (4, 8, 13)  # values of the feature `shifted` besides 0
STEADY = 1e-20  # unit of a series that never changes, as a share of its level: too small to be seen in a forecast
PLACE = {weeks: i for i, weeks in enumerate(WINDOWS)}


@dataclass(frozen=True)
class _Parts:
    """Values that the anchor and the inputs share, [n] or [n, H]."""

    scale: Array
    growth: dict[int, Array]
    level: dict[int, Array]  # medians
    mean: dict[int, Array]
    profile: dict[int, Array]
    store_profile: Array
    year: Array  # last year's sales on the same dates
    around: tuple[Array, Array, Array]  # last year's sales in weeks t-53, t-52, t-51
    smooth: Array  # last year's reconstruction on the same dates
    smooth_week: Array  # last year's reconstruction in week t-52
    persistence: Array
    shifted: Array  # weeks since the level has shifted, 0 = it has not
    lift: Array  # what the plan multiplies sales by, 1 = nothing

    def since_shift(self, by_window: dict[int, Array], usual: Array) -> Array:
        """The value of the window since the level has shifted, `usual` where it has not; [n] or [n, H]."""
        shifted = self.shifted if usual.ndim == 1 else self.shifted[:, None]
        return np.select([shifted == weeks for weeks in SHIFTS], [by_window[weeks] for weeks in SHIFTS], usual)


def prepare_seasonal(rows: Columns, weeks: NDArray[np.datetime64], calendar: Calendar) -> Prepared:
    """anchor = p * last year's reconstruction * damped growth + (1 - p) * recent level * profile.

    p is how much of the series' last year comes back (`persistence`); the profile is the department's, shrunk in the
    same way towards that of all series, and this one towards none.

    Last year's sales are everywhere the mean of two years, with the year before scaled to last year's level.
    """
    horizon = weeks.shape[1]
    moved = per_week(weeks, shifts, calendar)
    parts = _parts(rows, horizon, *(moved[name].astype(np.float32) for name in ("last_year", "year_before")))
    anchor, anchor_kind = _anchor(parts)
    unit = positive((np.abs(anchor) + parts.scale[:, None] * parts.lift) / 2)
    steady = _steady(rows)[:, None]
    anchor = np.where(steady, parts.level[13][:, None] * parts.lift, anchor)
    unit = np.where(steady, STEADY * parts.scale[:, None], unit)
    step = _candidates(rows, parts, anchor, unit) | _step_inputs(rows, parts, anchor, horizon)
    step |= horizon_inputs(weeks.shape) | planned_inputs(rows, horizon)
    averaged = np.isfinite(_around(rows, "denoised_year_before", horizon)[1] * _catch_up(rows, ""))
    step |= averaged_years(per_week(weeks, week_inputs, calendar), averaged)
    days = list_column(rows, "planned__open_days", horizon) if "planned__open_days" in rows else np.float32(1.0)
    days = np.where(_ended(rows)[:, None], np.float32(0.0), days)
    floor = np.where(rows["lowest"] < 0, -np.inf, 0.0)  # below 0 only for series that had returns
    slow_mean = _slow_mean(parts) * days
    unit = np.maximum(unit * days, CLOSED)
    return Prepared(_base_inputs(rows, parts), step, anchor * days, unit, slow_mean, floor, anchor_kind)


def _ended(rows: Columns) -> NDArray[np.bool_]:
    """True [n] for series without any sales for ENDED weeks in which they sold a year ago, or for the whole year."""
    now, ago = (list_column(rows, f"growth_{year}", len(WINDOWS))[:, PLACE[ENDED]] for year in ("now", "ago"))
    return np.asarray(((now == 0) & (ago > 0)) | (rows["scale"] == 0))


def _slow_mean(parts: _Parts) -> Array:
    """Expected sales [n, H] of series that sell in fewer than half of the weeks, NaN for the others.

    Their mean may lie beyond every quantile that is forecast; it is the mean of half a year and of a year.
    """
    slow = (parts.level[52] == 0) & (parts.mean[52] > 0)
    usual = np.where(slow, (parts.mean[26] + parts.mean[52]) / 2, np.nan)
    return np.asarray(usual[:, None] * np.broadcast_to(parts.lift, parts.year.shape))


def _steady(rows: Columns) -> NDArray[np.bool_]:
    """True [n] for series with sales and more than a year of history that were the same in each week of the year."""
    compared = np.isfinite(list_column(rows, "growth_now", len(WINDOWS))[:, PLACE[4]])
    return np.asarray((rows["deviation"] == 0) & (rows["scale"] > 0) & compared)


def _ratio(above: Array, below: Array) -> Array:
    """above / below where below is positive, else NaN."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan, dtype=np.float32)
    np.divide(above, below, out=out, where=below > 0)
    return out


def _growth(rows: Columns, prefix: str) -> dict[int, Array]:
    """This year's sales over last year's by window, 1 where a sum is not positive, [n] each."""
    now, ago = (list_column(rows, f"{prefix}growth_{year}", len(WINDOWS)) for year in ("now", "ago"))
    bounded = np.where(now > 0, np.clip(np.nan_to_num(_ratio(now, ago), nan=1.0), *GROWTH_BOUNDS), np.float32(1.0))
    return {weeks: bounded[:, place] for weeks, place in PLACE.items()}


def _catch_up(rows: Columns, prefix: str) -> Array:
    """Growth from the year before last year to last year, [n, 1]; NaN unless 13 weeks of both were observed."""
    now, ago = (rows[f"{prefix}growth_before_{year}"].astype(np.float32) for year in ("now", "ago"))
    return np.where(now > 0, np.clip(_ratio(now, ago), *GROWTH_BOUNDS), np.float32(np.nan))[:, None]


def _around(rows: Columns, name: str, horizon: int) -> tuple[Array, Array, Array]:
    """Last year's values one week before, in, and one week after each target week, [n, H] each."""
    values = list_column(rows, name, horizon + 2)
    return values[:, :horizon], values[:, 1 : horizon + 1], values[:, 2:]


def _parts(rows: Columns, horizon: int, shift: Array, shift_before: Array) -> _Parts:
    scale = rows["scale"].astype(np.float32)
    scale = np.where(scale > 0, scale, UNSOLD * rows["market_level"].astype(np.float32))
    level, means = (list_column(rows, name, len(WINDOWS)) for name in ("level_median", "level"))
    growth = _growth(rows, "")
    dept, store = (_profiles(rows, group, horizon, shift, shift_before) for group in ("dept", "store"))
    total = _profiles(rows, "total", horizon, shift, shift_before)
    # Each level is shrunk towards the one above it: what all series have in common is measured best.
    total = 1 + rows["total_persistence"].astype(np.float32)[:, None, None] * (total - 1)
    dept = total + rows["dept_persistence"].astype(np.float32)[:, None, None] * (dept - total)
    profile = first_known(dept, store)
    year, smooth = (_around(rows, name, horizon) for name in ("last_year", "denoised_last_year"))
    lift = np.exp(np.nan_to_num(list_column(rows, LIFT, horizon))) if LIFT in rows else np.float32(1.0)
    catch_up = _catch_up(rows, "")
    before = [values * catch_up for values in _around(rows, "denoised_year_before", horizon)]
    same_dates_before = _same_dates(before, shift_before)
    return _Parts(
        scale=np.asarray(positive(np.nan_to_num(scale)), np.float32),
        growth=growth,
        level={weeks: level[:, place] for weeks, place in PLACE.items()},
        mean={weeks: means[:, place] for weeks, place in PLACE.items()},
        profile={weeks: profile[:, place] for weeks, place in PLACE.items()},
        store_profile=store[:, PLACE[13]],
        year=both_years(_same_dates(year, shift), same_dates_before),
        around=(both_years(year[0], before[0]), both_years(year[1], before[1]), both_years(year[2], before[2])),
        smooth=both_years(_same_dates(smooth, shift), same_dates_before),
        smooth_week=both_years(smooth[1], before[1]),
        shifted=rows["shifted"],
        persistence=rows["persistence"].astype(np.float32),
        lift=np.asarray(lift),
    )


def both_years(last: Array, before: Array) -> Array:
    """The mean of last year and the year before; last year alone where the year before is missing."""
    return np.asarray(np.where(np.isfinite(before), (last + before) / 2, last))


def _same_dates(around: Sequence[Array], shift: Array) -> Array:
    """Last year's values on the target week's dates, interpolated between the two weeks that contain them."""
    before, same, after = around
    return np.asarray(same + np.abs(shift) * np.nan_to_num(np.where(shift < 0, after, before) - same))


def _profiles(rows: Columns, group: str, horizon: int, shift: Array, shift_before: Array) -> Array:
    """A group's sales on the target dates last year over its mean before the base week, [n, windows, H]."""
    year = both_years(
        _same_dates(_around(rows, f"{group}_last_year", horizon), shift),
        _same_dates(_around(rows, f"{group}_year_before", horizon), shift_before) * _catch_up(rows, f"{group}_"),
    )
    before = list_column(rows, f"{group}_before", len(WINDOWS))
    return np.clip(_ratio(year[:, None], before[:, :, None]), *PROFILE_BOUNDS)


def _anchor(parts: _Parts) -> tuple[Array, NDArray[np.int8]]:
    """The anchor [n, H] and the kind of each element.

    SEASONAL: reconstruction times growth, mixed with level times profile; needs last year's week of the series.
    PROFILE: level times profile; needs last year's week of the department or store. LEVEL: the mean of the last 13, 26
    or 52 weeks, the first of them with sales; 0 without sales for a year.
    """
    level = parts.since_shift(parts.level, first_known(*(parts.level[weeks] for weeks in (13, 26, 52))))[:, None]
    products = np.stack([parts.level[weeks][:, None] * parts.profile[weeks] for weeks in ANCHOR_WINDOWS], axis=-1)
    profiled = parts.since_shift(dict(zip(ANCHOR_WINDOWS, np.moveaxis(products, -1, 0), strict=True)), mean(products))
    profiled = first_known(profiled, parts.level[52][:, None] * parts.profile[52]) * parts.lift
    growth = np.exp(np.mean([np.log(parts.growth[weeks]) for weeks in ANCHOR_WINDOWS], axis=0))
    growth = parts.since_shift(parts.growth, growth)[:, None]
    pattern = parts.smooth * (1 + DAMPING * (growth - 1)) * parts.lift
    share = parts.persistence[:, None]
    seasonal = share * pattern + (1 - share) * first_known(profiled, pattern)
    seasonal = np.where(np.isfinite(level), seasonal, np.nan)
    anchor = first_known(seasonal, profiled, np.nan_to_num(level) * parts.lift)
    kind = np.where(np.isfinite(seasonal), SEASONAL, np.where(np.isfinite(profiled), PROFILE, LEVEL))
    return anchor, kind.astype(np.int8)


def _damped(parts: _Parts, weeks: int) -> Array:
    return np.asarray(1 + DAMPING * (parts.growth[weeks] - 1))[:, None]


def _candidates(rows: Columns, parts: _Parts, anchor: Array, unit: Array) -> dict[str, Array]:
    """Alternative forecasts of the target week, [n, H] each, as differences from the anchor in units."""
    before, same, after = parts.around
    year = parts.year
    lift, level = parts.lift, {k: v[:, None] for k, v in parts.level.items()}
    growth = _damped(parts, 13)
    now, ago = (list_column(rows, f"growth_{name}", len(WINDOWS)) for name in ("now", "ago"))
    gained = {weeks: (now - ago)[:, [place]] for weeks, place in PLACE.items()}
    dept, store, total = (_growth(rows, f"{name}_")[13] for name in ("dept", "store", "total"))
    pooled_growth = np.asarray(1 + DAMPING * (dept * store / total - 1))[:, None]
    named = {
        "last_year:same_dates": year * lift,
        "last_year:grown": year * growth * lift,
        "last_year:grown_before": before * growth * lift,
        "last_year:grown_after": after * growth * lift,
        "last_year:grown_same_week": same * growth * lift,
        "last_year:denoised_same_week": parts.smooth_week * growth * lift,
        "last_year:grown_around": (before + same + after) / 3 * growth * lift,
        "pooled:denoised_pooled_growth": parts.smooth * pooled_growth * lift,
        "pooled:denoised_gained_8": (parts.smooth + gained[8]) * lift,
    }
    for weeks in (4, 8, 13, 26):
        named[f"pooled:denoised_grown_{weeks}"] = parts.smooth * _damped(parts, weeks) * lift
        named[f"pooled:level_profile_{weeks}"] = level[weeks] * parts.profile[weeks] * lift
    for weeks in (8, 13):
        named[f"last_year:gained_{weeks}"] = (year + gained[weeks]) * lift
    for weeks in (4, 8, 13):
        named[f"level:median_{weeks}"] = level[weeks] * lift
        named[f"level:mean_{weeks}"] = parts.mean[weeks][:, None] * lift
    recent = list_column(rows, "recent", 4)
    for lag in range(4):
        named[f"level:lag_{lag + 1}"] = recent[:, [lag]] * lift
    distance = (np.stack([np.broadcast_to(values, anchor.shape) for values in named.values()]) - anchor) / unit
    return dict(zip(named, np.clip(distance, -CANDIDATE_BOUND, CANDIDATE_BOUND, out=distance), strict=True))


def _base_inputs(rows: Columns, parts: _Parts) -> dict[str, Array]:
    """Growth, size and noise of the series, [n] each."""
    named = {f"growth:own_{weeks}": np.log(parts.growth[weeks]) for weeks in (1, 4, 8, 13, 26)}
    for group in ("dept", "store"):
        growth = _growth(rows, f"{group}_")
        named |= {f"pooled:{group}_growth_{weeks}": np.log(growth[weeks]) for weeks in (4, 8, 13)}
    noise = {name: rows[name].astype(np.float32) / parts.scale for name in NOISE}
    market = positive(np.nan_to_num(rows["market_level"]))
    return (
        named
        | {f"level:{name}": values for name, values in noise.items()}
        | {
            "level:log_scale": np.log(np.maximum(parts.scale / market, SMALLEST)),
            "store:log_size": np.log(positive(rows["store_size"])),
        }
    )


NOISE = ("deviation", "denoise_error", "naive_error", "naive_bias")


def _step_inputs(rows: Columns, parts: _Parts, anchor: Array, horizon: int) -> dict[str, Array]:
    """The seasonal shape around the target week, [n, H] each."""
    before, year, after = _around(rows, "dept_last_year", horizon)
    return {
        "level:log_anchor": np.log(np.maximum(anchor / parts.scale[:, None], 0.05)),
        "pooled:log_dept_profile": np.log(np.maximum(parts.profile[13], 0.02)),
        "pooled:log_store_profile": np.log(np.maximum(parts.store_profile, 0.02)),
        "pooled:dept_peak": np.log(np.maximum(_ratio(2 * year, before + after), 0.02)),
    }
