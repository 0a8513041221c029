"""Forecasts as data frames with one row per series and week: the one place where they are built."""

from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast.features.history import Floats
from salescast.schema import KEYS

Weeks = NDArray[np.datetime64]


def long_frame(keys: pl.DataFrame, weeks: Weeks, values: Mapping[str, Floats]) -> pl.DataFrame:
    """Arrays [n, H] of n series as rows: keys, week, horizon (1 = first week) and the named values.

    `keys`: n rows with store_id and dept_id; `weeks`: the forecast weeks, datetime64[D] [n, H].
    """
    n, horizon = weeks.shape
    return pl.DataFrame(
        {
            **{key: np.repeat(keys[key].to_numpy(), horizon) for key in KEYS},
            "week": weeks.reshape(-1),
            "horizon": np.tile(np.arange(1, horizon + 1, dtype=np.int32), n),
            **{name: array.reshape(-1) for name, array in values.items()},
        }
    )


def backtest_frame(
    keys: pl.DataFrame,
    weeks: Weeks,
    model: str,
    *,
    yhat: Floats,
    p10: Floats,
    p90: Floats,
    mean: Floats | None = None,
) -> pl.DataFrame:
    """Forecasts of one model: keys, cutoff (the week before horizon 1), horizon, week, yhat, p10, p90, model, mean.

    `yhat` is the median, `mean` what adds up; a method without means adds up its `yhat`.
    """
    cutoff = pl.col("week") - pl.col("horizon") * timedelta(weeks=1)
    values = {"yhat": yhat, "p10": p10, "p90": p90, "mean": yhat if mean is None else mean}
    return long_frame(keys, weeks, values).select(
        *KEYS, cutoff.alias("cutoff"), "horizon", "week", "yhat", "p10", "p90", pl.lit(model).alias("model"), "mean"
    )
