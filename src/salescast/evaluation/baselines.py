"""Forecasts that need no model: what every model has to beat.

naive                    the last observed sales
mean_4                   mean of what was observed in the last 4 weeks
seasonal_naive           sales of the same week last year (52 weeks earlier)
growth_seasonal_naive    that, times the sales of the last 8 weeks over those of the same weeks a year earlier

Where last year's week is not known, the mean of the last 13 weeks stands in; where nothing was observed in a method's
weeks, the last observed sales do, so that every series gets a forecast.
"""

from datetime import date, datetime, time, timedelta
from typing import Final

import numpy as np
import polars as pl

from salescast.errors import UserError
from salescast.features.history import Floats, Ints, mean, paired, ratio
from salescast.schema import KEYS, LABEL, SEASON, TIMESTAMP

NAMES: Final = ("naive", "mean_4", "seasonal_naive", "growth_seasonal_naive")
GROWTH_WEEKS: Final = 8
GROWTH_BOUNDS: Final = (0.3, 3.0)
TRIALS: Final = 13  # earlier cutoffs whose errors make the intervals
LEVELS: Final = (0.1, 0.9)


def points(sales: Floats, horizon: int) -> dict[str, Floats]:
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


def intervals(sales: Floats, horizon: int) -> dict[str, Floats]:
    """For each baseline the 0.1 and 0.9 quantiles of its errors over the series' scale, [2, horizon].

    Errors of the TRIALS latest cutoffs whose weeks are all observed by now, pooled over series; 0 where there are none.
    """
    weeks = sales.shape[1]
    errors: dict[str, list[Floats]] = {name: [] for name in NAMES}
    for cutoff in range(max(weeks - horizon - TRIALS + 1, 1), weeks - horizon + 1):
        scale = _scale(sales[:, :cutoff])
        for name, values in points(sales[:, :cutoff], horizon).items():
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


def observed(training: pl.LazyFrame, cutoff: date) -> tuple[pl.DataFrame, Floats]:
    """Keys of every series observed by `cutoff`, and its sales [n, T] up to it (NaN = not observed).

    `training` holds keys, event_timestamp and weekly_sales. Raises UserError when nothing was observed by the cutoff.
    """
    limit = datetime.combine(cutoff, time())
    seen = (
        training.select(*KEYS, pl.col(TIMESTAMP).dt.replace_time_zone(None).alias("week"), LABEL)
        .filter(pl.col(LABEL).is_not_null() & (pl.col("week") <= limit))
        .sort(*KEYS, "week")
        .collect()
    )
    if seen.is_empty():
        raise UserError(f"no sales are observed up to the cutoff {cutoff}; choose a later one")
    series = seen.select(KEYS).unique(maintain_order=True)
    row = seen.select(pl.struct(KEYS).rle_id()).to_series().to_numpy()
    back = (pl.lit(limit) - pl.col("week")).dt.total_days() // 7
    place = seen.select(back).to_series().to_numpy()
    sales = np.full((series.height, int(place.max()) + 1), np.nan)
    sales[row, sales.shape[1] - 1 - place] = seen[LABEL].to_numpy()
    return series, sales


def forecasts(training: pl.LazyFrame, cutoff: date, horizon: int) -> pl.DataFrame:
    """Every baseline for the `horizon` weeks after `cutoff`, of every series observed by then, in long form.

    `training` as for `observed`. Returns keys, cutoff, horizon (1 = the first week), week, yhat, p10, p90, model.
    """
    series, sales = observed(training, cutoff)
    scale = np.nan_to_num(_scale(sales))[:, None]
    spread = intervals(sales, horizon)
    return pl.concat(
        long(series, cutoff, name, values, values + spread[name][0] * scale, values + spread[name][1] * scale)
        for name, values in points(sales, horizon).items()
    )


def long(series: pl.DataFrame, cutoff: date, name: str, yhat: Floats, p10: Floats, p90: Floats) -> pl.DataFrame:
    """Forecasts [n, horizon] of the series in the form that `forecasts` returns."""
    n, horizon = yhat.shape
    ahead: Ints = np.tile(np.arange(1, horizon + 1), n)
    return (
        series[np.repeat(np.arange(n), horizon)]
        .with_columns(pl.lit(cutoff).alias("cutoff"), pl.Series("horizon", ahead, dtype=pl.Int32))
        .with_columns((pl.col("cutoff") + pl.col("horizon") * timedelta(weeks=1)).alias("week"))
        .with_columns(
            pl.Series("yhat", yhat.reshape(-1)),
            pl.Series("p10", p10.reshape(-1)),
            pl.Series("p90", p90.reshape(-1)),
            pl.lit(name).alias("model"),
        )
    )
