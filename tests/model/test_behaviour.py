"""Properties of a trained model that do not depend on its weights; 18 demo series of 65 weeks, published features."""

import dataclasses
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from salescast import schema
from salescast.features.training_set import write_training_set
from salescast.model import bundle
from salescast.model.bundle import Bundle
from salescast.training.main import run_plan
from salescast.training.plan import Fit, Plan

CUTOFF = date(2024, 3, 1)  # 8 weeks before the last one


@pytest.fixture(scope="module")
def model(module_plan_of: Callable[..., Plan]) -> Bundle:
    plan = module_plan_of(epochs=15, hidden=(64, 32), patience=15)
    folder = plan.checkpoints.parent / "past"
    plan = dataclasses.replace(plan, fits=(Fit("past", CUTOFF, folder),))
    assert run_plan(plan) == 0
    return bundle.load(folder)


@pytest.fixture(scope="module")
def base(training_frame: pl.DataFrame) -> pl.DataFrame:
    """The base rows: the week after the cutoff."""
    return training_frame.filter(pl.col(schema.TIMESTAMP).dt.date() == CUTOFF + timedelta(weeks=1))


@pytest.fixture(scope="module")
def actual(training_frame: pl.DataFrame, base: pl.DataFrame) -> np.ndarray:
    after = training_frame.filter(pl.col(schema.TIMESTAMP).dt.date() > CUTOFF)
    return np.stack([group[schema.LABEL].to_numpy()[:4] for group in after.partition_by(schema.KEYS)])


def cycle(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with sales in a cycle of four weeks around each series' level, and their features."""
    y = pl.col(schema.LABEL)
    week = pl.int_range(pl.len()).over(schema.KEYS)
    level = pl.col("store_id") * 1000 + pl.col("dept_id") * 100
    sales = pl.when(y.is_not_null()).then(level * (1 + 0.3 * (week % 4 - 1.5))).cast(pl.Float32).alias(schema.LABEL)
    last_four = pl.concat_list(y.shift(k).over(schema.KEYS) for k in (1, 2, 3, 4)).list
    return frame.with_columns(sales).with_columns(
        *(y.shift(k).over(schema.KEYS).alias(f"lag_{k}") for k in (1, 2, 4, 8)),
        rolling_mean_4w=last_four.mean(),
        rolling_std_4w=last_four.std(),
        sales_vs_avg=y.shift(1).over(schema.KEYS) / last_four.mean(),
    )


def test_a_cycle_is_learned(training_frame: pl.DataFrame, tmp_path: Path, module_plan_of: Callable[..., Plan]) -> None:
    """The mean of four weeks cannot predict the cycle, nor can a linear model; lags and horizon together can."""
    repeated = cycle(training_frame)
    write_training_set(repeated.to_arrow(), tmp_path / "part-00000.parquet")
    plan = module_plan_of(tmp_path / "cycle", training=tmp_path, epochs=30, hidden=(64, 32), patience=30, linear=False)
    plan = dataclasses.replace(plan, fits=(Fit("past", CUTOFF, tmp_path / "model"),))
    assert run_plan(plan) == 0
    rows = repeated.filter(pl.col(schema.TIMESTAMP).dt.date() == CUTOFF + timedelta(weeks=1))
    after = repeated.filter(pl.col(schema.TIMESTAMP).dt.date() > CUTOFF).partition_by(schema.KEYS)
    actual = np.stack([series[schema.LABEL].to_numpy()[:4] for series in after])
    flat = rows["rolling_mean_4w"].to_numpy()[:, None]
    error = np.abs(bundle.load(tmp_path / "model").predict(rows).at(0.5) - actual).sum()
    assert error < 0.3 * np.abs(flat - actual).sum()


def test_most_sales_lie_in_the_interval(model: Bundle, base: pl.DataFrame, actual: np.ndarray) -> None:
    forecast = model.predict(base)
    inside = (actual >= forecast.at(0.1)) & (actual <= forecast.at(0.9))
    assert inside.mean() > 0.5


def test_the_label_of_the_base_row_is_not_used(model: Bundle, base: pl.DataFrame) -> None:
    changed = base.with_columns(pl.lit(1e9, pl.Float32).alias(schema.LABEL))
    assert np.array_equal(model.predict(base).quantiles, model.predict(changed).quantiles)


def test_forecasts_are_in_the_order_of_the_rows(model: Bundle, base: pl.DataFrame) -> None:
    forwards, backwards = model.predict(base).quantiles, model.predict(base.reverse()).quantiles
    assert np.allclose(forwards, backwards[::-1], rtol=1e-6)


def test_sales_after_the_cutoff_do_not_change_the_model(
    model: Bundle, training_frame: pl.DataFrame, tmp_path: Path, module_plan_of: Callable[..., Plan]
) -> None:
    """A fit with other sales after the cutoff has the same digest."""
    after = pl.col(schema.TIMESTAMP).dt.date() > CUTOFF
    changed = training_frame.with_columns(
        pl.when(after).then(pl.col(schema.LABEL) * 100).otherwise(pl.col(schema.LABEL)).alias(schema.LABEL)
    )
    write_training_set(changed.to_arrow(), tmp_path / "part-00000.parquet")
    plan = module_plan_of(tmp_path / "changed", training=tmp_path, epochs=15, hidden=(64, 32), patience=15)
    plan = dataclasses.replace(plan, fits=(Fit("past", CUTOFF, tmp_path / "model"),))
    assert run_plan(plan) == 0
    assert bundle.load(tmp_path / "model").digest == model.digest
