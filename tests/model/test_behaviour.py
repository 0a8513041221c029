"""What a trained model must do whatever its accuracy: small fits of the seasonal service on made-up sales."""

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from salescast import bundle, train
from salescast.config import TrainConfig
from salescast.plan import Fit, Plan
from salescast.retrieval import write_training_set
from salescast.schema import KEYS, LABEL, RAW_SALES, TIMESTAMP
from salescast.seasonal import seasonal_features

FIRST = date(2010, 2, 5)
WEEKS, HORIZON = 112, 4
CONFIG = TrainConfig(horizon=HORIZON, hidden=(32, 16), epochs=6, batch_size=256, patience=0, holdout_weeks=8)


def week(number: int) -> date:
    return FIRST + timedelta(weeks=number)


def shops(seed: int = 0, weeks: int = WEEKS) -> dict[int, np.ndarray]:
    """12 stores of one department: level, a peak a year, trend and noise. NaN = not observed."""
    random = np.random.default_rng(seed)
    t = np.arange(weeks)
    season = 1 + 0.3 * np.sin(2 * np.pi * t / 52) + 1.0 * (t % 52 == 40)
    return {
        store: 1000.0 * store * season * (1 + 0.001 * t) * np.exp(0.05 * random.standard_normal(weeks))
        for store in range(1, 13)
    }


def raw(history: dict[int, np.ndarray]) -> pl.DataFrame:
    rows = [
        (store, 0, week(number), float(value))
        for store, values in sorted(history.items())
        for number, value in enumerate(values)
        if np.isfinite(value)
    ]
    return pl.DataFrame(rows, schema=RAW_SALES, orient="row")


@dataclass
class Trained:
    rows: pl.DataFrame  # the upcoming week of every series
    model: bundle.Bundle

    def forecast(self) -> dict[int, np.ndarray]:
        """store -> quantiles [H, Q]"""
        return dict(zip(self.rows["store_id"], self.model.predict(self.rows).quantiles, strict=True))


