"""Calendar features of weeks: holidays, retail events, paydays, position in the year.

A week's date names the seven days that end on it. Every function takes week dates of any shape (`datetime64[D]`, or
what NumPy converts to it) and serves both the weeks of the history and the weeks to forecast.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from typing import Any, Final

import holidays
import numpy as np
from dateutil.easter import EASTER_ORTHODOX, EASTER_WESTERN, easter  # type: ignore[import-untyped]
from dateutil.relativedelta import SU, TH, relativedelta  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from salescast.errors import UserError

WEEK: Final = timedelta(days=7)

Days = NDArray[np.datetime64]
Ints = NDArray[np.int32]

# Dates that a dataset may hold. A calendar has the same named days whichever of these years the data cover.
FIRST_DAY: Final = date(1990, 1, 1)
LAST_DAY: Final = date(2074, 12, 31)
# Dates that a calendar covers. The inputs of a week include the calendar one and two years earlier, and data that end
# on LAST_DAY can be forecast a year ahead.
COVERED_FROM: Final = date(FIRST_DAY.year - 2, 1, 1)
COVERED_TO: Final = date(LAST_DAY.year + 2, 12, 31)
# Days with a name that occurs in fewer years are one-off events (a coronation, a swapped working day): not seasonal.
_RECURRING_YEARS: Final = 5
_ORTHODOX: Final = frozenset({"BG", "BY", "CY", "ET", "GE", "GR", "MD", "ME", "MK", "RO", "RS", "RU", "UA"})


def _super_bowl(year: int) -> date:
    """Sunday of the game. The season became a week longer in 2004 and again in 2022; 2002 was delayed by a week."""
    number = 2 if year >= 2022 else 1
    early = year < 2004 and year != 2002
    return _day(year, 2, SU(number)) - timedelta(7 if early else 0)


def _day(year: int, month: int, weekday: Any) -> date:
    """The n-th weekday of a month: `TH(4)` is its fourth Thursday."""
    day: date = date(year, month, 1) + relativedelta(weekday=weekday)
    return day


# Days that matter to shops but are not public holidays; "" = in every country.
RETAIL_EVENTS: Final[dict[str, dict[str, Callable[[int], date]]]] = {
    "": {"Black Friday": lambda year: _day(year, 11, TH(4)) + timedelta(1)},
    "US": {
        "Super Bowl": _super_bowl,
        "Valentine's Day": lambda year: date(year, 2, 14),
        "Mother's Day": lambda year: _day(year, 5, SU(2)),
        "Halloween": lambda year: date(year, 10, 31),
    },
}
# The days behind `is_holiday` and `days_to_holiday`. For other countries these are all public holidays.
HEADLINE_EVENTS: Final[dict[str, tuple[str, ...]]] = {
    "US": ("Super Bowl", "Labor Day", "Thanksgiving Day", "Christmas Day"),
}


@dataclass(frozen=True, eq=False)
class Calendar:
    """Named days of one country: `days[i]` holds the sorted dates of `names[i]`; `names[0]` is "none" and has none."""

    country: str
    names: tuple[str, ...]
    days: tuple[Days, ...]
    headline: Days
    easter: Days


def _public_holidays(country: str, years: range) -> dict[str, set[date]]:
    try:
        with warnings.catch_warnings():
            # Some countries are known for fewer years; the warning says so, and the other years have no holidays.
            warnings.simplefilter("ignore", UserWarning)
            known = holidays.country_holidays(country, years=years, observed=False, language="en_US")
    except NotImplementedError:
        raise UserError(
            f"no holidays are known for country {country!r}; give a two-letter code such as US, DE or BR"
        ) from None
    named: dict[str, set[date]] = {}
    for day in known:
        for name in known.get_list(day):
            named.setdefault(name.removesuffix(" (estimated)"), set()).add(day)
    recurring = range(FIRST_DAY.year - 1, LAST_DAY.year + 2)
    return {
        name: days
        for name, days in named.items()
        if len({day.year for day in days} & set(recurring)) >= _RECURRING_YEARS
    }


@cache
def calendar(country: str = "US") -> Calendar:
    """The holidays and retail events of a country (ISO 3166 code) for every year from COVERED_FROM to COVERED_TO.

    Names are sorted by their date in 2012; names that do not occur in 2012 follow in alphabetical order.
    Raises UserError for a country whose holidays are not known.
    """
    # One more year at both ends, so that the last week still has a next holiday.
    years = range(COVERED_FROM.year - 1, COVERED_TO.year + 2)
    named = _public_holidays(country, years)
    headline = set(HEADLINE_EVENTS.get(country, tuple(named)))
    for event, day in (RETAIL_EVENTS[""] | RETAIL_EVENTS.get(country, {})).items():
        named[event] = {day(year) for year in years}
    names = sorted(named, key=lambda name: (min((d for d in named[name] if d.year == 2012), default=date.max), name))
    method = EASTER_ORTHODOX if country in _ORTHODOX else EASTER_WESTERN
    return Calendar(
        country=country,
        names=("none", *names),
        days=(_sorted_days(set()), *(_sorted_days(named[name]) for name in names)),
        headline=_sorted_days(set().union(*(named[name] for name in headline))),
        easter=_sorted_days({easter(year, method) for year in years}),
    )


def _sorted_days(days: set[date]) -> Days:
    return np.array(sorted(days), dtype="datetime64[D]")


def _weeks(weeks: ArrayLike) -> Days:
    return np.asarray(weeks, dtype="datetime64[D]")


def _covered(weeks: ArrayLike) -> Days:
    """The weeks. Raises UserError when one of them is outside the calendar."""
    days = _weeks(weeks)
    if days.size and (days.min() < np.datetime64(COVERED_FROM) or days.max() > np.datetime64(COVERED_TO)):
        raise UserError(
            f"weeks from {days.min()} to {days.max()} leave the calendar ({COVERED_FROM} to {COVERED_TO}); "
            "use dates within it"
        )
    return days


def _count_in_week(days: Days, weeks: Days) -> NDArray[np.int64]:
    """How many of the sorted days fall into each week."""
    count = np.searchsorted(days, weeks, "right") - np.searchsorted(days, weeks - np.timedelta64(7), "right")
    return np.asarray(count, np.int64)


def week_of_year(weeks: ArrayLike) -> Ints:
    """ISO 8601 week number of the date, 1..53."""
    days = _weeks(weeks)
    thursday = days + (3 - (days.astype(np.int64) + 3) % 7)
    return np.asarray((thursday - thursday.astype("datetime64[Y]")).astype(np.int64) // 7 + 1, np.int32)


def month(weeks: ArrayLike) -> Ints:
    """Month of the date, 1..12."""
    return np.asarray(_weeks(weeks).astype("datetime64[M]").astype(np.int64) % 12 + 1, np.int32)


def quarter(weeks: ArrayLike) -> Ints:
    """Quarter of the date, 1..4."""
    return np.asarray((month(weeks) - 1) // 3 + 1, np.int32)


def _day_of_month(days: Days) -> NDArray[np.int64]:
    return np.asarray((days - days.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64) + 1)


def week_of_month(weeks: ArrayLike) -> Ints:
    """Week of the month by the date's day: days 1-7 = 1, ..., days 29-31 = 5."""
    return np.asarray((_day_of_month(_weeks(weeks)) - 1) // 7 + 1, np.int32)


def is_month_end(weeks: ArrayLike) -> Ints:
    """1 where the week contains the last day of a month."""
    days = _weeks(weeks)
    return np.asarray(month(days + np.timedelta64(1)) != month(days - np.timedelta64(6)), np.int32)


def month_start_days(weeks: ArrayLike) -> Ints:
    """How many of the week's days are among the first seven of a month (payday week), 0..7."""
    return np.asarray(np.clip(7 - np.abs(_day_of_month(_weeks(weeks)) - 7), 0, 7), np.int32)


def is_holiday(weeks: ArrayLike, cal: Calendar) -> Ints:
    """1 where the week contains a headline event of the calendar."""
    return np.asarray(_count_in_week(cal.headline, _covered(weeks)) > 0, np.int32)


def days_to_holiday(weeks: ArrayLike, cal: Calendar) -> Ints:
    """0 where the week contains a headline event, else the days from the week's date to the next one, 1..366."""
    days = _covered(weeks)
    # For some countries the holidays of the last years are not known: the next one is then at least a year away.
    known = np.append(cal.headline, np.datetime64(COVERED_TO) + np.timedelta64(366))
    following = (known[np.searchsorted(known, days, "right")] - days).astype(np.int64)
    return np.asarray(np.where(_count_in_week(cal.headline, days) > 0, 0, np.minimum(following, 366)), np.int32)


def holidays_in_week(weeks: ArrayLike, cal: Calendar) -> NDArray[np.bool_]:
    """Which named days each week contains: bool [..., len(cal.names)]; column 0 ("none") is true where no other is."""
    days = _covered(weeks)
    contained = np.stack([_count_in_week(named, days) > 0 for named in cal.days], axis=-1)
    contained[..., 0] = ~contained.any(axis=-1)
    return contained


def easter_offset(weeks: ArrayLike, cal: Calendar, bound: int = 4) -> Ints:
    """Weeks from the week of the nearest Easter Sunday (0 = that week, -1 = the week before), clipped to +-bound."""
    days = _covered(weeks)
    since = np.stack([(days - cal.easter[i]).astype(np.int64) // 7 for i in _around(cal.easter, days)])
    nearest = np.take_along_axis(since, np.abs(since).argmin(axis=0)[None], axis=0)[0]
    return np.asarray(np.clip(nearest, -bound, bound), np.int32)


def _around(days: Days, weeks: Days) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the last day up to each week's date and of the first one after it."""
    after = np.asarray(np.searchsorted(days, weeks, "right"), np.int64)
    return after - 1, after


def published(weeks: ArrayLike, cal: Calendar) -> dict[str, Ints]:
    """The seven calendar columns of the published features, by name."""
    return {
        "week_of_year": week_of_year(weeks),
        "month": month(weeks),
        "quarter": quarter(weeks),
        "week_of_month": week_of_month(weeks),
        "is_month_end": is_month_end(weeks),
        "is_holiday": is_holiday(weeks, cal),
        "days_to_holiday": days_to_holiday(weeks, cal),
    }
