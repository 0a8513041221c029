"""Metrics against plain loops, cutoffs, and permutation importance."""

import itertools
import math
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast.data import dataset
from salescast.errors import UserError
from salescast.evaluation import backtest, metrics
from salescast.model.config import TrainConfig
from salescast.pipeline import stages
from salescast.pipeline.run import run
from salescast.workdir import Workdir

CUTOFF = date(2024, 1, 5)
value = st.floats(-1e4, 1e5, allow_nan=False)
row = st.tuples(st.integers(1, 3), st.sampled_from(["a", "b"]), st.none() | value, value, value, value, st.booleans())


def frame(rows: list[tuple]) -> pl.DataFrame:
    columns = ["store_id", "model", "y", "yhat", "p10", "p90", "is_holiday"]
    frame = pl.DataFrame(rows, schema=columns, orient="row", schema_overrides={"y": pl.Float64})
    return frame.with_columns(dept_id=pl.lit(1), cutoff=pl.lit(CUTOFF), horizon=pl.lit(1), week=pl.lit(CUTOFF))


def pinball_loss(y: float, q: float, tau: float) -> float:
    return tau * (y - q) if y >= q else (1 - tau) * (q - y)


@given(st.lists(row, min_size=1, max_size=30))
def test_every_metric_equals_a_loop_over_the_rows(rows: list[tuple]) -> None:
    table = metrics.scores(frame(rows))
    for model in {r[1] for r in rows if r[2] is not None}:
        mine = [r for r in rows if r[1] == model and r[2] is not None]
        total = sum(abs(r[2]) for r in mine)
        found = table.filter(pl.col("model") == model).row(0, named=True)
        assert found["rows"] == len(mine)
        nonzero = [r for r in mine if r[2] != 0]
        if nonzero:
            expected = sum(abs((r[2] - r[3]) / r[2]) for r in nonzero) / len(nonzero)
            assert found["mape"] == pytest.approx(expected, rel=1e-9)
        assert found["coverage"] == pytest.approx(sum(r[4] <= r[2] <= r[5] for r in mine) / len(mine))
        weights = [5.0 if r[6] else 1.0 for r in mine]
        wmae = sum(w * abs(r[2] - r[3]) for w, r in zip(weights, mine, strict=True)) / sum(weights)
        assert found["wmae"] == pytest.approx(wmae, rel=1e-9)
        if total > 1e-6:
            assert found["wmape"] == pytest.approx(sum(abs(r[2] - r[3]) for r in mine) / total, rel=1e-9)
            assert found["bias"] == pytest.approx(sum(r[3] - r[2] for r in mine) / total, rel=1e-6, abs=1e-9)
            losses = sum(pinball_loss(r[2], q, t) for r in mine for q, t in ((r[4], 0.1), (r[3], 0.5), (r[5], 0.9)))
            assert found["wql"] == pytest.approx(2 * losses / (3 * total), rel=1e-9)


def test_scaled_errors_are_averaged_over_series() -> None:
    weeks = [CUTOFF - timedelta(weeks=k) for k in range(60)]
    sales = pl.DataFrame(
        [(s, 1, w, s * (100.0 + (w.toordinal() % 11))) for s in (1, 10) for w in weeks],
        schema=["store_id", "dept_id", "week", "weekly_sales"],
        orient="row",
    )
    scales = metrics.seasonal_scales(sales, [CUTOFF])
    for store in (1, 10):
        y = {r[2]: r[3] for r in sales.iter_rows() if r[0] == store}
        errors = [y[w] - y[w - timedelta(weeks=52)] for w in weeks if w - timedelta(weeks=52) in y]
        mine = scales.filter(pl.col("store_id") == store)
        assert mine["mae_scale"].item() == pytest.approx(np.mean(np.abs(errors)))
        assert mine["mse_scale"].item() == pytest.approx(np.mean(np.square(errors)))
    rows = [(1, "m", 100.0, 103.0, 0.0, 1.0, False), (10, "m", 1000.0, 1010.0, 0.0, 1.0, False)]
    table = metrics.scores(frame(rows).join(scales.cast({"dept_id": pl.Int32}), on=["store_id", "dept_id", "cutoff"]))
    mase = [
        3.0 / scales["mae_scale"][i] if s == 1 else 10.0 / scales["mae_scale"][i]
        for i, s in enumerate(scales["store_id"])
    ]
    assert table["mase"].item() == pytest.approx(np.mean(mase))
    rmsse = [(3.0 if s == 1 else 10.0) / math.sqrt(scales["mse_scale"][i]) for i, s in enumerate(scales["store_id"])]
    assert table["rmsse"].item() == pytest.approx(np.mean(rmsse))


