"""The promotion rule."""

import math
from datetime import date, timedelta

import polars as pl
import pytest

from salescast.evaluation.promotion import Promotion, decide

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


def test_a_model_that_beats_every_baseline_everywhere_is_promoted() -> None:
    decision = decide(backtest(ours={EARLY: 1, LATE: 2}, naive={EARLY: 2, LATE: 3}), "ours", None)
    reason = "beats every baseline, pooled, at every cutoff and in the peak weeks; there was no champion"
    assert decision == Promotion(True, reason)


@pytest.mark.parametrize(
    ("ours", "naive", "reason"),
    [
        ({EARLY: 5, LATE: 1}, {EARLY: 2, LATE: 2}, "pooled: WMAPE 3.00% does not beat naive with 2.00%"),
        ({EARLY: 3, LATE: 1}, {EARLY: 2, LATE: 9}, "at cutoff 2024-01-05: WMAPE 3.00% does not beat naive with 2.00%"),
        ({EARLY: 2, LATE: 2}, {EARLY: 2, LATE: 2}, "pooled: WMAPE 2.00% does not beat naive with 2.00%"),
    ],
)
def test_a_model_that_loses_to_a_baseline_anywhere_is_not_promoted(ours: dict, naive: dict, reason: str) -> None:
    assert decide(backtest(ours=ours, naive=naive), "ours", None) == Promotion(False, reason)


@pytest.mark.parametrize(
    ("ours", "naive", "reason"),
    [
        ({EARLY: 1}, {EARLY: 2, LATE: 9}, f"at cutoff {LATE}: no forecasts to compare"),
        ({EARLY: 1, LATE: math.nan}, {EARLY: 2}, "pooled: no forecasts to compare"),
        ({}, {EARLY: 2}, "pooled: no forecasts to compare"),
    ],
)
def test_a_model_without_forecasts_at_a_cutoff_is_not_promoted(ours: dict, naive: dict, reason: str) -> None:
    assert decide(backtest(ours=ours, naive=naive), "ours", None) == Promotion(False, reason)


def test_rows_without_sales_are_not_compared() -> None:
    new = backtest(ours={EARLY: 1, LATE: 1}, naive={EARLY: 9, LATE: 9})
    new = new.with_columns(y=pl.when(pl.col("cutoff") == EARLY).then("y"))
    decision = decide(new, "ours", backtest(ours={LATE: 3}))
    assert decision.promoted and "cannot be compared" in decision.reason


def test_a_model_must_win_in_the_peak_weeks() -> None:
    """Week 2 sells 30 % more than the usual week; weeks 0 and 1 compensate for it at the cutoff and pooled."""
    weeks = [EARLY + timedelta(weeks=k) for k in range(3)]
    rows = [
        (1, 1, EARLY, k + 1, weeks[k], sold, sold + error[k], 0.0, 999.0, model)
        for model, error in (("ours", (1, 1, 9)), ("naive", (8, 8, 5)))
        for k, sold in enumerate((100.0, 102.0, 130.0))
    ]
    test = pl.DataFrame(rows, schema=backtest(ours={EARLY: 1}).columns, orient="row")
    assert decide(test, "ours", None) == Promotion(
        False, "in the peak weeks: WMAPE 6.92% does not beat naive with 3.85%"
    )
    flat = test.with_columns(pl.col("y", "yhat") - pl.when(pl.col("horizon") == 3).then(10.0).otherwise(0.0))
    assert decide(flat, "ours", None).promoted, "18 % more is no peak"


def test_a_model_must_beat_the_champion_at_every_cutoff() -> None:
    new = backtest(ours={EARLY: 1, LATE: 4}, naive={EARLY: 9, LATE: 9})
    decision = decide(new, "ours", backtest(ours={EARLY: 4, LATE: 3}))
    assert decision == Promotion(
        False, f"at cutoff {LATE}: WMAPE 4.00% does not beat the champion with 3.00%, on the same rows"
    )


@pytest.mark.parametrize(("old", "promoted"), [(4.0, True), (3.0, False), (2.0, False)])
def test_the_champion_is_compared_on_common_rows(old: float, promoted: bool) -> None:
    # The champion has no rows at LATE, where the new model is bad.
    before = backtest(ours={EARLY: old})
    decision = decide(backtest(ours={EARLY: 3, LATE: 8}, naive={EARLY: 9, LATE: 9}), "ours", before)
    assert decision.promoted is promoted
    expected = "against" if promoted else "does not beat the champion with"
    assert f"WMAPE 3.00% {expected} {old / 100:.2%}" in decision.reason
    assert decision.reason.endswith("on the same rows")


def test_a_champion_tested_at_other_cutoffs_is_replaced() -> None:
    decision = decide(backtest(ours={LATE: 3}, naive={LATE: 9}), "ours", backtest(ours={EARLY: 1}))
    assert decision.promoted and "cannot be compared" in decision.reason
