"""Inputs that are known ahead: the calendar of the target weeks and of last year's, and the plan."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from salescast.features.columns import Array, Columns
from salescast.model.arrays import WEEK, list_column
from salescast.model.date_shift import headline
from salescast.retail_calendar import Calendar, easter_offset, holidays_in_week, month_start_days
from salescast.schema import SEASON

BEFORE: Final = "before:"  # prefix of inputs from the year before last year
EASTER_WEEKS: Final = (-2, -1, 0, 1)  # weeks relative to Easter that have an input; sales change before Easter too
LIFT: Final = "planned__lift"


def averaged_years(named: dict[str, Array], averaged: NDArray[np.bool_]) -> dict[str, Array]:
    """Last year's calendar inputs as the mean of both years where last year's sales are the mean of both years."""
    out = {name: values for name, values in named.items() if not name.startswith(BEFORE)}
    for name, values in named.items():
        if name.startswith(BEFORE):
            last = out[name.removeprefix(BEFORE)]
            out[name.removeprefix(BEFORE)] = np.where(averaged, (last + values) / 2, last)
    return out


def week_inputs(weeks: NDArray[np.datetime64], calendar: Calendar) -> dict[str, NDArray[Any]]:
    """The calendar of target weeks and of the same weeks last year."""
    last_year, year_before = weeks - SEASON * WEEK, weeks - 2 * SEASON * WEEK
    held = holidays_in_week(weeks, calendar)
    offset, offset_last_year = easter_offset(weeks, calendar), easter_offset(last_year, calendar)
    return (
        {f"holiday:{name}": held[:, i] for i, name in enumerate(calendar.names) if name in headline(calendar)}
        | {f"holiday:easter_{k:+d}": offset == k for k in EASTER_WEEKS}
        | {f"holiday:easter_last_year_{k:+d}": offset_last_year == k for k in EASTER_WEEKS}
        | {"calendar:month_start_days": month_start_days(weeks)}
        | {"calendar:month_start_days_last_year": month_start_days(last_year)}
        | {f"{BEFORE}holiday:easter_last_year_{k:+d}": easter_offset(year_before, calendar) == k for k in EASTER_WEEKS}
        | {f"{BEFORE}calendar:month_start_days_last_year": month_start_days(year_before)}
    )


def planned_inputs(rows: Columns, horizon: int) -> dict[str, Array]:
    """Planned inputs of the target week and of last year, and the difference from recent weeks, [n, H] each."""
    suffix = "_last_year"
    names = [name.removesuffix(suffix) for name in rows if name.startswith("planned_") and name.endswith(suffix)]
    out: dict[str, Array] = {"planned:log_lift": list_column(rows, LIFT, horizon)} if LIFT in rows else {}
    for name in names:
        ahead, before = list_column(rows, name, horizon), list_column(rows, name + suffix, horizon)
        recent = rows[f"{name}_recent"].astype(np.float32)[:, None]
        short = name.removeprefix("planned_")
        out |= {
            f"planned:{short}": ahead,
            f"planned:{short}_last_year": before,
            f"planned:{short}_gain": ahead - recent,
        }
    return out
