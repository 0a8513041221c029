"""The calendar against plain loops over the seven days of a week."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast import retail_calendar
from salescast.errors import UserError

WALMART = Path(__file__).parents[2].parent / "shared" / "data" / "walmart"
US = retail_calendar.calendar("US")
dates = st.dates(retail_calendar.COVERED_FROM, retail_calendar.COVERED_TO)

# The game's real dates: the rules changed in 2002 (once), 2004 and 2022.
SUPER_BOWLS = """1990-01-28 1995-01-29 1999-01-31 2001-01-28 2002-02-03 2003-01-26 2004-02-01 2008-02-03 2010-02-07
2011-02-06 2012-02-05 2013-02-03 2016-02-07 2020-02-02 2021-02-07 2022-02-13 2023-02-12 2024-02-11 2025-02-09
2026-02-08"""


def seven_days(label: date) -> list[date]:
    return [label - timedelta(i) for i in range(7)]


def headline_of(year: int) -> list[date]:
    """Super Bowl, Labor Day, Thanksgiving, Christmas, found by looking through the year."""
    days = [date(year, 1, 1) + timedelta(i) for i in range(365)]
    labor = next(d for d in days if d.month == 9 and d.weekday() == 0)
    thanksgiving = [d for d in days if d.month == 11 and d.weekday() == 3][3]
    bowls = [d for d in days if d.weekday() == 6 and (d.month == 2 or (d.month == 1 and d.day > 24))]
    first_in_february = next(d for d in bowls if d.month == 2)
    shift = 7 if year >= 2022 else 0 if year >= 2004 or year == 2002 else -7
    return [first_in_february + timedelta(shift), labor, thanksgiving, date(year, 12, 25)]


def gregorian_easter(year: int) -> date:
    """Meeus, Jones, Butcher: Astronomical Algorithms, chapter 8."""
    a, (b, c) = year % 19, divmod(year, 100)
    d, e = divmod(b, 4)
    g = (b - (b + 8) // 25 + 1) // 3
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    n = (32 + 2 * e + 2 * i - h - k) % 7
    month, day = divmod(h + n - 7 * ((a + 11 * h + 22 * n) // 451) + 114, 31)
    return date(year, month, day + 1)


def at(day: date) -> np.ndarray:
    return np.array([day], dtype="datetime64[D]")


@settings(deadline=None)
@given(dates)
def test_published_columns_equal_a_loop_over_the_days(label: date) -> None:
    found = {name: int(values[0]) for name, values in retail_calendar.published(at(label), US).items()}
    held = seven_days(label)
    events = sorted(d for year in range(label.year - 1, label.year + 2) for d in headline_of(year))
    holds_event = any(d in held for d in events)
    assert found == {
        "week_of_year": label.isocalendar().week,
        "month": label.month,
        "quarter": (label.month + 2) // 3,
        "week_of_month": next(k for k in range(1, 6) if label.day <= 7 * k),
        "is_month_end": int(any((d + timedelta(1)).month != d.month for d in held)),
        "is_holiday": int(holds_event),
        "days_to_holiday": 0 if holds_event else (min(d for d in events if d > label) - label).days,
    }


@settings(deadline=None)
@given(dates)
def test_named_days_paydays_and_easter(label: date) -> None:
    held = seven_days(label)
    matrix = retail_calendar.holidays_in_week(at(label), US)[0]
    named = dict(zip(US.names, matrix, strict=True))
    years = {d.year for d in held}
    assert named["Thanksgiving Day"] == any(headline_of(y)[2] in held for y in years)
    assert named["Black Friday"] == any(headline_of(y)[2] + timedelta(1) in held for y in years)
    assert named["Super Bowl"] == any(headline_of(y)[0] in held for y in years)
    assert named["Valentine's Day"] == any(date(y, 2, 14) in held for y in years)
    assert named["none"] == (not any(named[name] for name in US.names[1:]))
    assert retail_calendar.month_start_days(at(label))[0] == sum(d.day <= 7 for d in held)
    easters = [gregorian_easter(y) for y in range(label.year - 1, label.year + 2)]
    offset = min(((label - e).days // 7 for e in easters), key=abs)
    assert retail_calendar.easter_offset(at(label), US)[0] == max(-4, min(4, offset))
    assert retail_calendar.easter_offset(at(label), US, bound=60)[0] == offset


@pytest.mark.parametrize("game", [date.fromisoformat(text) for text in SUPER_BOWLS.split()])
def test_super_bowl_is_on_its_real_day(game: date) -> None:
    held = [
        bool(retail_calendar.holidays_in_week(at(game + timedelta(i)), US)[0, US.names.index("Super Bowl")])
        for i in range(-1, 8)
    ]
    assert held == [False, *[True] * 7, False]


@settings(deadline=None)
@given(st.lists(dates, min_size=6, max_size=6))
def test_results_have_the_shape_of_the_weeks(labels: list[date]) -> None:
    flat = np.array(labels, dtype="datetime64[D]")
    for function in (
        retail_calendar.week_of_year,
        retail_calendar.month_start_days,
        lambda w: retail_calendar.days_to_holiday(w, US),
    ):
        np.testing.assert_array_equal(function(flat.reshape(2, 3)), function(flat).reshape(2, 3))
    matrix = retail_calendar.holidays_in_week(flat, US)
    np.testing.assert_array_equal(
        retail_calendar.holidays_in_week(flat.reshape(3, 1, 2), US), matrix.reshape(3, 1, 2, -1)
    )


def test_a_week_with_two_named_days_has_both() -> None:
    week = retail_calendar.holidays_in_week(at(date(2010, 11, 26)), US)[0]
    assert [name for name, held in zip(US.names, week, strict=True) if held] == ["Thanksgiving Day", "Black Friday"]


@pytest.mark.skipif(not WALMART.is_dir(), reason="the published sales data are not beside the repository")
def test_headline_events_are_the_flags_of_published_data() -> None:
    flags = pl.read_csv(WALMART / "features.csv", columns=["Date", "IsHoliday"], try_parse_dates=True).unique()
    assert flags["IsHoliday"].sum() == 14 - 1  # four a year from 2010-02-05 to 2013-07-26
    np.testing.assert_array_equal(
        retail_calendar.is_holiday(flags["Date"].to_numpy(), US), flags["IsHoliday"].to_numpy()
    )


def test_another_country_by_its_code() -> None:
    germany = retail_calendar.calendar("DE")
    week = retail_calendar.holidays_in_week(at(date(2024, 10, 4)), germany)[0]
    assert [name for name, held in zip(germany.names, week, strict=True) if held] == ["German Unity Day"]
    assert retail_calendar.is_holiday(at(date(2024, 10, 4)), germany) == 1
    assert retail_calendar.is_holiday(at(date(2024, 9, 6)), germany) == 0  # Labor Day of the US
    greece = retail_calendar.calendar("GR")  # Orthodox Easter 2024 was five weeks after the Western one
    assert retail_calendar.easter_offset(at(date(2024, 5, 10)), greece) == 0
    assert retail_calendar.easter_offset(at(date(2024, 4, 5)), US) == 0


def test_the_end_of_a_country_calendar_has_no_holiday_within_a_year() -> None:
    for country in ("CN", "SA"):  # their moon calendars are not known for the whole period
        found = retail_calendar.days_to_holiday(
            np.arange("2070-01-02", "2074-12-28", 7, dtype="datetime64[D]"), retail_calendar.calendar(country)
        )
        assert found.min() >= 0
        assert found.max() <= 366


def test_unknown_country_and_dates_outside_are_user_errors() -> None:
    with pytest.raises(UserError, match="country 'XX'; give a two-letter code"):
        retail_calendar.calendar("XX")
    for day in (retail_calendar.COVERED_FROM - timedelta(1), retail_calendar.COVERED_TO + timedelta(1)):
        with pytest.raises(UserError, match="leave the calendar"):
            retail_calendar.days_to_holiday(at(day), US)
