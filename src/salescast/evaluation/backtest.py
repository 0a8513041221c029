"""Backtests: cutoffs, base rows, forecasts with actual sales, and permutation importance."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from salescast.errors import UserError
from salescast.evaluation.forecast_frames import backtest_frame
from salescast.evaluation.metrics import COLUMNS, scores
from salescast.schema import KEYS, LABEL, SEASON, TIMESTAMP

if TYPE_CHECKING:
    from salescast.model.bundle import Bundle, Forecast

QUARTER: Final = 13  # weeks


def quarterly_cutoffs(
    first: date, last: date, horizon: int, holdout_weeks: int, min_history: int, count: int = 4
) -> list[date]:
    """Up to `count` cutoffs, 13 weeks apart, in ascending order; the latest is `horizon` weeks before `last`.

    Each has a season, the held-out weeks and a horizon of history before it. With less history only the latest cutoff
    is returned. Raises UserError when there is too little history for that one.
    """
    latest = last - timedelta(weeks=horizon)
    if latest <= first + timedelta(weeks=horizon) or latest < first + timedelta(weeks=min_history):
        raise UserError(
            f"{(last - first).days // 7 + 1} weeks of sales are too few to test forecasts {horizon} weeks ahead; "
            "bring more history or choose a smaller --horizon"
        )
    earliest = first + timedelta(weeks=SEASON + holdout_weeks + horizon)
    steps = [latest - timedelta(weeks=QUARTER * k) for k in range(count)]
    return sorted(cutoff for cutoff in steps if cutoff >= earliest) or [latest]


def model_frame(forecast: "Forecast", rows: pl.DataFrame, model: str) -> pl.DataFrame:
    """The forecasts from `rows` (one per series) as a backtest frame."""
    return backtest_frame(
        rows,
        forecast.weeks,
        model,
        yhat=forecast.at(0.5),
        p10=forecast.at(0.1),
        p90=forecast.at(0.9),
        mean=forecast.mean,
    )


def base_rows(training: pl.LazyFrame, cutoff: date) -> pl.DataFrame:
    """The rows of the training set from which the weeks after `cutoff` are forecast, one per series.

    Raises UserError when there are none.
    """
    base = datetime.combine(cutoff + timedelta(weeks=1), time(), UTC)
    rows = training.filter(pl.col(TIMESTAMP) == base).collect()
    if rows.is_empty():
        weeks = (
            training.select(first=pl.col(TIMESTAMP).min().dt.date(), last=pl.col(TIMESTAMP).max().dt.date())
            .collect()
            .row(0)
        )
        raise UserError(
            f"cutoff {cutoff} is not a week of the data, which run from {weeks[0]} to {weeks[1]} in steps of 7 days"
        )
    return rows


def with_actuals(forecasts: pl.DataFrame, training: pl.LazyFrame) -> pl.DataFrame:
    """Join the actual sales (`y`, null where nothing was observed); returns the columns COLUMNS."""
    actuals = training.select(*KEYS, week=pl.col(TIMESTAMP).dt.date(), y=pl.col(LABEL).cast(pl.Float64)).collect()
    return forecasts.join(actuals, on=[*KEYS, "week"], how="left", maintain_order="left").select(COLUMNS)


def importance(
    bundles: Mapping[date, "Bundle"], training: pl.LazyFrame, groups: Mapping[str, Sequence[str]], seed: int
) -> pl.DataFrame:
    """Permutation importance (Breiman 2001): WMAPE on the backtest's rows with one group's columns shuffled together.

    All columns of a group are shuffled with the same permutation, which keeps the relations between them.
    Returns group, wmape, increase (in WMAPE over the unshuffled rows), largest first.
    """
    results: dict[str, list[pl.DataFrame]] = {name: [] for name in ("", *groups)}
    for cutoff, bundle in bundles.items():
        rows = base_rows(training, cutoff)
        order = np.random.default_rng(seed).permutation(rows.height)
        for name, frames in results.items():
            shuffled = rows.with_columns(
                rows[column][order] for column in groups.get(name, ()) if column in rows.columns
            )
            frames.append(model_frame(bundle.predict(shuffled), rows, name))
    table = scores(with_actuals(pl.concat(frame for frames in results.values() for frame in frames), training))
    unshuffled = table.filter(pl.col("model") == "")["wmape"].item()
    return (
        table.filter(pl.col("model") != "")
        .select(group="model", wmape="wmape", increase=pl.col("wmape") - unshuffled)
        .sort("increase", "group", descending=[True, False])
    )
