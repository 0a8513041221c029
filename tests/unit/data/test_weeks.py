"""Days and receipts become weeks, against a loop; what a week without a row means; what looks wrong."""

from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast.data import gaps
from salescast.data.findings import findings
from salescast.data.names import SCHEMA, Names
from salescast.data.weeks import Weeks, dated, open_weekdays, unfinished, week_of, weekday_of
from salescast.errors import UserError
from salescast.schema import RAW_SALES

NAMES = Names(pl.DataFrame(schema=SCHEMA))
SUNDAY = date(2024, 9, 1)
TODAY = date(2030, 1, 1)


def sales(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=RAW_SALES, orient="row")


def steady(stores: int = 3, weeks: int = 20) -> list[tuple[int, int, date, float]]:
    return [(s, 1, SUNDAY + timedelta(7 * k), 100.0 * s + k) for s in range(1, stores + 1) for k in range(weeks)]


@given(st.dates(date(2000, 1, 1), date(2060, 1, 1)), st.integers(1, 7))
def test_a_week_ends_on_its_weekday_at_or_after_the_day(day: date, last_day: int) -> None:
    week = pl.select(week_of(pl.lit(day), last_day)).item()
    assert week.isoweekday() == last_day and 0 <= (week - day).days < 7


@given(st.lists(st.integers(0, 60), min_size=5, max_size=60, unique=True), st.integers(1, 7))
def test_the_last_week_is_unfinished_when_an_open_day_is_to_come(offsets: list[int], last_day: int) -> None:
    days = [SUNDAY + timedelta(k) for k in offsets]
    open_days = {day.isoweekday() for day in days}
    series = pl.Series("week", days)
    assert open_weekdays(series) == open_days
    last = max(days)
    following = []
    while last.isoweekday() != last_day:
        last += timedelta(1)
        following.append(last.isoweekday())
    expected = last if open_days & set(following) else None
    assert unfinished(series, last_day, open_days) == expected


def test_daily_and_weekly_dates_are_told_apart() -> None:
    days = pl.Series("week", [SUNDAY + timedelta(k) for k in range(60)])
    assert dated(days, Weeks(), "f").daily
    assert not dated(days.gather_every(7), Weeks(), "f").daily
    six = days.filter(days.dt.weekday() != 7)
    assert dated(six, Weeks(), "f").daily and dated(six, Weeks(ends=6), "f").last_day == 6
    assert dated(days.gather_every(7), Weeks(starts=7), "f").last_day == 6
    with pytest.raises(UserError, match="f is not weekly: its dates lie on 7 different weekdays"):
        dated(days, Weeks(daily=False), "f")


def test_weekdays_by_name() -> None:
    assert [weekday_of(text) for text in ("monday", "Sun", "WED")] == [1, 7, 3]
    for wrong in ("t", "someday", ""):
        with pytest.raises(UserError, match="is not a weekday; give one of monday"):
            weekday_of(wrong)
    with pytest.raises(UserError, match="--week-starts or --week-ends, not both"):
        Weeks(starts=1, ends=7)


rows = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 8)), min_size=1, max_size=30, unique=True
)


@given(rows)
def test_weeks_without_a_row_as_a_loop_finds_them(keys: list[tuple[int, int, int]]) -> None:
    table = sales([(s, d, SUNDAY + timedelta(7 * k), 1.0) for s, d, k in keys])
    expected = {
        (s, d, k)
        for s, d in {(s, d) for s, d, _ in keys}
        for k in {k for other, _, k in keys if other == s}
        if (s, d, k) not in keys and k >= min(k for a, b, k in keys if (a, b) == (s, d))
    }
    missing = gaps.missing(table)
    assert {(s, d, (w - SUNDAY).days // 7) for s, d, w in missing.iter_rows()} == expected
    filled = gaps.filled(table, missing)
    assert filled.height == len(keys) + len(expected) and filled["weekly_sales"].sum() == len(keys)


def test_gaps_are_zero_where_zeros_are_never_written() -> None:
    every = [(1, d, SUNDAY + timedelta(7 * k), 5.0) for d in range(1, 11) for k in range(100)]
    sold = [row for i, row in enumerate(every) if i % 3]
    table = sales(sold)
    count = gaps.missing(table).height
    assert gaps.decide(table, count)[0] == "zero"
    written = table.with_columns(
        pl.when(pl.int_range(pl.len()) % 5 == 0).then(0.0).otherwise("weekly_sales").alias("weekly_sales")
    )
    assert gaps.decide(written, count)[0] == "unknown"
    assert gaps.decide(sales(every), 0)[0] == "unknown"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            [(9, 1, SUNDAY + timedelta(7 * k), 600.0 + 3 * k) for k in range(20)],
            "store 9 is the sum of the other stores",
        ),
        ([(s, 1, SUNDAY + timedelta(140), 20.0) for s in (1, 2, 3)], "the last week, 2025-01-19, has 9% of the sales"),
        ([(s, 1, SUNDAY + timedelta(140), 0.0) for s in (1, 2, 3)], "all sales are zero in the last 1 weeks"),
        ([(1, 1, SUNDAY - timedelta(7), 12_000.0)], "1 amounts are over 50 times what is usual"),
        ([(s, 1, date(2031, 1, 5), 0.0) for s in (1, 2, 3)], "1 weeks lie after today"),
    ],
)
def test_what_looks_wrong_is_said(change: list[tuple[Any, ...]], said: str) -> None:
    assert findings(sales(steady()), NAMES, TODAY) == []
    assert any(said in sentence for sentence in findings(sales([*steady(), *change]), NAMES, TODAY))


def test_ids_that_look_alike_are_named() -> None:
    names = NAMES.extended("store_id", pl.Series(["Köln", "köln ", "007", "7"]))
    table = sales([(names.id_of("store_id", n), 1, SUNDAY, 1.0) for n in ("Köln", "007", "7")])
    assert findings(table, names, TODAY) == ["ids that look alike are different ones: '007' and '7'"]
