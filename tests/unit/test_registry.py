"""The champion rule, and the registry of a real MLflow store."""

from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient

from salescast import registry
from salescast.config import Workdir, settings
from salescast.schema import MODEL_NAME

EARLY, LATE = date(2024, 1, 5), date(2024, 4, 5)


def backtest(**errors: dict[date, float]) -> pl.DataFrame:
    """Two rows a cutoff and model, y = 100, forecast off by the error given."""
    rows = [
        (store, 1, cutoff, 1, cutoff, 100.0, 100.0 + error, 90.0, 110.0, model)
        for model, by_cutoff in errors.items()
        for cutoff, error in by_cutoff.items()
        for store in (1, 2)
    ]
    columns = ["store_id", "dept_id", "cutoff", "horizon", "week", "y", "yhat", "p10", "p90", "model"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_a_model_that_beats_every_baseline_everywhere_becomes_champion() -> None:
    verdict = registry.judge(backtest(ours={EARLY: 1, LATE: 2}, naive={EARLY: 2, LATE: 3}), "ours", None)
    reason = "beats every baseline, pooled, at every cutoff and in the peak weeks; there was no champion"
    assert verdict == registry.Verdict(True, reason)


@pytest.mark.parametrize(
    ("ours", "naive", "reason"),
    [
        ({EARLY: 5, LATE: 1}, {EARLY: 2, LATE: 2}, "pooled: WMAPE 3.00% does not beat naive with 2.00%"),
        ({EARLY: 3, LATE: 1}, {EARLY: 2, LATE: 9}, "at cutoff 2024-01-05: WMAPE 3.00% does not beat naive with 2.00%"),
        ({EARLY: 2, LATE: 2}, {EARLY: 2, LATE: 2}, "pooled: WMAPE 2.00% does not beat naive with 2.00%"),
    ],
)
def test_losing_to_a_baseline_anywhere_is_no_championship(ours: dict, naive: dict, reason: str) -> None:
    assert registry.judge(backtest(ours=ours, naive=naive), "ours", None) == registry.Verdict(False, reason)


def test_the_peak_weeks_must_be_won_too() -> None:
    """Week 2 sells 30 % more than the usual week; weeks 0 and 1 make up for it at the cutoff and pooled."""
    weeks = [EARLY + timedelta(weeks=k) for k in range(3)]
    rows = [
        (1, 1, EARLY, k + 1, weeks[k], sold, sold + error[k], 0.0, 999.0, model)
        for model, error in (("ours", (1, 1, 9)), ("naive", (8, 8, 5)))
        for k, sold in enumerate((100.0, 102.0, 130.0))
    ]
    test = pl.DataFrame(rows, schema=backtest(ours={EARLY: 1}).columns, orient="row")
    assert registry.judge(test, "ours", None) == registry.Verdict(
        False, "in the peak weeks: WMAPE 6.92% does not beat naive with 3.85%"
    )
    flat = test.with_columns(pl.col("y", "yhat") - pl.when(pl.col("horizon") == 3).then(10.0).otherwise(0.0))
    assert registry.judge(flat, "ours", None).champion, "18 % more is no peak"


def test_the_champion_must_be_beaten_at_every_cutoff() -> None:
    new = backtest(ours={EARLY: 1, LATE: 4}, naive={EARLY: 9, LATE: 9})
    verdict = registry.judge(new, "ours", backtest(ours={EARLY: 4, LATE: 3}))
    assert verdict == registry.Verdict(
        False, f"at cutoff {LATE}: WMAPE 4.00% does not beat the champion with 3.00%, on the same rows"
    )


@pytest.mark.parametrize(("old", "champion"), [(4.0, True), (3.0, False), (2.0, False)])
def test_the_champion_is_compared_on_the_rows_both_have(old: float, champion: bool) -> None:
    # The old champion was never tested at LATE, where the new model is bad.
    before = backtest(ours={EARLY: old})
    verdict = registry.judge(backtest(ours={EARLY: 3, LATE: 8}, naive={EARLY: 9, LATE: 9}), "ours", before)
    assert verdict.champion is champion
    said = "against" if champion else "does not beat the champion with"
    assert f"WMAPE 3.00% {said} {old / 100:.2%}" in verdict.reason
    assert verdict.reason.endswith("on the same rows")


def test_a_champion_that_was_tested_elsewhere_gives_way() -> None:
    verdict = registry.judge(backtest(ours={LATE: 3}, naive={LATE: 9}), "ours", backtest(ours={EARLY: 1}))
    assert verdict.champion and "cannot be compared" in verdict.reason


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workdir:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings.cache_clear()
    return Workdir(tmp_path)


def run_of(work: Workdir) -> str:
    client = MlflowClient(tracking_uri=work.tracking_uri)
    found = client.get_experiment_by_name("test")
    number = found.experiment_id if found else client.create_experiment("test", str(work.artifacts))
    return str(client.create_run(number).info.run_id)


def test_versions_and_alias_in_the_registry(work: Workdir) -> None:
    client = MlflowClient(tracking_uri=work.tracking_uri)
    good, bad = backtest(ours={EARLY: 2}, naive={EARLY: 5}), backtest(ours={EARLY: 3}, naive={EARLY: 5})
    first = registry.register(work, run_of(work), "digest-1", good, "ours")
    assert (first.version, first.champion) == (1, True)

    again = registry.register(work, run_of(work), "digest-1", good, "ours")
    assert again.version == 1 and again.champion
    assert len(client.search_model_versions(f"name='{MODEL_NAME}'")) == 1, "the same bundle is the same version"

    worse = registry.register(work, run_of(work), "digest-2", bad, "ours")
    assert (worse.version, worse.champion) == (2, False)
    assert client.get_model_version_by_alias(MODEL_NAME, registry.CHAMPION).version == 1

    best = registry.register(work, run_of(work), "digest-3", backtest(ours={EARLY: 1}, naive={EARLY: 5}), "ours")
    assert (best.version, best.champion) == (3, True)
    champion = client.get_model_version_by_alias(MODEL_NAME, registry.CHAMPION)
    assert champion.version == 3 and champion.tags["verdict"] == best.reason
    metrics = client.get_run(champion.run_id).data.metrics
    assert metrics["backtest_wmape"] == pytest.approx(0.01)
    curve = client.get_metric_history(champion.run_id, "backtest_by_horizon_wmape")
    assert [(point.step, point.value) for point in curve] == [(1, pytest.approx(0.01))]
    files = {file.path for file in client.list_artifacts(champion.run_id)}
    assert files >= {"backtest.parquet", "backtest_scores.csv", "backtest_scores_by_dept_id.csv"}
