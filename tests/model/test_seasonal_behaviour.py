"""Forecasts of the seasonal service on irregular sales, and what they must not depend on."""

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from salescast import schema
from salescast.features.seasonal import seasonal_features
from salescast.features.training_set import write_training_set
from salescast.model import bundle
from salescast.model.bundle import Forecast
from salescast.training.main import run_plan
from salescast.training.plan import Plan

WEEKS, STORES, DEPTS = 90, 6, 2
LAST_WEEK = date(2024, 4, 26)  # of the plans of conftest.py
CONSTANT, ENDED, NEGATIVE_WEEK = (1, 1), (2, 1), 40  # 52 weeks before the third week forecast
STATIC = {"store_type": pl.String, "store_size": pl.Int64, "region": pl.String}


def irregular() -> pl.DataFrame:
    """A constant series, one that ends 20 weeks before the others, and a week of returns in all other series."""
    random = np.random.default_rng(3)
    rows = []
    for store in range(1, STORES + 1):
        for dept in range(1, DEPTS + 1):
            season = 1 + 0.3 * np.sin(2 * np.pi * np.arange(WEEKS) / 52)
            sales = 1000.0 * store * dept * season * np.exp(0.05 * random.standard_normal(WEEKS))
            sales[NEGATIVE_WEEK] = -50.0
            if (store, dept) == CONSTANT:
                sales[:] = 500.0
            observed = range(WEEKS - 20 if (store, dept) == ENDED else WEEKS)
            rows += [(store, dept, LAST_WEEK - timedelta(weeks=WEEKS - 1 - week), sales[week]) for week in observed]
    return pl.DataFrame(rows, schema=schema.RAW_SALES, orient="row")


def forecast(sales: pl.DataFrame, folder: Path, plan_of: Callable[..., Plan]) -> tuple[pl.DataFrame, Forecast]:
    """The upcoming rows, sorted by their keys, and the forecasts of a small network trained on these sales."""
    features = seasonal_features(sales, horizon=4).with_columns(
        *(pl.lit(None, dtype).alias(name) for name, dtype in STATIC.items())
    )
    label = sales.select(
        *schema.KEYS,
        pl.col("week").cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias(schema.TIMESTAMP),
        pl.col(schema.LABEL).cast(pl.Float32),
    )
    frame = features.join(label, on=[*schema.KEYS, schema.TIMESTAMP], how="left", maintain_order="left")
    folder.mkdir()
    write_training_set(frame.to_arrow(), folder / "part-00000.parquet")
    service = schema.TRAINING_SERVICE_SEASONAL
    plan = plan_of(folder / "fit", training=folder, feature_service=service, epochs=4, patience=0)
    assert run_plan(plan) == 0
    rows = frame.filter(pl.col(schema.TIMESTAMP).dt.date() == LAST_WEEK + timedelta(weeks=1))
    return rows, bundle.load(plan.fits[0].out).predict(rows)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, module_plan_of: Callable[..., Plan]
) -> tuple[pl.DataFrame, Forecast]:
    return forecast(irregular(), tmp_path_factory.mktemp("irregular") / "set", module_plan_of)


def test_every_series_gets_ordered_finite_quantiles(trained: tuple[pl.DataFrame, Forecast]) -> None:
    rows, found = trained
    assert rows.height == STORES * DEPTS, "including the series that ended 20 weeks ago"
    assert np.isfinite(found.quantiles).all()
    assert (np.diff(found.quantiles, axis=2) >= 0).all()


def test_a_constant_series_stays_about_constant(trained: tuple[pl.DataFrame, Forecast]) -> None:
    rows, found = trained
    row = rows.select((pl.col("store_id") == CONSTANT[0]) & (pl.col("dept_id") == CONSTANT[1])).to_series().arg_true()
    # The third and fourth week overlap the week, a year ago, in which the rest of the department had only returns.
    np.testing.assert_allclose(found.at(0.5)[row][:, :2], 500.0, rtol=0.15)


def test_a_week_of_returns_a_year_ago_affects_no_other_week(trained: tuple[pl.DataFrame, Forecast]) -> None:
    rows, found = trained
    others = rows.select(pl.col("store_id") > 2).to_series().arg_true()
    level = 1000.0 * (rows["store_id"] * rows["dept_id"]).to_numpy()[others, None]
    median = found.at(0.5)[others]
    assert (median[:, [0, 1, 3]] > 0.4 * level).all() and (median < 2.0 * level).all()


def test_forecasts_scale_with_the_currency(
    trained: tuple[pl.DataFrame, Forecast], tmp_path: Path, module_plan_of: Callable[..., Plan]
) -> None:
    """All sales times 1000 train the same network, so forecasts are times 1000."""
    scaled = irregular().with_columns(pl.col(schema.LABEL) * 1000)
    _, found = forecast(scaled, tmp_path / "scaled", module_plan_of)
    np.testing.assert_allclose(found.quantiles, 1000 * trained[1].quantiles, rtol=0.01)


def test_features_do_not_depend_on_store_numbers() -> None:
    """Stores numbered in another order have the same features, including pooled ones, under their new numbers."""
    number = {store: STORES + 1 - store for store in range(1, STORES + 1)}
    renumbered = irregular().with_columns(pl.col("store_id").replace(number))
    one = seasonal_features(irregular(), horizon=4).with_columns(pl.col("store_id").replace(number))
    one = one.sort(*schema.KEYS, schema.TIMESTAMP)
    two = seasonal_features(renumbered.sort(*schema.KEYS, "week"), horizon=4)
    for name, dtype in schema.SEASONAL_FEATURES.items():
        values = [frame[name].explode() if isinstance(dtype, pl.List) else frame[name] for frame in (one, two)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=0.02, err_msg=name)