@given(st.integers(1, 300), st.integers(1, 20))
def test_cutoffs_leave_a_horizon_of_actuals_and_history_to_train_on(weeks: int, horizon: int) -> None:
    first, last = CUTOFF, CUTOFF + timedelta(weeks=weeks - 1)
    try:
        cutoffs = backtest.quarterly_cutoffs(first, last, horizon, holdout_weeks=13, min_history=4)
    except UserError as error:
        assert weeks - 1 <= 2 * horizon or weeks - 1 < horizon + 4
        assert f"{weeks} weeks of sales are too few to test forecasts {horizon} weeks ahead" in str(error)
        return
    metrics.check_cutoffs(first, last, 4, cutoffs)
    assert cutoffs == sorted(set(cutoffs)) and 1 <= len(cutoffs) <= 4
    assert cutoffs[-1] == last - timedelta(weeks=horizon)
    assert all(b - a == timedelta(weeks=13) for a, b in itertools.pairwise(cutoffs))
    if len(cutoffs) > 1:
        assert cutoffs[0] >= first + timedelta(weeks=52 + 13 + horizon)


@given(st.integers(1, 20), st.lists(st.integers(-30, 200), min_size=1, max_size=3))
def test_a_cutoff_needs_history_before_and_a_week_after_it(weeks: int, days: list[int]) -> None:
    first, last = CUTOFF, CUTOFF + timedelta(weeks=weeks - 1)
    wrong = [day for day in days if day % 7 or not 4 <= day // 7 <= weeks - 2]
    cutoffs = [first + timedelta(day) for day in days]
    if not wrong:
        metrics.check_cutoffs(first, last, 4, cutoffs)
        return
    named = ", ".join(str(first + timedelta(day)) for day in wrong)
    with pytest.raises(UserError, match=f"no backtest from {named}: a cutoff is a week of the data"):
        metrics.check_cutoffs(first, last, 4, cutoffs)


class Lag1Bundle:
    """A model that forecasts lag_1."""

    def predict(self, frame: pl.DataFrame):
        class Forecast:
            weeks = frame["event_timestamp"].dt.date().to_numpy().astype("datetime64[D]")[:, None]

            mean = frame["lag_1"].to_numpy()[:, None]

            def at(self, level: float) -> np.ndarray:
                return frame["lag_1"].to_numpy()[:, None]

        return Forecast()


def test_importance_is_positive_only_for_the_group_a_model_uses() -> None:
    start = CUTOFF + timedelta(weeks=1)
    training = pl.DataFrame(
        {
            "store_id": np.arange(50, dtype=np.int32),
            "dept_id": np.ones(50, dtype=np.int32),
            "event_timestamp": [start] * 50,
            "lag_1": np.arange(50.0),
            "cpi": np.arange(50.0),
            "weekly_sales": np.arange(50.0),
        }
    ).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
    groups = {"lags": ("lag_1",), "economics": ("cpi",)}
    table = backtest.importance({CUTOFF: Lag1Bundle()}, training.lazy(), groups, seed=1)  # type: ignore[dict-item]
    assert table["group"].to_list() == ["lags", "economics"]
    assert table["increase"][0] > 0.3 and table["increase"][1] == 0


def test_a_cutoff_outside_the_data_is_named() -> None:
    training = pl.LazyFrame({"event_timestamp": [CUTOFF]}).with_columns(
        pl.col("event_timestamp").cast(pl.Datetime("us", "UTC"))
    )
    with pytest.raises(UserError, match="cutoff 2024-01-06 is not a week of the data, which run from 2024-01-05 to"):
        backtest.base_rows(training, date(2024, 1, 6))


@pytest.mark.parametrize(
    ("weeks", "back", "message"),
    [
        (60, 0, "no backtest from .*: a cutoff is a week of the data"),
        (60, 57, "with 4 weeks before it and one after it"),
        (6, None, "6 weeks of sales are too few to test forecasts 8 weeks ahead"),
    ],
    ids=["nothing after it", "nothing before it", "short history"],
)
def test_impossible_cutoffs_are_refused_before_any_work(
    weeks: int, back: int | None, message: str, tmp_path: Path
) -> None:
    work = Workdir(tmp_path / "work")
    last = dataset.generate(work.raw, stores=2, depts=2, weeks=weeks).last_week
    cutoffs = None if back is None else [last - timedelta(weeks=back)]
    with pytest.raises(UserError, match=message):
        stages.run_backtest(work, work.raw, TrainConfig(), cutoffs, work.backtest)
    with pytest.raises(UserError, match=message):
        run(work, lambda _: None, TrainConfig(), cutoffs, lambda _: None)
    assert not list(work.data.glob("*.parquet"))
