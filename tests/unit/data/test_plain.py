"""Numbers and dates in the forms in which people write them, against what Python writes and reads."""

import math
from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast.data import plain
from salescast.errors import UserError

amounts = st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=20)  # in hundredths
days = st.lists(st.dates(date(1990, 1, 1), date(2068, 12, 31)), min_size=1, max_size=20)


def numbers(*cells: str | None, decimal: str | None = None) -> list[float | None]:
    return plain.numbers(pl.Series(cells, dtype=pl.String), "Sales", decimal, ask=True)[0].to_list()


def dates(*cells: str, pattern: str | None = None) -> list[date | None]:
    return plain.dates(pl.Series(cells, dtype=pl.String), "Date", pattern)[0].to_list()


def written(hundredths: int, thousands: str, decimal: str, sign: str) -> str:
    """An amount with its marks; `sign` is where the minus stands: before, behind or as parentheses."""
    text = f"{abs(hundredths) / 100:,.2f}".replace(",", "_").replace(".", decimal).replace("_", thousands)
    if hundredths >= 0:
        return text
    return {"before": f"-{text}", "behind": f"{text}-", "parentheses": f"({text})"}[sign]


@given(
    amounts,
    st.sampled_from(
        [(",", "."), (".", ","), ("'", "."), (" ", ","), ("\N{NO-BREAK SPACE}", ","), ("", ","), ("", ".")]
    ),
    st.sampled_from(["before", "behind", "parentheses"]),
    st.sampled_from(["{}", "{} €", "${}", "EUR {}", "{} kr"]),
)
def test_amounts_are_read_back(values: list[int], marks: tuple[str, str], sign: str, money: str) -> None:
    cells = [money.format(written(value, *marks, sign)) for value in values]
    assert numbers(*cells) == pytest.approx([value / 100 for value in values])


def test_missing_is_null_and_text_is_not_a_number() -> None:
    found = numbers("", "NA", "-", " null ", None, "x", "1,5,3", "2.5")
    assert found[:5] == [None] * 5 and found[7] == 2.5
    assert all(value is not None and math.isnan(value) for value in found[5:7])


@pytest.mark.parametrize("cells", [("1.519", "987"), ("1,519", "12"), ("1.519", "2.607"), ("1,519", "2,607")])
def test_three_digits_behind_a_mark_are_asked_about(cells: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"is \d+ or \d\.\d{3}; say which mark is the decimal one, --decimal"):
        numbers(*cells)
    mark = "." if "." in cells[0] else ","
    assert numbers(*cells, decimal=mark)[0] == 1.519
    assert numbers(*cells, decimal="," if mark == "." else ".")[0] == 1519


@pytest.mark.parametrize(
    ("cells", "first"),
    [(("1.519", "12345"), 1.519), (("1.519", "0.250"), 1.519), (("1.519", "2.5"), 1.519), (("$1,519", "$987"), 1519)],
)
def test_other_cells_tell_what_the_mark_is(cells: tuple[str, ...], first: float) -> None:
    assert numbers(*cells)[0] == first


@given(days, st.sampled_from(["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d-%b-%y"]))
def test_dates_are_read_back(values: list[date], pattern: str) -> None:
    cells = [value.strftime(pattern) for value in values]
    assert dates(*cells) == values
    assert dates(*cells, pattern=pattern) == values


@given(days, st.sampled_from(["%d/%m/%Y", "%m/%d/%Y", "%d-%m-%y"]))
def test_the_order_of_day_and_month_is_found_or_asked_and_never_wrong(values: list[date], pattern: str) -> None:
    cells = [value.strftime(pattern) for value in values]
    try:
        found = dates(*cells)
    except UserError as error:
        assert "may name the day or the month first; say --date-format" in str(error)
        assert all(value.day <= 12 for value in values)
        return
    clear = any(value.day > 12 for value in values)
    if clear:
        assert found == values
    else:  # one weekday in this order only
        assert len({day.weekday() for day in found if day}) == 1


def test_weekly_dates_settle_the_order_by_their_weekday() -> None:
    weeks = [date(2024, 9, 1) + timedelta(7 * k) for k in range(60)]
    early = [week for week in weeks if week.day <= 12]
    assert dates(*(week.strftime("%m/%d/%Y") for week in early)) == early
    assert dates(*(week.strftime("%d/%m/%Y") for week in early)) == early


@given(days)
def test_iso_weeks_are_their_sunday(values: list[date]) -> None:
    sundays = [value + timedelta(6 - value.weekday()) for value in values]
    iso = [value.isocalendar() for value in values]
    assert dates(*(f"{year}-W{week:02}" for year, week, _ in iso)) == sundays
    assert dates(*(f"{year}{week:02}" for year, week, _ in iso), pattern="%G%V") == sundays


@given(days)
def test_serial_numbers_of_excel(values: list[date]) -> None:
    cells = [str((value - date(1899, 12, 30)).days) for value in values]
    assert dates(*cells, pattern="excel") == values
    with pytest.raises(UserError, match="looks like an Excel serial number; if so, say --date-format excel"):
        dates(*cells)


def test_a_time_of_day_is_left_out_and_the_date_is_that_of_the_place() -> None:
    cells = ["2024-09-15 23:59:59", "2024-09-22T00:00:00+02:00", "2024-09-29 00:00:00.000000000", "2024-10-06T07:30Z"]
    assert dates(*cells) == [date(2024, 9, 15) + timedelta(7 * k) for k in range(4)]


def test_impossible_dates_are_missing_and_a_wrong_pattern_is_refused() -> None:
    assert dates("2024-02-30", "2024-02-29", "soon") == [None, date(2024, 2, 29), None]
    with pytest.raises(UserError, match="--date-format %d/%m/%Y does not fit '2024-02-29'"):
        dates("2024-02-29", pattern="%d/%m/%Y")
    with pytest.raises(UserError, match="the month comes first in some dates and second in others"):
        dates("31/01/2024", "01/31/2024")
