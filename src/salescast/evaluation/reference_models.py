"""Other people's methods to be measured beside ours, where their packages are installed (extra `bench`).

lightgbm    gradient boosting of our own inputs and target, one model a quantile
mstl        season (52) and trend by loess, exponential smoothing of the rest: statsforecast's MSTL with ETS
svd         the same on each department's rank-8 reconstruction, as won Kaggle's Walmart competition

They see what our model sees: sales up to the cutoff and the calendar after it. `mstl` and `svd` need more than a year
of a series; what is younger gets the growth-adjusted seasonal naive, so that every method is scored on the same rows.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import polars as pl

from salescast import retail_calendar
from salescast.errors import UserError
from salescast.evaluation import baselines
from salescast.features.history import RANK, Floats, fill_gaps
from salescast.model import inputs
from salescast.model.arrays import LEVEL
from salescast.schema import KEYS, LABEL, SEASON, TIMESTAMP, TRAINING_SERVICE_SEASONAL

PACKAGES: Final = {"lightgbm": "lightgbm", "mstl": "statsforecast", "svd": "statsforecast"}
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
    """Raise UserError for a method that is not known, lacks its package, or needs another feature service."""
    for name in names:
        if name == "lightgbm" and service != TRAINING_SERVICE_SEASONAL:
            raise UserError(f"lightgbm uses our inputs of {TRAINING_SERVICE_SEASONAL}; leave --feature-service out")
        if name not in PACKAGES:
            raise UserError(f"--with knows {', '.join(PACKAGES)}, got {name!r}")
        if find_spec(PACKAGES[name]) is None:
            raise UserError(f"{name} needs the package {PACKAGES[name]}; `pip install 'salescast[bench]'` brings it")


def forecasts(name: str, training: pl.LazyFrame, cutoff: date, horizon: int, country: str) -> pl.DataFrame:
    """The method's forecasts of the weeks after `cutoff`, as `baselines.forecasts` returns them.

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
        known = np.isfinite(y) & (back >= h) & (back % 2 == 0)  # every second base week: the others tell little more
        seasonal = built.fallback[:, h] < LEVEL
        known &= seasonal | (not (known & seasonal).any())
        columns = np.concatenate([built.base, built.step[:, h], numbers], axis=1)
        x.append(columns[known])
        target.append(((y - built.anchor[:, h]) / built.unit[:, h])[known])
        weight.append(built.unit[known, h])
        ahead.append(columns[upcoming])
    answers = _boost(*(np.concatenate(part) for part in (x, target, weight, ahead)))
    out = answers.reshape(horizon, -1, len(LEVELS)).transpose(1, 0, 2)
    out = built.anchor[upcoming, :, None] + built.unit[upcoming, :, None] * out
    return _long(frame.filter(upcoming), cutoff, "lightgbm", out)


def _boost(x: Floats, target: Floats, weight: Floats, ahead: Floats) -> Floats:
    """Quantiles [rows of `ahead`, LEVELS] of the target."""
    import lightgbm

    stores_and_departments = [x.shape[1] - 2, x.shape[1] - 1]
    found = []
    for level in LEVELS:
        rows = lightgbm.Dataset(x, target, weight=weight, categorical_feature=stores_and_departments)
        found.append(lightgbm.train(BOOSTING | {"alpha": level}, rows, num_boost_round=ROUNDS).predict(ahead))
    return np.sort(np.stack(found, axis=1), axis=1)


def _smoothed(training: pl.LazyFrame, cutoff: date, horizon: int, name: str) -> pl.DataFrame:
    from statsforecast.models import MSTL, AutoETS

    series, sales = baselines.observed(training, cutoff)
    history = sales.copy()
    for dept in series["dept_id"].unique():
        rows = (series["dept_id"] == dept).to_numpy()
        history[rows] = fill_gaps(sales[rows])
        whole = rows & np.isfinite(history).all(axis=1)
        if name == "svd" and whole.sum() > RANK:
            left, size, right = np.linalg.svd(history[whole], full_matrices=False)
            history[whole] = left[:, :RANK] * size[:RANK] @ right[:RANK]
    simple = baselines.forecasts(training, cutoff, horizon).filter(pl.col("model") == "growth_seasonal_naive")
    out = simple.select("p10", "yhat", "p90").to_numpy().reshape(len(sales), horizon, len(LEVELS)).copy()
    for i, values in enumerate(history):
        known = np.flatnonzero(np.isnan(values))
        recent = values[known[-1] + 1 :] if len(known) else values
        if len(recent) > SEASON + horizon:
            model = MSTL(season_length=SEASON, trend_forecaster=AutoETS(model="ZNN"))
            answer = model.forecast(recent, horizon, level=[80])
            out[i] = np.stack([answer["lo-80"], answer["mean"], answer["hi-80"]], axis=1)
    return _long(series, cutoff, name, out)


def _long(series: pl.DataFrame, cutoff: date, name: str, values: Floats) -> pl.DataFrame:
    return baselines.long(series.select(KEYS), cutoff, name, values[:, :, 1], values[:, :, 0], values[:, :, 2])