def fit(
    folder: Path, sales: pl.DataFrame, plan: pl.DataFrame | None = None, open_days: str | None = None, **settings: int
) -> Trained:
    """Features, training in this process, and the rows to forecast from."""
    features = seasonal_features(sales, plan, HORIZON, open_days).with_columns(
        store_type=pl.lit("A"), store_size=pl.lit(1000, pl.Int64), region=pl.lit(None, pl.String)
    )
    label = sales.select(
        *KEYS, pl.col("week").cast(pl.Datetime("us", "UTC")).alias(TIMESTAMP), pl.col(LABEL).cast(pl.Float32)
    )
    frame = features.join(label, on=[*KEYS, TIMESTAMP], how="left", maintain_order="left")
    (folder / "set").mkdir(parents=True)
    write_training_set(frame.to_arrow(), folder / "set" / "part-00000.parquet")
    last = sales["week"].max()
    assert isinstance(last, date)
    config = TrainConfig.from_dict(CONFIG.to_dict() | settings)
    fits = (Fit("final", last, folder / "model"),)
    assert train.run_plan(Plan(folder / "set", "made up", "US", config, fits, folder / "checkpoints")) == 0
    upcoming = frame.filter(pl.col(TIMESTAMP) == pl.col(TIMESTAMP).max())
    return Trained(upcoming, bundle.load(folder / "model"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return fit(tmp_path_factory.mktemp("plain"), raw(shops()))


def median(trained: Trained) -> dict[int, np.ndarray]:
    return {store: values[:, 4] for store, values in trained.forecast().items()}


def test_forecasts_are_near_the_truth(trained: Trained) -> None:
    truth = shops(weeks=WEEKS + HORIZON)
    found = median(trained)
    error = sum(np.abs(found[store] - truth[store][WEEKS:]).sum() for store in truth)
    assert error / sum(truth[store][WEEKS:].sum() for store in truth) < 0.08


def test_a_thousandfold_currency_gives_thousandfold_forecasts(trained: Trained, tmp_path: Path) -> None:
    larger = fit(tmp_path, raw({store: 1000 * values for store, values in shops().items()}))
    for store, values in trained.forecast().items():
        np.testing.assert_allclose(larger.forecast()[store], 1000 * values, rtol=2e-3)


def test_other_store_numbers_give_other_stores_the_same_forecasts(trained: Trained, tmp_path: Path) -> None:
    """Numbers are names. Only first weights and batches differ, which a small fit feels a little."""
    number = {store: 100 - 7 * store for store in range(1, 13)}
    renamed = fit(tmp_path, raw({number[store]: values for store, values in shops().items()}))
    one, two = median(trained), median(renamed)
    for store in one:
        np.testing.assert_allclose(two[number[store]], one[store], rtol=0.08)


def test_constant_series_stay_constant(tmp_path: Path) -> None:
    """All series constant: nothing to forecast but the constants, and nothing to be unsure of."""
    found = fit(tmp_path, raw({store: np.full(WEEKS, 77.0 * store) for store in range(1, 13)})).forecast()
    for store, values in found.items():
        np.testing.assert_allclose(values[:, 4], 77.0 * store, rtol=0.01)
        assert ((values[:, -1] - values[:, 0]) < 0.5 * 77.0 * store).all()


def test_one_constant_series_among_others(tmp_path: Path) -> None:
    """Its department has a peak and a trend that it does not have; its own history says so."""
    history = shops()
    history[5] = np.full(WEEKS, 777.0)
    found = fit(tmp_path, raw(history)).forecast()[5]
    np.testing.assert_allclose(found[:, 4], 777.0, rtol=0.25)


def test_a_week_of_returns_everywhere_is_survived(tmp_path: Path) -> None:
    history = shops()
    for values in history.values():
        values[WEEKS - 30] = -500.0
    found = fit(tmp_path, raw(history))
    truth = shops(weeks=WEEKS + HORIZON)
    for store, values in median(found).items():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, truth[store][WEEKS:], rtol=0.35)


def test_series_that_end(tmp_path: Path) -> None:
    """Silent for more than a year: nothing is expected of it. Silent for some weeks: no error, a finite forecast."""
    history = shops()
    history[3][WEEKS - 60 :] = np.nan
    history[4][WEEKS - 10 :] = np.nan
    found = fit(tmp_path, raw(history))
    assert np.abs(found.forecast()[3][:, 4]).max() < 30.0, "1 % of what it sold"
    assert np.isfinite(found.forecast()[4]).all()


def test_a_missing_store_size_is_survived(trained: Trained) -> None:
    rows = trained.rows.with_columns(store_size=pl.lit(None, pl.Int64), store_type=pl.lit(None, pl.String))
    assert np.isfinite(trained.model.predict(rows).quantiles).all()


def promoted(seed: int = 3) -> tuple[dict[int, np.ndarray], pl.DataFrame]:
    """Promotions that double sales, and closed weeks; both are planned for the weeks to come."""
    random = np.random.default_rng(seed)
    length = WEEKS + HORIZON
    base = shops(seed, length)
    rows = []
    for store, values in base.items():
        promo = (random.random(length) < 0.3).astype(float)
        days = np.where(random.random(length) < 0.1, 0.0, 6.0)
        base[store] = values * (1 + promo) * days / 6
        rows += [(store, None, week(w), None, promo[w], days[w]) for w in range(length)]
    schema = {
        "store_id": pl.Int32, "dept_id": pl.Int32, "week": pl.Date, "known_at": pl.Datetime("us", "UTC"),
        "Promo": pl.Float32, "Open": pl.Float32,
    }  # fmt: skip
    return base, pl.DataFrame(rows, schema=schema, orient="row")


def test_planned_promotions_and_closed_weeks_halve_the_error(tmp_path: Path) -> None:
    truth, plan = promoted()
    sales = raw({store: values[:WEEKS] for store, values in truth.items()})
    error = {}
    for name, options in (("with", {"plan": plan, "open_days": "Open"}), ("without", {})):
        found = fit(tmp_path / name, sales, **options)  # type: ignore[arg-type]
        ahead = median(found)
        error[name] = sum(np.abs(ahead[store] - truth[store][WEEKS:]).sum() for store in truth)
        if name == "with":
            closed = {
                s: plan.filter((pl.col("store_id") == s) & (pl.col("Open") == 0))["week"].to_list() for s in truth
            }
            for store, values in ahead.items():
                shut = np.array([week(WEEKS + h) in closed[store] for h in range(HORIZON)])
                assert np.abs(values[shut]).max(initial=0.0) < 1e-9
    assert error["with"] <= 0.5 * error["without"]
