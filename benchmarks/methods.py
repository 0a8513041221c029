"""Other methods for benchmarks/accuracy.py; each returns what `baselines.forecasts` returns."""

from collections.abc import Callable
from datetime import date, timedelta

import numpy as np
import polars as pl

from salescast import inputs, weeks
from salescast.schema import KEYS, LABEL, SEASON, TIMESTAMP, TRAINING_SERVICE_SEASONAL

LEVELS = (0.1, 0.5, 0.9)


def _long(rows: pl.DataFrame, origin: date, values: np.ndarray, name: str) -> pl.DataFrame:
    """values [n, H, 3] of the rows in long form."""
    n, horizon, _ = values.shape
    ahead = np.tile(np.arange(1, horizon + 1), n)
    return rows.select(KEYS)[np.repeat(np.arange(n), horizon)].with_columns(
        pl.lit(origin).alias("cutoff"),
        pl.Series("horizon", ahead, dtype=pl.Int32),
        pl.Series("week", np.datetime64(origin) + 7 * ahead),
        *(pl.Series(column, values[:, :, i].ravel()) for i, column in enumerate(("p10", "yhat", "p90"))),
        pl.lit(name).alias("model"),
    )


def lightgbm(training: pl.LazyFrame, origin: date, horizon: int) -> pl.DataFrame:
    """LightGBM on our own inputs and target (the residual of the seasonal anchor), one model a quantile."""
    import lightgbm as lgb

    frame = training.filter(pl.col(TIMESTAMP).dt.date() <= origin + timedelta(weeks=1)).collect()
    first = frame[TIMESTAMP].dt.date().min() + timedelta(weeks=SEASON + 4)
    frame = frame.filter(pl.col(TIMESTAMP).dt.date() >= first)
    built = inputs.build(frame, TRAINING_SERVICE_SEASONAL, horizon, weeks.calendar("US"))
    keys = frame.select(*KEYS, week=pl.col(TIMESTAMP).dt.date())
    sold = keys.with_columns(frame[LABEL])
    step = built.step.shape[2]
    base = keys["week"].to_numpy()
    blocks = []
    for h in range(horizon):
        wanted = keys.with_columns(pl.col("week") + timedelta(weeks=h))
        y = wanted.join(sold, on=[*KEYS, "week"], how="left", maintain_order="left")[LABEL].fill_null(np.nan).to_numpy()
        y = np.where(wanted["week"].to_numpy() <= np.datetime64(origin), y, np.nan)
        known = np.isfinite(y) & ((np.datetime64(origin) - base).astype("timedelta64[D]").astype(int) // 7 % 2 == 0)
        x = np.concatenate([built.base, built.step[:, h].reshape(-1, step), keys.select(KEYS).to_numpy()], axis=1)
        blocks.append((x[known], (y - built.anchor[:, h])[known] / built.unit[known, h], built.unit[known, h], x))
    x, target, weight = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    last = np.flatnonzero(base == np.datetime64(origin + timedelta(weeks=1)))
    out = np.empty((len(last), horizon, len(LEVELS)))
    data = lgb.Dataset(x, target, weight=weight, categorical_feature=[x.shape[1] - 2, x.shape[1] - 1])
    for i, level in enumerate(LEVELS):
        options = {"objective": "quantile", "alpha": level, "learning_rate": 0.05, "num_leaves": 63, "verbose": -1}
        options |= {"min_data_in_leaf": 100, "feature_fraction": 0.5, "bagging_fraction": 0.5, "bagging_freq": 1}
        model = lgb.train(options, data, num_boost_round=200)
        for h in range(horizon):
            out[:, h, i] = built.anchor[last, h] + built.unit[last, h] * model.predict(blocks[h][3][last])
    return _long(frame[last], origin, np.sort(out, axis=2), "LightGBM on our inputs")


def _mstl(history: np.ndarray, horizon: int) -> np.ndarray:
    """MSTL (season 52) with ETS on the deseasonalized series, [n, T] -> [n, H, 3]; statsforecast."""
    from statsforecast.models import MSTL, AutoETS

    out = np.empty((len(history), horizon, len(LEVELS)))
    for i, values in enumerate(history):
        model = MSTL(season_length=SEASON, trend_forecaster=AutoETS(model="ZNN"))
        found = model.forecast(values.astype(np.float64), horizon, level=[80])
        out[i] = np.stack([found["lo-80"], found["mean"], found["hi-80"]], axis=1)
    return out


def _matrix(training: pl.LazyFrame, origin: date) -> tuple[pl.DataFrame, np.ndarray]:
    """Series observed in every week up to the origin, and their sales."""
    seen = (
        training.select(*KEYS, TIMESTAMP, LABEL)
        .filter(pl.col(LABEL).is_not_null() & (pl.col(TIMESTAMP).dt.date() <= origin))
        .collect()
    )
    count = seen[TIMESTAMP].n_unique()
    whole = seen.group_by(KEYS).len().filter(pl.col("len") == count).select(KEYS).sort(KEYS)
    rows = seen.join(whole, on=KEYS, how="semi").sort(*KEYS, TIMESTAMP)
    return whole, rows[LABEL].to_numpy().reshape(-1, count).astype(np.float64)


def mstl(training: pl.LazyFrame, origin: date, horizon: int) -> pl.DataFrame:
    rows, history = _matrix(training, origin)
    return _long(rows, origin, _mstl(history, horizon), "MSTL + ETS")


def svd(training: pl.LazyFrame, origin: date, horizon: int) -> pl.DataFrame:
    """MSTL + ETS on each department's rank-8 reconstruction, as Kaggle's winner did with STL."""
    rows, history = _matrix(training, origin)
    for dept in rows["dept_id"].unique():
        held = (rows["dept_id"] == dept).to_numpy()
        if held.sum() > 8:
            left, size, right = np.linalg.svd(history[held], full_matrices=False)
            history[held] = left[:, :8] * size[:8] @ right[:8]
    return _long(rows, origin, _mstl(history, horizon), "SVD + MSTL + ETS")


OTHERS: dict[str, Callable[[pl.LazyFrame, date, int], pl.DataFrame]] = {"lightgbm": lightgbm, "mstl": mstl, "svd": svd}
