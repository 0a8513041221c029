"""Kinds of series, against a loop over each series' own weeks."""

from datetime import date, timedelta

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from salescast.data.import_report import SeriesKinds, series_kinds
from salescast.schema import RAW_SALES

FIRST = date(2023, 1, 6)


def kind(values: list[float | None], length: int) -> str:
    """`values` by week, None = no row; the data have `length` weeks."""
    known = [week for week, value in enumerate(values) if value is not None]
    sold = [week for week, value in enumerate(values) if value is not None and value > 0]
    if not any(week >= length - 13 for week in sold):
        return "ended"
    if known[0] > length - 1 - 52:
        return "young"
    return "slow" if 2 * len(sold) <= known[-1] - known[0] + 1 else "regular"


@given(st.integers(0, 2**32 - 1), st.integers(1, 130))
def test_every_series_is_of_one_kind(seed: int, length: int) -> None:
    random = np.random.default_rng(seed)
    series = []
    for number in range(6):
        begin = int(random.integers(0, length))
        share, gaps = random.random(2)
        values: list[float | None] = [
            None if week < begin or (random.random() < gaps / 2 and week > begin)
            else float(random.random() < share) for week in range(length)
        ]  # fmt: skip
        series.append(values if number else [1.0] * length)  # one series has the last week
    rows = [
        (number, 0, FIRST + timedelta(7 * week), value)
        for number, values in enumerate(series) for week, value in enumerate(values) if value is not None
    ]  # fmt: skip
    found = series_kinds(pl.DataFrame(rows, schema=RAW_SALES, orient="row"))
    kinds = [kind(values, length) for values in series]
    assert found == SeriesKinds(**{name: kinds.count(name) for name in ("ended", "young", "slow", "regular")})
