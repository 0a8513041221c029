"""Monitoring: measures against plain loops, and through files and MLflow."""

import math
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from salescast import schema
from salescast.data import dataset
from salescast.errors import UserError
from salescast.pipeline.monitor import Limits, compare_with_limits, default_wmape, matched, monitor
from salescast.runtime import parquet
from salescast.workdir import Workdir

FIRST = date(2024, 5, 3)
FINE = Limits(wmape=1e9, bias=1e9, coverage=0.0)


def forecasts(rows: list[tuple[int, int, float | None]]) -> pl.DataFrame:
    """(store, week number, forecast) with p10 and p90 at -10 and +10."""
    return pl.DataFrame(
        [
            (s, 1, FIRST + timedelta(weeks=w), w + 1, f, None if f is None else f - 10, None if f is None else f + 10)
            for s, w, f in rows
        ],
        schema={**schema.KEY_TYPES, "week": pl.Date, "horizon": pl.Int32, "forecast": pl.Float64, "p10": pl.Float64,
                "p90": pl.Float64},
        orient="row",
    )  # fmt: skip


def sales(rows: dict[tuple[int, int], float]) -> pl.DataFrame:
    return pl.DataFrame(
        [(s, 1, FIRST + timedelta(weeks=w), y) for (s, w), y in rows.items()], schema=schema.RAW_SALES, orient="row"
    )


given_rows = st.dictionaries(
    st.tuples(st.integers(1, 4), st.integers(0, 5)), st.integers(-100, 100).map(float), min_size=1
)


@given(given_rows, given_rows)
def test_the_measures_by_week_are_those_of_a_loop(made: dict, seen: dict) -> None:
    pairs = matched(forecasts([(s, w, f) for (s, w), f in made.items()]), sales(seen))
    both = sorted(made.keys() & seen.keys(), key=lambda key: key[1])
    assert pairs.height == len(both)
    if not both:
        return
    report = compare_with_limits(pairs, FINE)
    for week, rows, wmape, bias, coverage in report.by_week.iter_rows():
        errors = [(made[k] - seen[k], seen[k]) for k in both if FIRST + timedelta(weeks=k[1]) == week]
        total = sum(abs(y) for _, y in errors)
        assert rows == len(errors)
        assert coverage == pytest.approx(sum(abs(e) <= 10 for e, _ in errors) / rows)
        if total:
            assert wmape == pytest.approx(sum(abs(e) for e, _ in errors) / total)
            assert bias == pytest.approx(sum(e for e, _ in errors) / total, abs=1e-9)


def test_only_the_last_weeks_count_and_every_exceeded_limit_is_named() -> None:
    good = {(1, w): 100.0 for w in range(4)}
    bad = {(1, w): 100.0 for w in range(4, 6)}
    pairs = matched(forecasts([(1, w, 101.0 if w < 4 else 150.0) for w in range(6)]), sales(good | bad))
    assert compare_with_limits(pairs.filter(pl.col("horizon") <= 4), Limits(0.05)).beyond == ()
    assert compare_with_limits(pairs, Limits(0.2)).recent["wmape"] == pytest.approx((0.01 * 2 + 0.5 * 2) / 4)
    assert compare_with_limits(pairs, Limits(0.2, weeks=2)).beyond == (
        "WMAPE 50.00% is above 20.00%",
        "bias +50.00% is beyond 10.00%",
        "coverage 0.00% is below 60.00%",
    )


def test_weeks_with_zero_sales_only_exceed_every_limit() -> None:
    """WMAPE is not defined there; an undefined measure exceeds its limit."""
    pairs = matched(forecasts([(1, 0, 5.0)]), sales({(1, 0): 0.0}))
    report = compare_with_limits(pairs, Limits(0.5))
    assert not math.isfinite(report.recent["wmape"]) and len(report.beyond) == 2


@pytest.fixture
def work(tmp_path: Path) -> Workdir:
    """A dataset of 70 weeks, and forecasts of two origins that end with it."""
    work = Workdir(tmp_path / "work")
    meta = dataset.generate(work.raw, 2, 2, 70, 1)
    table = pl.read_parquet(work.raw / dataset.SALES)
    for back in (3, 1):
        first = meta.last_week - timedelta(weeks=back - 1)
        ahead = pl.DataFrame({"horizon": [1, 2, 3, 4]}, schema={"horizon": pl.Int32})
        rows = table.select(schema.KEYS).unique().join(ahead, how="cross")
        rows = rows.with_columns(week=pl.lit(first) + pl.duration(weeks=pl.col("horizon") - 1), forecast=pl.lit(1e4))
        rows = rows.with_columns(p10=pl.lit(0.0), p90=pl.lit(1e9))
        parquet.write(rows, work.kept_forecasts / f"{first}.parquet")
    return work


def test_every_stored_forecast_is_compared_and_logged_by_week(work: Workdir) -> None:
    meta = dataset.Dataset.read(work.raw)
    report = monitor(work, work.raw, [], Limits(0.001))
    weeks = [meta.last_week - timedelta(weeks=k) for k in (2, 1, 0)]
    assert report.by_week.select("week", "rows").rows() == [(weeks[0], 4), (weeks[1], 4), (weeks[2], 8)]
    assert len(report.beyond) == 2 and report.run_id
    client = MlflowClient(tracking_uri=work.tracking_uri)
    history = client.get_metric_history(report.run_id, "monitor_wmape")
    assert [metric.step for metric in history] == [week.toordinal() for week in weeks]
    assert [metric.value for metric in history] == pytest.approx(report.by_week["wmape"].to_list())
    run = client.get_run(report.run_id)
    assert {"monitor_bias", "monitor_coverage", "monitor_rows"} <= set(run.data.metrics)
    assert run.data.tags["beyond"].startswith("WMAPE") and run.info.status == "FINISHED"


def test_missing_forecasts_missing_sales_and_damaged_forecasts_are_named(work: Workdir, tmp_path: Path) -> None:
    message = r"no forecasts in .*other/forecasts; run `salescast forecast --all` or `salescast run` first"
    with pytest.raises(UserError, match=message):
        monitor(Workdir(tmp_path / "other"), work.raw, [], FINE)
    dataset.generate(tmp_path / "old", 2, 2, 60, 1)
    paths = sorted(work.kept_forecasts.glob("*"))
    with pytest.raises(UserError, match=r"the forecasts begin with .*, the sales in .*old end with .*: nothing to"):
        later = parquet.read(paths[1], "").with_columns(pl.col("week") + pl.duration(weeks=500))
        parquet.write(later, tmp_path / "later.parquet")
        monitor(work, tmp_path / "old", [tmp_path / "later.parquet"], FINE)
    paths[0].write_bytes(paths[0].read_bytes()[:-50])
    with pytest.raises(UserError, match=r"is damaged \(.*; give another --forecasts"):
        monitor(work, work.raw, [], FINE)
    with pytest.raises(UserError, match=r"backtest.parquet is missing; give --max-wmape, or run `salescast backtest`"):
        default_wmape(work)
