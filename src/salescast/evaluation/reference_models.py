"""Published methods to compare the model with; their packages are in the extra `bench`.

lightgbm    gradient boosting on the inputs and target of our model, one model per quantile
mstl        season (52) and trend by loess, exponential smoothing of the rest: statsforecast's MSTL with ETS
svd         the same on each department's rank-8 reconstruction, the winner of Kaggle's Walmart competition

They use the same data as our model: sales up to the cutoff and the calendar after it. `mstl` and `svd` need more than a
year of a series; younger series get the growth-adjusted seasonal naive, so that all methods forecast the same rows.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast import retail_calendar
from salescast.errors import UserError
from salescast.evaluation import baselines
from salescast.evaluation.forecast_frames import backtest_frame
from salescast.features.history import RANK, Floats, fill_gaps
from salescast.model import inputs
from salescast.model.arrays import LEVEL
from salescast.runtime import extras
from salescast.schema import KEYS, LABEL, SEASON, TIMESTAMP, TRAINING_SERVICE_SEASONAL

PACKAGES: Final = {"lightgbm": extras.LIGHTGBM, "mstl": extras.STATSFORECAST, "svd": extras.STATSFORECAST}
LEVELS: Final = (0.1, 0.5, 0.9)
ROUNDS: Final = 200
BOOSTING: Final[dict[str, Any]] = {
    "objective": "quantile",
    "learning_rate": 0.05,
    "num_leaves": 63,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.5,
    "bagging_freq": 1,
    "verbose": -1,
}


def check(names: Sequence[str], service: str = TRAINING_SERVICE_SEASONAL) -> None:
    """Raise UserError for an unknown method, a missing package, or a method that needs another feature service."""
    for name in names:
        if name == "lightgbm" and service != TRAINING_SERVICE_SEASONAL:
            raise UserError(f"lightgbm uses our inputs of {TRAINING_SERVICE_SEASONAL}; leave --feature-service out")
        if name not in PACKAGES:
            raise UserError(f"--with knows {', '.join(PACKAGES)}, got {name!r}")
        extras.require(PACKAGES[name])


def forecasts(name: str, training: pl.LazyFrame, cutoff: date, horizon: int, country: str) -> pl.DataFrame:
    """The method's forecasts of the weeks after `cutoff` as a backtest frame.

    `training` is the training set of the seasonal service.
    """
    if name == "lightgbm":
        return _boosted(training, cutoff, horizon, country)
    return _smoothed(training, cutoff, horizon, name)


def _boosted(training: pl.LazyFrame, cutoff: date, horizon: int, country: str) -> pl.DataFrame:
    frame = training.filter(pl.col(TIMESTAMP).dt.date() <= cutoff + timedelta(weeks=1)).collect()
    built = inputs.build(frame, TRAINING_SERVICE_SEASONAL, horizon, retail_calendar.calendar(country))
    keys = frame.select(*KEYS, week=pl.col(TIMESTAMP).dt.date())
    sold = keys.with_columns(frame[LABEL])
    upcoming = (keys["week"] == cutoff + timedelta(weeks=1)).to_numpy()
    back = (np.datetime64(cutoff) - keys["week"].to_numpy()).astype("timedelta64[D]").astype(int) // 7
    numbers = keys.select(KEYS).to_numpy()
    x, target, weight, ahead = [], [], [], []
    for h in range(horizon):
        wanted = keys.with_columns(pl.col("week") + timedelta(weeks=h))
        y = wanted.join(sold, on=[*KEYS, "week"], how="left", maintain_order="left")[LABEL].to_numpy()
        known = np.isfinite(y) & (back >= h) & (back % 2 == 0)  # every second base week: the others add little
        seasonal = built.anchor_kind[:, h] < LEVEL
        known &= seasonal | (not (known & seasonal).any())
        columns = np.concatenate([built.base, built.step[:, h], numbers], axis=1)
        x.append(columns[known])
        target.append(((y - built.anchor[:, h]) / built.unit[:, h])[known])
        weight.append(built.unit[known, h])
        ahead.append(columns[upcoming])
    answers = _boost(*(np.concatenate(part) for part in (x, target, weight, ahead)))
    out = answers.reshape(horizon, -1, len(LEVELS)).transpose(1, 0, 2)
    out = built.anchor[upcoming, :, None] + built.unit[upcoming, :, None] * out
    return _quantile_frame(frame.filter(upcoming), built.weeks[upcoming], "lightgbm", out)


def _boost(x: Floats, target: Floats, weight: Floats, ahead: Floats) -> Floats:
    """Quantiles [rows of `ahead`, LEVELS] of the target."""
    import lightgbm

    stores_and_departments = [x.shape[1] - 2, x.shape[1] - 1]
    quantiles = []
    for level in LEVELS:
        rows = lightgbm.Dataset(x, target, weight=weight, categorical_feature=stores_and_departments)
        quantiles.append(lightgbm.train(BOOSTING | {"alpha": level}, rows, num_boost_round=ROUNDS).predict(ahead))
    return np.sort(np.stack(quantiles, axis=1), axis=1)


def _smoothed(training: pl.LazyFrame, cutoff: date, horizon: int, name: str) -> pl.DataFrame:
    from statsforecast.models import MSTL, AutoETS

    observed = baselines.observed_sales(training, cutoff)
    series, history = observed.series, observed.sales.copy()
    for dept in series["dept_id"].unique():
        rows = (series["dept_id"] == dept).to_numpy()
        history[rows] = fill_gaps(observed.sales[rows])
        complete = rows & np.isfinite(history).all(axis=1)
        if name == "svd" and complete.sum() > RANK:
            left, size, right = np.linalg.svd(history[complete], full_matrices=False)
            history[complete] = left[:, :RANK] * size[:RANK] @ right[:RANK]
    simple = baselines.forecasts(training, cutoff, horizon).filter(pl.col("model") == "growth_seasonal_naive")
    out = simple.select("p10", "yhat", "p90").to_numpy().reshape(series.height, horizon, len(LEVELS)).copy()
    for i, values in enumerate(history):
        gaps = np.flatnonzero(np.isnan(values))
        recent = values[gaps[-1] + 1 :] if len(gaps) else values
        if len(recent) > SEASON + horizon:
            model = MSTL(season_length=SEASON, trend_forecaster=AutoETS(model="ZNN"))
            answer = model.forecast(recent, horizon, level=[80])
            out[i] = np.stack([answer["lo-80"], answer["mean"], answer["hi-80"]], axis=1)
    return _quantile_frame(series, baselines.target_weeks(observed, horizon), name, out)


def _quantile_frame(keys: pl.DataFrame, weeks: NDArray[np.datetime64], name: str, quantiles: Floats) -> pl.DataFrame:
    """Quantiles [n, H, LEVELS] as a backtest frame."""
    p10, yhat, p90 = np.moveaxis(quantiles, 2, 0)
    return backtest_frame(keys, weeks, name, yhat=yhat, p10=p10, p90=p90)
