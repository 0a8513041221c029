"""Baselines against loops over one series at a time."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast.errors import UserError
from salescast.evaluation import baselines

LAST = date(2012, 1, 27)


@st.composite
def histories(draw: st.DrawFn) -> list[list[float | None]]:
    weeks = draw(st.integers(1, 130))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    rows = [[float(x) if random.random() < 0.8 else None for x in random.integers(-50, 500, weeks)] for _ in range(3)]
    for row in rows:
        row[draw(st.integers(0, weeks - 1))] = float(draw(st.integers(-50, 500)))
    return rows


def observed(values: list[float | None]) -> list[float]:
    return [x for x in values if x is not None]


def one_series(history: list[float | None], name: str, h: int) -> float:
    """The definition, for one series and week h = 0, 1, ..."""
    last = observed(history)[-1]
    if name == "naive":
        return last
    if name == "mean_4":
        recent = observed(history[-4:])
        return sum(recent) / len(recent) if recent else last
    at = len(history) + h - 52
    year = history[at] if at >= 0 else None
    if year is None:
        recent = observed(history[-13:])
        return sum(recent) / len(recent) if recent else last
    if name == "seasonal_naive":
        return year
    now = ago = 0.0
    for back in range(1, 9):
        then = len(history) - back - 52
        this = history[-back] if back <= len(history) else None
        if then >= 0 and this is not None and history[then] is not None:
            now, ago = now + this, ago + history[then]
    growth = min(max(now / ago, 0.3), 3.0) if now > 0 and ago > 0 else 1.0
    return year * growth


@settings(max_examples=60, deadline=None)
@given(histories(), st.integers(1, 52))
def test_points_equal_their_definition(rows: list[list[float | None]], horizon: int) -> None:
    matrix = np.array([[np.nan if x is None else x for x in row] for row in rows])
    forecasts = baselines.point_forecasts(matrix, horizon)
    assert tuple(forecasts) == baselines.NAMES
    for name, values in forecasts.items():
        for i, row in enumerate(rows):
            expected = [one_series(row, name, h) for h in range(horizon)]
            np.testing.assert_allclose(values[i], expected, rtol=1e-12, err_msg=name)


def training(rows: list[list[float | None]], keys: list[tuple[int, int]]) -> pl.DataFrame:
    frames = []
    for (store, dept), row in zip(keys, rows, strict=True):
        weeks = [datetime(2012, 1, 27, tzinfo=UTC) - timedelta(weeks=len(row) - 1 - i) for i in range(len(row))]
        frames.append(
            pl.DataFrame({"event_timestamp": weeks, "weekly_sales": pl.Series(row, dtype=pl.Float32)}).with_columns(
                store_id=pl.lit(store, pl.Int32), dept_id=pl.lit(dept, pl.Int32)
            )
        )
    return pl.concat(frames)


@settings(max_examples=20, deadline=None)
@given(histories())
def test_forecasts_use_nothing_after_the_cutoff(rows: list[list[float | None]]) -> None:
    keys = [(2, 1), (1, 5), (1, 3)]
    frame = training(rows, keys).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
    later = frame.with_columns(
        pl.col("event_timestamp") + timedelta(weeks=500), pl.lit(7.0, pl.Float32).alias("weekly_sales")
    )
    one = baselines.forecasts(frame.lazy(), LAST, 5)
    two = baselines.forecasts(pl.concat([frame, later]).lazy(), LAST, 5)
    assert one.equals(two)
    assert one.height == 3 * 5 * 4
    naive = one.filter((pl.col("model") == "naive") & (pl.col("horizon") == 2))
    assert naive.rows()[0][:5] == (1, 3, LAST, 2, LAST + timedelta(weeks=2))
    assert naive["yhat"].to_list() == pytest.approx(
        [observed(rows[2])[-1], observed(rows[1])[-1], observed(rows[0])[-1]]
    )
    assert one.select(((pl.col("p10") <= pl.col("p90")) & pl.col("yhat").is_finite()).all()).item()


def test_intervals_have_their_nominal_coverage() -> None:
    """Noise of one distribution around constant levels: 80 % of new weeks lie between the two quantiles."""
    random = np.random.default_rng(1)
    sales = 1000 * (1 + 0.1 * random.standard_normal((400, 80)))
    low, high = baselines.error_quantiles(sales, 4)["naive"]
    # The error of the naive forecast is a difference of two draws.
    np.testing.assert_allclose(high, 1.2816 * 0.1 * np.sqrt(2), rtol=0.1)
    np.testing.assert_allclose(low, -1.2816 * 0.1 * np.sqrt(2), rtol=0.1)


def test_a_cutoff_before_all_sales_is_refused() -> None:
    frame = training([[1.0, 2.0]], [(1, 1)])
    with pytest.raises(UserError, match="no sales are observed up to the cutoff 2001-01-01"):
        baselines.forecasts(frame.lazy(), date(2001, 1, 1), 3)
