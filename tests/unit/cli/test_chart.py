"""The chart of the terminal shows every number at its place, and fits."""

from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from salescast.cli.chart import BRAILLE, NARROWEST, chart, value_ticks

MAYBE = st.none() | st.floats(-1e6, 1e6)
FIRST = date(2024, 1, 5)


def frames(past: list, fan: list) -> tuple[pl.DataFrame, pl.DataFrame]:
    weeks = [FIRST + timedelta(weeks=number) for number in range(len(past) + len(fan))]
    history = pl.DataFrame(
        {"week": weeks[: len(past)], "weekly_sales": past}, {"week": pl.Date, "weekly_sales": pl.Float64}
    )
    columns = dict(zip(("p10", "forecast", "p90"), zip(*fan, strict=True), strict=True))
    types = {"week": pl.Date, **dict.fromkeys(columns, pl.Float64)}
    return history, pl.DataFrame({"week": weeks[len(past) :], **columns}, types)


def is_dotted(mark: str) -> bool:
    return BRAILLE < ord(mark) < BRAILLE + 256


@given(
    st.lists(MAYBE, max_size=60),
    st.lists(st.tuples(MAYBE, MAYBE, MAYBE), min_size=1, max_size=52),
    st.integers(NARROWEST, 200),
    st.integers(4, 30),
)
def test_a_chart_fits_and_shows_what_is_known(past: list, fan: list, width: int, height: int) -> None:
    fan = [tuple(sorted(row)) if None not in row else (None,) * 3 for row in fan]
    text = chart(*frames(past, fan), width, height).plain
    if {*past, *(row[1] for row in fan)} == {None}:
        assert text == "nothing to draw: no sales and no forecast"
        return
    lines = text.splitlines()
    assert len(lines) == height + 3
    assert max(map(len, lines)) <= width
    assert any(is_dotted(mark) for line in lines[:height] for mark in line)
    legend = lines[-1]
    assert ["sales" in legend, "forecast" in legend, "p10 to p90" in legend] == [True] * 3


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60), st.integers(NARROWEST, 200))
def test_every_week_is_at_its_column_and_between_its_ticks(past: list, width: int) -> None:
    """An oracle that only uses the printed axis: rows with labels, and equal columns of time."""
    height = 12
    lines = chart(*frames(past, [(past[-1],) * 3]), width, height).plain.splitlines()
    gutter = lines[0].index("│" if "│" in lines[0] else "┤") + 1
    values = {row: float(line[: gutter - 1].replace(",", "")) for row, line in enumerate(lines[:height]) if "┤" in line}
    assert max(values.values()) >= max(past) and min(values.values()) <= min(past)
    top, bottom, columns = max(values.values()), min(values.values()), width - gutter
    for number, value in enumerate(past):
        column = number / len(past) * (columns - 0.5)
        row = (top - value) / (top - bottom) * (height - 0.25)
        near = {(int(row + dy), int(column + dx)) for dy in (-0.2, 0, 0.2) for dx in (-0.3, 0, 0.3)}
        marks = [
            lines[y][gutter + x] for y, x in near if 0 <= y < height and 0 <= x < columns and gutter + x < len(lines[y])
        ]
        assert any(is_dotted(mark) for mark in marks), (number, value)


def test_a_gap_breaks_the_line() -> None:
    past = [10.0, 10.0, None, None, None, None, None, None, 10.0, 10.0]
    lines = chart(*frames(past, [(10.0, 10.0, 10.0)]), 80).plain.splitlines()
    drawn = next(line for line in lines if any(map(is_dotted, line))).split("┤")[-1]
    assert "      " in drawn.strip()


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.integers(2, 10))
@example(-1e-05, 2.251798676235853e-220, 2)  # a bound that is a tick but for rounding
def test_ticks_enclose_the_values(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    ticks = value_ticks(low, high, most)
    margin = 1e-9 * max(abs(low), abs(high), 1e-9)
    assert ticks[0] <= low + margin and ticks[-1] >= high - margin
    assert 2 <= len(ticks) <= most + 2


def test_ticks_are_round_numbers() -> None:
    assert value_ticks(12_300, 27_100, 4) == [10_000, 15_000, 20_000, 25_000, 30_000]
    assert value_ticks(0.02, 0.19, 4) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_months_are_labelled_below() -> None:
    dates = chart(*frames([1.0] * 52, [(1.0, 2.0, 3.0)] * 8), 120).plain.splitlines()[-2].split()
    assert dates == ["2024-03", "2024-05", "2024-07", "2024-09", "2024-11", "2025-01"]
