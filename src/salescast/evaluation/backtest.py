"""Backtest frames: forecasts beside actual sales, cutoffs, and permutation importance."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from salescast.errors import UserError
from salescast.schema import KEYS, LABEL, SEASON, TIMESTAMP

if TYPE_CHECKING:
    from salescast.model.bundle import Bundle, Forecast
from salescast.evaluation.metrics import COLUMNS, scores

QUARTER: Final = 13  # weeks


def quarterly_cutoffs(
    first: date, last: date, horizon: int, holdout_weeks: int, min_history: int, count: int = 4
) -> list[date]:
    """Up to `count` cutoffs 13 weeks apart, the latest one `horizon` weeks before `last`, the earliest first.

    Only cutoffs with a season, the held-out weeks and a horizon of history before them; with less history than that,
    one cutoff. Raises UserError when not even that leaves anything to learn from.
    """
    latest = last - timedelta(weeks=horizon)
    if latest <= first + timedelta(weeks=horizon) or latest < first + timedelta(weeks=min_history):
        raise UserError(
            f"{(last - first).days // 7 + 1} weeks of sales are too few to test forecasts {horizon} weeks ahead; "
            "bring more history or choose a smaller --horizon"
        )
    enough = first + timedelta(weeks=SEASON + holdout_weeks + horizon)
    steps = [latest - timedelta(weeks=QUARTER * k) for k in range(count)]
    return sorted(cutoff for cutoff in steps if cutoff >= enough) or [latest]


def frame_of(forecast: "Forecast", rows: pl.DataFrame, model: str) -> pl.DataFrame:
    """Forecasts in long form: keys, cutoff (the week before the row's), horizon (1 = first week), week, quantiles."""
    n, horizon = forecast.weeks.shape
    return pl.DataFrame(
        {
            **{key: np.repeat(rows[key].to_numpy(), horizon) for key in KEYS},
            "cutoff": np.repeat(rows[TIMESTAMP].dt.date().to_numpy(), horizon),
            "horizon": np.tile(np.arange(1, horizon + 1, dtype=np.int32), n),
            "week": forecast.weeks.reshape(-1),
            "yhat": forecast.at(0.5).reshape(-1),
            "p10": forecast.at(0.1).reshape(-1),
            "p90": forecast.at(0.9).reshape(-1),
        }
    ).with_columns(pl.col("cutoff") - timedelta(weeks=1), pl.lit(model).alias("model"))


def base_rows(training: pl.LazyFrame, cutoff: date) -> pl.DataFrame:
    """The rows of the training set from which the weeks after `cutoff` are forecast: one a series."""
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
    """Join what was sold (`y`, null where nothing was observed) and bring the columns into order."""
    actuals = training.select(*KEYS, week=pl.col(TIMESTAMP).dt.date(), y=pl.col(LABEL).cast(pl.Float64)).collect()
    return forecasts.join(actuals, on=[*KEYS, "week"], how="left", maintain_order="left").select(COLUMNS)


def importance(
    bundles: Mapping[date, "Bundle"], training: pl.LazyFrame, groups: Mapping[str, Sequence[str]], seed: int
) -> pl.DataFrame:
    """Permutation importance (Breiman 2001): WMAPE on the backtest's rows with one group's columns shuffled together.

    The columns of a group keep their common row, so their relation survives and only their tie to the series is cut.
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
            frames.append(frame_of(bundle.predict(shuffled), rows, name))
    table = scores(with_actuals(pl.concat(frame for frames in results.values() for frame in frames), training))
    whole = table.filter(pl.col("model") == "")["wmape"].item()
    return (
        table.filter(pl.col("model") != "")
        .select(group="model", wmape="wmape", increase=pl.col("wmape") - whole)
        .sort("increase", "group", descending=[True, False])
    )
