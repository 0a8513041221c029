"""`salescast backtest` from the command line: reference models, one fit for all cutoffs, planned inputs."""

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from salescast.data import dataset

from .conftest import salescast

pytestmark = pytest.mark.slow


def test_one_fit_with_reference_models(raw: Path, tmp_path: Path) -> None:
    last = dataset.Dataset.read(raw).last_week
    cutoffs = [last - timedelta(weeks=back) for back in (12, 8)]
    done = salescast(
        "backtest", "--data", str(raw), "--workdir", str(tmp_path / "work"), "--out", str(tmp_path / "b.parquet"),
        "--cutoffs", ",".join(map(str, cutoffs)), "--no-refit", "--with", "mstl,svd", "--json",
        MLFLOW_TRACKING_URI="off",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "work" / "fits").glob(f"*/{cutoffs[0]}"))) == 1
    assert not list((tmp_path / "work" / "fits").glob(f"*/{cutoffs[1]}")), "trained at the first cutoff only"
    frame = pl.read_parquet(tmp_path / "b.parquet")
    assert set(frame["cutoff"]) == set(cutoffs)
    rows = frame.group_by("model").agg(pl.len(), pl.col("yhat").is_finite().all())
    assert set(rows["model"]) >= {"salescast", "growth_seasonal_naive", "mstl", "svd"}
    assert rows["len"].n_unique() == 1 and rows["yhat"].all(), "every method forecasts the same rows"
    assert (frame["p10"] <= frame["yhat"]).all() and (frame["yhat"] <= frame["p90"]).all()
    scores = {row["model"]: row["wmape"] for row in json.loads(done.stdout)}
    assert scores["mstl"] < 2 * scores["growth_seasonal_naive"], "it forecasts the same series"


def test_unknown_reference_models_are_named(raw: Path, tmp_path: Path) -> None:
    done = salescast("backtest", "--data", str(raw), "--workdir", str(tmp_path), "--with", "lightgbm,prophet")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: --with knows lightgbm, mstl, svd, got 'prophet'"


def promoted(path: Path) -> date:
    """Write sales of 20 stores, doubled in promotions and zero in closed weeks; returns a cutoff."""
    random = np.random.default_rng(5)
    weeks, ahead, stores = 112, 8, 20
    shape = (stores, weeks + ahead)
    promo, closed = random.random(shape) < 0.25, random.random(shape) < 0.05
    season = 1 + 0.2 * np.sin(2 * np.pi * np.arange(weeks + ahead) / 52)
    level = random.uniform(5_000, 50_000, stores)[:, None]
    sold = level * season * (1 + promo) * ~closed * np.exp(0.05 * random.standard_normal(shape))
    first = date(2022, 1, 7)
    dates = [first + timedelta(weeks=week) for week in range(weeks + ahead)]
    pl.DataFrame(
        {
            "Store": np.repeat(np.arange(1, stores + 1), weeks + ahead),
            "Date": dates * stores,
            "Weekly_Sales": pl.Series(sold.ravel().round(2)),
            "Promo": promo.ravel().astype(int),
            "OpenDays": np.where(closed, 0, 6).ravel(),
        }
    ).with_columns(
        Weekly_Sales=pl.when(pl.col("Date") < dates[weeks]).then("Weekly_Sales")
    ).write_csv(path)  # fmt: skip
    return dates[weeks - 1 - 8]


def test_planned_promotions_and_closures_halve_the_error(tmp_path: Path) -> None:
    """Promotions double sales and closed weeks have none; with `--planned` the error is at most half."""
    cutoff = promoted(tmp_path / "sales.csv")
    error = {}
    declared = ("--planned", "Promo,OpenDays", "--open-days", "OpenDays")
    for name, planned in (("without", ("--skip-bad-rows",)), ("with", declared)):  # the rows without sales are bad
        work, raw = tmp_path / name, tmp_path / f"{name}-raw"
        done = salescast("data", "import", "--sales", str(tmp_path / "sales.csv"), "--out", str(raw), *planned)
        assert done.returncode == 0, done.stderr
        done = salescast(
            "backtest", "--data", str(raw), "--workdir", str(work), "--cutoffs", str(cutoff), "--json",
            MLFLOW_TRACKING_URI="off", NUM_EPOCHS="8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        error[name] = {row["model"]: row["wmape"] for row in json.loads(done.stdout)}["salescast"]
    assert error["with"] <= error["without"] / 2, error
