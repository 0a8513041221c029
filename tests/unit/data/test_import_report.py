"""Kinds of series, against a loop over each series' own weeks; the page of an import."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast.data import ingest
from salescast.data.import_report import LargeSeries, SeriesKinds, series_kinds
from salescast.report.import_page import lines, write_import_page
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


def test_the_page_has_each_reason_with_its_share_of_the_sales_and_the_largest_series(tmp_path: Path) -> None:
    good = [f"A&B,{dept},{date(2024, 1, 7) + timedelta(7 * k)},{10 * dept}" for dept in (1, 2) for k in range(10)]
    sales = tmp_path / "sales.csv"
    sales.write_text("\n".join(["Store,Dept,Date,Weekly_Sales", *good, "A&B,,2024-01-07,100", "A&B,1,soon,<b>"]))
    report = ingest.import_sales(sales, None, None, tmp_path / "raw", skip_bad_rows=True)
    assert {reason: round(share, 6) for reason, share in report.lost.items() if share} == {"Dept is missing": 0.25}
    assert [(one.store, one.dept) for one in report.largest] == [("A&B", 2), ("A&B", 1)]
    assert [one.share for one in report.largest] == pytest.approx([2 / 3, 1 / 3])
    assert report.largest[0].sales == (20.0,) * 10
    write_import_page(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Dept is missing" in text and "25.0%" in text
    assert "<b>" not in text and "A&amp;B" in text


def test_a_line_is_interrupted_where_weeks_are_missing() -> None:
    series = LargeSeries(1, 1, 1.0, (0.0, 10.0, None, None, 10.0))
    assert list(lines(series)) == ["0,58.0 1,2.0", "4,2.0"]
