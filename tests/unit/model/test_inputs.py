"""Model inputs: their formulas, and what they must not depend on."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast import retail_calendar
from salescast.errors import UserError
from salescast.model import inputs
from salescast.schema import SALES_FEATURES, STORE_FEATURES, TRAINING_SERVICE

CALENDAR = retail_calendar.calendar("US")
SALES = ("lag_1", "lag_2", "lag_4", "lag_8", "rolling_mean_4w", "rolling_std_4w")
maybe = st.none() | st.floats(-1e5, 1e5, width=32)


def published_frame(rows: list[list[float | None]]) -> pl.DataFrame:
    """One base row per list of the six sales columns; everything else plausible, some of it missing."""
    first = datetime(2011, 10, 28, tzinfo=UTC)
    frame = pl.DataFrame(
        {name: pl.Series([row[i] for row in rows], dtype=pl.Float32) for i, name in enumerate(SALES)}
    ).with_row_index("i")
    return frame.select(
        pl.lit(1, pl.Int32).alias("store_id"),
        pl.col("i").cast(pl.Int32).alias("dept_id"),
        pl.Series("event_timestamp", [first + timedelta(7 * i) for i in range(len(rows))], pl.Datetime("us", "UTC")),
        *SALES,
        (pl.col("lag_1") / pl.col("rolling_mean_4w")).alias("sales_vs_avg"),
        *(pl.lit(50.0, pl.Float32).alias(name) for name in ("temperature", "fuel_price", "cpi")),
        pl.lit(None, pl.Float32).alias("unemployment"),
        pl.lit("A").alias("store_type"),
        pl.lit(100_000, pl.Int64).alias("store_size"),
        pl.lit(None, pl.String).alias("region"),
    )


def test_published_service_reads_only_its_features() -> None:
    frame = published_frame([[10.0, 20, 30, 40, 25, 5]])
    calendar_columns = {"week_of_year", "month", "quarter", "week_of_month", "is_month_end", "is_holiday"}
    used = set(frame.columns) - {"store_id", "dept_id", "event_timestamp"}
    assert used <= (SALES_FEATURES.keys() | STORE_FEATURES.keys()) - {"weekly_sales"} - calendar_columns


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(maybe, min_size=6, max_size=6), min_size=1, max_size=4))
def test_published_anchor_and_unit_are_usable_for_any_row(rows: list[list[float | None]]) -> None:
    built = inputs.build(published_frame(rows), TRAINING_SERVICE, 3, CALENDAR)
    assert built.base.shape == (len(rows), len(built.base_names))
    assert built.step.shape == (len(rows), 3, len(built.step_names))
    assert built.base.dtype == built.step.dtype == np.float32
    assert np.isfinite(built.anchor).all()
    assert (built.unit > 0).all()
    assert not np.isinf(built.base).any()


def test_published_formulas() -> None:
    built = inputs.build(published_frame([[10.0, 20, 30, None, 25, 5]]), TRAINING_SERVICE, 2, CALENDAR)
    named = dict(zip(built.base_names, built.base[0], strict=True))
    assert built.anchor.tolist() == [[25.0, 25.0]]
    assert built.unit.tolist() == [[30.0, 30.0]]
    assert named["lags:lag_1"] == pytest.approx((10 - 25) / 30)
    assert np.isnan(named["lags:lag_8"])
    assert named["rolling:std"] == pytest.approx(5 / 30)
    assert named["store:log_size"] == pytest.approx(np.log(100_000))
    assert built.categories["region"].tolist() == [None]
    assert built.categories["store_type"].tolist() == ["A"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1, 1e4, width=32), min_size=6, max_size=6))
def test_published_inputs_do_not_depend_on_the_currency(row: list[float]) -> None:
    one = inputs.build(published_frame([list(row)]), TRAINING_SERVICE, 2, CALENDAR)
    thousand = inputs.build(published_frame([[1000 * value for value in row]]), TRAINING_SERVICE, 2, CALENDAR)
    np.testing.assert_allclose(thousand.base, one.base, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(thousand.step, one.step)
    np.testing.assert_allclose(thousand.anchor, 1000 * one.anchor, rtol=1e-5)
    np.testing.assert_allclose(thousand.unit, 1000 * one.unit, rtol=1e-5)


def test_step_inputs_describe_the_target_week() -> None:
    """The row of 2011-10-28 forecasts Thanksgiving (week ending 2011-11-25) four weeks later."""
    built = inputs.build(published_frame([[1.0] * 6]), TRAINING_SERVICE, 8, CALENDAR)
    position = built.step_names.index("holiday:is_holiday")
    assert built.step[0, :, position].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    month = built.step[0, :, built.step_names.index("calendar:month")]
    assert month.tolist() == [10, 11, 11, 11, 11, 12, 12, 12]


def test_inputs_are_named_by_their_groups() -> None:
    built = inputs.build(published_frame([[1.0] * 6]), TRAINING_SERVICE, 2, CALENDAR)
    groups = {name.partition(":")[0] for name in (*built.base_names, *built.step_names)}
    assert groups == {"lags", "rolling", "calendar", "holiday", "economics", "store"}


def test_wrong_arguments_are_refused() -> None:
    frame = published_frame([[1.0] * 6])
    with pytest.raises(UserError, match="unknown feature service 'other'; known are"):
        inputs.build(frame, "other", 2, CALENDAR)
    with pytest.raises(UserError, match="horizon must be at least 1 week, got 0"):
        inputs.build(frame, TRAINING_SERVICE, 0, CALENDAR)
    with pytest.raises(UserError, match=r"columns \['lag_1'\] of feature service 'training_features' are missing"):
        inputs.build(frame.drop("lag_1"), TRAINING_SERVICE, 2, CALENDAR)
