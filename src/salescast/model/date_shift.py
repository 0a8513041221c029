"""Which week of last year has the same dates and holidays as a week of this year."""

import numpy as np
from numpy.typing import NDArray

from salescast.model.arrays import WEEK
from salescast.retail_calendar import HEADLINE_EVENTS, Calendar
from salescast.schema import SEASON


def date_shift(weeks: NDArray[np.datetime64], calendar: Calendar) -> NDArray[np.float64]:
    """Fractional week offset that aligns a week with the same calendar dates last year, [..].

    52 weeks are 364 days, a day or two short of a year, so the same dates lie 1/7 or 2/7 of a week before week t-52.
    Holidays bound to a weekday override this. 0: the week or the one before it contains a holiday that fell exactly
    364 days earlier last year. 1 (-1): it contains a holiday that fell 53 (51) weeks earlier, or 52 weeks before it is
    last year's week of that holiday.
    """
    months = weeks.astype("datetime64[M]")
    day = weeks - months.astype("datetime64[D]")
    year_ago = (months - np.timedelta64(12, "M")).astype("datetime64[D]") + day
    days_short = (weeks - year_ago).astype(np.int64) - 7 * SEASON
    shift: NDArray[np.float64] = days_short / 7
    for gap, value, neighbour in ((SEASON, 0.0, -WEEK), (SEASON + 1, 1.0, WEEK), (SEASON - 1, -1.0, -WEEK)):
        for name, days in zip(calendar.names, calendar.days, strict=True):
            if name in headline(calendar):
                moved = days[np.isin(days - gap * WEEK, days)]
                for end in (weeks, weeks + neighbour):
                    held = np.searchsorted(moved, end, "right") > np.searchsorted(moved, end - WEEK, "right")
                    shift = np.where(held, value, shift)
    return shift


def shifts(weeks: NDArray[np.datetime64], calendar: Calendar) -> dict[str, NDArray[np.float64]]:
    """Offsets of the same dates from week t-52 and from week t-104, in weeks."""
    last_year = date_shift(weeks, calendar)
    source = weeks - SEASON * WEEK - np.trunc(last_year).astype(np.int64) * WEEK
    return {"last_year": last_year, "year_before": np.clip(last_year + date_shift(source, calendar), -1, 1)}


def headline(calendar: Calendar) -> tuple[str, ...]:
    """Names of the holidays that have an input."""
    return HEADLINE_EVENTS.get(calendar.country, calendar.names[1:])
