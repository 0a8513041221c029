"""Baselines: forecasts without a model, which every model has to beat.

naive                    the last observed sales
mean_4                   mean of what was observed in the last 4 weeks
seasonal_naive           sales of the same week last year (52 weeks earlier)
growth_seasonal_naive    that, times the sales of the last 8 weeks over those of the same weeks a year earlier

A missing week of last year is replaced by the mean of the last 13 weeks. A method without any observation in its weeks
uses the last observed sales, so that every series gets a forecast.
"""

from datetime import date
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.evaluation.forecast_frames import backtest_frame
from salescast.features.history import Floats, History, dense, mean, paired, ratio
from salescast.schema import KEYS, LABEL, SEASON, TIMESTAMP

NAMES: Final = ("naive", "mean_4", "seasonal_naive", "growth_seasonal_naive")
GROWTH_WEEKS: Final = 8
GROWTH_BOUNDS: Final = (0.3, 3.0)
TRIALS: Final = 13  # earlier cutoffs whose errors give the intervals
LEVELS: Final = (0.1, 0.9)


def point_forecasts(sales: Floats, horizon: int) -> dict[str, Floats]:
    """Forecasts [n, horizon] by name, of the weeks after `sales` [n, T] (NaN = not observed)."""
    n, weeks = sales.shape
    seen = np.isfinite(sales)
    last = sales[np.arange(n), weeks - 1 - np.argmax(seen[:, ::-1], axis=1)]
    ahead = np.full((n, horizon), np.nan)
    known = sales[:, max(weeks - SEASON, 0) : max(weeks - SEASON + horizon, 0)]
    # With less than a season of history the first weeks have no last year.
    ahead[:, horizon - known.shape[1] :] = known
    now, ago = (np.nansum(part[:, -GROWTH_WEEKS:], axis=1) for part in paired(sales))
    growth = np.where((now > 0) & (ago > 0), np.clip(np.nan_to_num(ratio(now, ago)), *GROWTH_BOUNDS), 1.0)

    def or_last(values: Floats) -> Floats:
        return np.where(np.isfinite(values), values, last)

    level = or_last(mean(sales[:, -13:]))[:, None]
    return {
        "naive": np.repeat(last[:, None], horizon, axis=1),
        "mean_4": np.repeat(or_last(mean(sales[:, -4:]))[:, None], horizon, axis=1),
        "seasonal_naive": np.where(np.isfinite(ahead), ahead, level),
        "growth_seasonal_naive": np.where(np.isfinite(ahead), ahead * growth[:, None], level),
    }


def error_quantiles(sales: Floats, horizon: int) -> dict[str, Floats]:
    """The 0.1 and 0.9 quantiles of each baseline's errors divided by the scale of the series, [2, horizon].

    Errors at the TRIALS latest cutoffs whose weeks are all in the past, pooled over series; 0 without errors.
    """
    weeks = sales.shape[1]
    errors: dict[str, list[Floats]] = {name: [] for name in NAMES}
    for cutoff in range(max(weeks - horizon - TRIALS + 1, 1), weeks - horizon + 1):
        scale = _scale(sales[:, :cutoff])
        for name, values in point_forecasts(sales[:, :cutoff], horizon).items():
            errors[name].append((sales[:, cutoff : cutoff + horizon] - values) / scale[:, None])
    return {
        name: _quantiles(np.concatenate(parts)) if parts else np.zeros((2, horizon)) for name, parts in errors.items()
    }


def _scale(sales: Floats) -> Floats:
    """Mean |y| of the last year, NaN where it is 0 or nothing was observed."""
    scale = mean(np.abs(sales[:, -SEASON:]))
    return np.where(scale > 0, scale, np.nan)


def _quantiles(errors: Floats) -> Floats:
    usable = np.isfinite(errors)
    return np.stack(
        [
            np.quantile(errors[usable[:, h], h], LEVELS) if usable[:, h].any() else np.zeros(2)
            for h in range(errors.shape[1])
        ],
        axis=1,
    )


def observed_sales(training: pl.LazyFrame, cutoff: date) -> History:
    """The series observed by `cutoff`, with their sales up to it.

    `training` holds keys, event_timestamp and weekly_sales. Raises UserError when nothing was observed by the cutoff.
    """
    sales = (
        training.select(*KEYS, pl.col(TIMESTAMP).dt.date().alias("week"), LABEL)
        .filter(pl.col(LABEL).is_not_null() & (pl.col("week") <= cutoff))
        .collect()
    )
    if sales.is_empty():
        raise UserError(f"no sales are observed up to the cutoff {cutoff}; choose a later one")
    return dense(sales, last=cutoff)


def forecasts(training: pl.LazyFrame, cutoff: date, horizon: int) -> pl.DataFrame:
    """Every baseline for the `horizon` weeks after `cutoff`, of every series observed by then, as a backtest frame.

    `training` as for `observed_sales`.
    """
    history = observed_sales(training, cutoff)
    weeks = target_weeks(history, horizon)
    scale = np.nan_to_num(_scale(history.sales))[:, None]
    errors = error_quantiles(history.sales, horizon)
    return pl.concat(
        backtest_frame(
            history.series,
            weeks,
            name,
            yhat=values,
            p10=values + errors[name][0] * scale,
            p90=values + errors[name][1] * scale,
        )
        for name, values in point_forecasts(history.sales, horizon).items()
    )


def target_weeks(history: History, horizon: int) -> NDArray[np.datetime64]:
    """The weeks after a history for each of its series, datetime64[D] [n, horizon]."""
    n, weeks = history.sales.shape
    after = history.first_week + (weeks + np.arange(horizon)) * np.timedelta64(7, "D")
    return np.tile(after, (n, 1))
