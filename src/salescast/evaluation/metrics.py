"""How good forecasts are: metrics as Polars expressions over a backtest frame, and tables of them.

A backtest frame has one row per (store_id, dept_id, cutoff, horizon, model) with `week`, `y`, `yhat` (median), `p10`,
`p90`; rows without an observed `y` do not count. Every metric is a pooled sum or a mean over rows, so that the same
expression works for any grouping.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final, TypedDict, cast

import polars as pl

from salescast.errors import UserError
from salescast.schema import KEYS, SEASON

COLUMNS: Final = (*KEYS, "cutoff", "horizon", "week", "y", "yhat", "p10", "p90", "model", "mean")
SCALES: Final = ("mae_scale", "mse_scale")


class Score(TypedDict):
    """Metrics of one model, pooled over its rows; None where a metric is not defined."""

    model: str
    wmape: float | None
    mape: float | None
    bias: float | None
    wql: float | None
    coverage: float | None
    rows: int


_y, _yhat, _error = pl.col("y"), pl.col("yhat"), pl.col("y") - pl.col("yhat")


def wmape() -> pl.Expr:
    """sum |y - yhat| / sum |y|."""
    return _error.abs().sum() / _y.abs().sum()


def mape() -> pl.Expr:
    """Mean of |y - yhat| / |y| over the rows with y != 0."""
    return (_error / _y).abs().filter(_y != 0).mean()


def bias() -> pl.Expr:
    """sum (yhat - y) / sum |y|; positive if the forecasts are too high."""
    return -_error.sum() / _y.abs().sum()


def pinball(column: str, quantile: float) -> pl.Expr:
    """Pinball loss per row (Koenker and Bassett 1978) of the forecast quantile in `column`, in units of sales."""
    error = _y - pl.col(column)
    return pl.max_horizontal(quantile * error, (quantile - 1) * error)


def wql() -> pl.Expr:
    """Weighted quantile loss over the levels 0.1, 0.5, 0.9: 2 * sum of pinball losses / (3 * sum |y|)."""
    losses = pinball("p10", 0.1) + pinball("yhat", 0.5) + pinball("p90", 0.9)
    return 2 * losses.sum() / (3 * _y.abs().sum())


def coverage() -> pl.Expr:
    """Share of rows whose y lies in [p10, p90]; the target is 0.8."""
    return ((_y >= pl.col("p10")) & (_y <= pl.col("p90"))).filter(pl.col("p10").is_not_null()).mean()


def wmae(holiday_weight: float = 5.0) -> pl.Expr:
    """The metric of Kaggle's Walmart competition: mean absolute error, holiday weeks (`is_holiday`) with weight 5."""
    weight = pl.when(pl.col("is_holiday")).then(holiday_weight).otherwise(1.0)
    return (weight * _error.abs()).sum() / weight.sum()


METRICS: Final = {"wmape": wmape, "mape": mape, "bias": bias, "wql": wql, "coverage": coverage}


def seasonal_scales(sales: pl.DataFrame, cutoffs: Sequence[date]) -> pl.DataFrame:
    """In-sample error of the seasonal naive per series and cutoff: the scale of RMSSE and MASE (Hyndman, Koehler 2006).

    `sales`: raw sales (store_id, dept_id, week, weekly_sales). Returns store_id, dept_id, cutoff, mae_scale, mse_scale;
    null where a series has no pair of weeks a season apart up to the cutoff.
    """
    ago = sales.select(*KEYS, pl.col("week") + pl.duration(weeks=SEASON), pl.col("weekly_sales").alias("ago"))
    pairs = sales.join(ago, on=[*KEYS, "week"]).with_columns(error=pl.col("weekly_sales") - pl.col("ago"))
    return pl.concat(
        pairs.filter(pl.col("week") <= cutoff)
        .group_by(KEYS)
        .agg(mae_scale=pl.col("error").abs().mean(), mse_scale=(pl.col("error") ** 2).mean())
        .with_columns(cutoff=pl.lit(cutoff, dtype=pl.Date))
        for cutoff in cutoffs
    )


def scores(backtest: pl.DataFrame, by: Sequence[str] = ("model",)) -> pl.DataFrame:
    """One row per group of `by` with every metric and the number of rows, lowest WMAPE first.

    With the columns of `seasonal_scales` joined, RMSSE and MASE are added: computed per series and cutoff, then
    averaged, because errors with different scales must not be pooled. Series without a scale are left out.
    """
    observed = backtest.filter(_y.is_not_null())
    extra = {"wmae": wmae()} if "is_holiday" in backtest.columns else {}
    pooled = observed.group_by(by).agg(**{name: metric() for name, metric in METRICS.items()}, **extra, rows=pl.len())
    if all(column in backtest.columns for column in SCALES):
        per_series = observed.group_by(*{*by, *KEYS, "cutoff"}).agg(
            rmsse=((_error**2).mean() / pl.col("mse_scale").first()).sqrt(),
            mase=_error.abs().mean() / pl.col("mae_scale").first(),
        )
        finite = [pl.col(name).filter(pl.col(name).is_finite()).mean() for name in ("rmsse", "mase")]
        pooled = pooled.join(per_series.group_by(by).agg(finite), on=list(by))
    return pooled.sort("wmape")


def score_rows(backtest: pl.DataFrame) -> list[Score]:
    """`scores` by model, as rows."""
    return cast(list[Score], scores(backtest).to_dicts())


def check_cutoffs(first: date, last: date, min_history: int, cutoffs: Sequence[date]) -> None:
    """Raise UserError for a cutoff that is not a week of the data, or without weeks to train on or to test on."""
    earliest, latest = first + timedelta(weeks=min_history), last - timedelta(weeks=1)
    wrong = [day for day in cutoffs if (day - last).days % 7 or not earliest <= day <= latest]
    if wrong:
        raise UserError(
            f"no backtest from {', '.join(map(str, wrong))}: a cutoff is a week of the data, which run from {first} "
            f"to {last} in steps of 7 days, with {min_history} weeks before it and one after it"
        )
