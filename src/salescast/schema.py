"""Names, types and groups of the columns that stages exchange. Defined only here."""

from collections.abc import Iterable
from typing import Final

import polars as pl

KEYS: Final = ("store_id", "dept_id")
TIMESTAMP: Final = "event_timestamp"  # the week's date at 00:00 UTC
LABEL: Final = "weekly_sales"
SEASON: Final = 52  # weeks

KEY_TYPES: Final[dict[str, pl.DataType]] = {"store_id": pl.Int32(), "dept_id": pl.Int32()}
TIMESTAMP_TYPE: Final = pl.Datetime("us", "UTC")

# Raw tables, as `salescast data generate|import` writes them (see data/dataset.py).
RAW_SALES: Final[dict[str, pl.DataType]] = {**KEY_TYPES, "week": pl.Date(), LABEL: pl.Float64()}
RAW_STORE_WEEKS: Final[dict[str, pl.DataType]] = {
    "store_id": pl.Int32(),
    "week": pl.Date(),
    "temperature": pl.Float32(),
    "fuel_price": pl.Float32(),
    "cpi": pl.Float32(),
    "unemployment": pl.Float32(),
}
RAW_STORES: Final[dict[str, pl.DataType]] = {
    "store_id": pl.Int32(),
    "store_type": pl.String(),
    "store_size": pl.Int64(),
    "region": pl.String(),
}

# The published contract: 19 sales columns, 3 store columns, in this order.
SALES_FEATURES: Final[dict[str, pl.DataType]] = {
    LABEL: pl.Float32(),
    "lag_1": pl.Float32(),
    "lag_2": pl.Float32(),
    "lag_4": pl.Float32(),
    "lag_8": pl.Float32(),
    "rolling_mean_4w": pl.Float32(),
    "rolling_std_4w": pl.Float32(),
    "sales_vs_avg": pl.Float32(),
    "week_of_year": pl.Int32(),
    "month": pl.Int32(),
    "quarter": pl.Int32(),
    "week_of_month": pl.Int32(),
    "is_month_end": pl.Int32(),
    "is_holiday": pl.Int32(),
    "days_to_holiday": pl.Int32(),
    "temperature": pl.Float32(),
    "fuel_price": pl.Float32(),
    "cpi": pl.Float32(),
    "unemployment": pl.Float32(),
}
STORE_FEATURES: Final[dict[str, pl.DataType]] = {
    "store_type": pl.String(),
    "store_size": pl.Int64(),
    "region": pl.String(),
}

# Features of the seasonal service at week t, computed from weeks < t; sales are per open day if opening days are a
# planned input. Windows end at week t - 1 and are WINDOWS weeks long; lists "over the horizon" have one value for each
# week t .. t + H - 1. Last year = 52 weeks earlier; features that compare years are null in the first 56 weeks.
WINDOWS: Final = (1, 4, 8, 13, 26, 52)
_LIST: Final = pl.List(pl.Float32())
SEASONAL_FEATURES: Final[dict[str, pl.DataType]] = {
    "scale": pl.Float32(),  # mean |y| of the last 52 weeks
    "deviation": pl.Float32(),  # population standard deviation of the last 52 weeks
    "market_level": pl.Float32(),  # mean |y| of the last 52 weeks over all series
    "lowest": pl.Float32(),  # least y of all weeks before t
    "recent": _LIST,  # y of weeks t-1 .. t-4
    "level": _LIST,  # mean y, by window
    "level_median": _LIST,  # median of the same weeks, by window
    "growth_now": _LIST,  # mean y of the weeks observed in both years, by window
    "growth_ago": _LIST,  # mean y of the same weeks a year earlier, by window
    "dept_growth_now": _LIST,  # the same of all stores' series of the department, and so on
    "dept_growth_ago": _LIST,
    "store_growth_now": _LIST,
    "store_growth_ago": _LIST,
    "total_growth_now": _LIST,
    "total_growth_ago": _LIST,
    "growth_before_now": pl.Float32(),  # growth_now and growth_ago of 13 weeks as they were a year before week t
    "growth_before_ago": pl.Float32(),
    "dept_growth_before_now": pl.Float32(),
    "dept_growth_before_ago": pl.Float32(),
    "store_growth_before_now": pl.Float32(),
    "store_growth_before_ago": pl.Float32(),
    "total_growth_before_now": pl.Float32(),
    "total_growth_before_ago": pl.Float32(),
    "last_year": _LIST,  # y last year, from one week before the horizon to one week after it
    "denoised_last_year": _LIST,  # rank-8 reconstruction of last year's y, as `last_year`
    "denoised_year_before": _LIST,  # the same of the year before it, as it was reconstructed a year before week t
    "denoise_error": pl.Float32(),  # mean |y - reconstruction| of the last 52 weeks
    "naive_error": pl.Float32(),  # mean |error| of growth times last year's reconstruction, last 8 weeks
    "naive_bias": pl.Float32(),  # mean error of the same, last 4 weeks
    "dept_last_year": _LIST,  # department sales last year, as `last_year`
    "dept_year_before": _LIST,  # department sales of the year before it
    "dept_before": _LIST,  # mean weekly department sales of the windows before last year's week t, by window
    "store_last_year": _LIST,
    "store_year_before": _LIST,
    "store_before": _LIST,
    "shifted": pl.Float32(),  # weeks since the level has shifted: 4, 8 or 13; 0 if it has not
    "persistence": pl.Float32(),  # how much of last year's deviations from its mean comes back this year, 0 to 1
    "dept_persistence": pl.Float32(),
    "total_persistence": pl.Float32(),
    "total_last_year": _LIST,  # sales of all series last year, as `last_year`; the largest ones count less
    "total_year_before": _LIST,
    "total_before": _LIST,
}

# Prefixes of the seasonal view's columns that differ by dataset: planned inputs, attributes of products.
PLANNED: Final = "planned_"
PRODUCT: Final = "product_"


def planned_columns(names: Iterable[str]) -> dict[str, pl.DataType]:
    """The planned-input columns among `names` with their types: mean of recent weeks, or a list over the horizon."""
    return {name: pl.Float32() if name.endswith("_recent") else _LIST for name in names if name.startswith(PLANNED)}


def product_columns(names: Iterable[str]) -> dict[str, pl.DataType]:
    """The columns of attributes of products among `names` with their types, in the order of the alphabet."""
    return {name: pl.String() for name in sorted(names) if name.startswith(PRODUCT)}


def dataset_columns(names: Iterable[str]) -> dict[str, pl.DataType]:
    """The columns of the seasonal view among `names` that differ by dataset, with their types."""
    given = list(names)
    return planned_columns(given) | product_columns(given)


# The six published groups; importance is measured by permuting one group at a time.
FEATURE_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "lags": ("lag_1", "lag_2", "lag_4", "lag_8"),
    "rolling": ("rolling_mean_4w", "rolling_std_4w", "sales_vs_avg"),
    "calendar": ("week_of_year", "month", "quarter", "week_of_month", "is_month_end"),
    "holiday": ("is_holiday", "days_to_holiday"),
    "economics": ("temperature", "fuel_price", "cpi", "unemployment"),
    "store": ("store_type", "store_size", "region"),
}

# Groups of the seasonal view; the columns of the group "planned" differ by dataset.
SEASONAL_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "level": (
        "scale",
        "deviation",
        "market_level",
        "lowest",
        "recent",
        "level",
        "level_median",
        "shifted",
        "persistence",
        "denoise_error",
        "naive_error",
        "naive_bias",
    ),
    "growth": ("growth_now", "growth_ago", "growth_before_now", "growth_before_ago"),
    "last year": ("last_year", "denoised_last_year", "denoised_year_before"),
    "pooled": tuple(name for name in SEASONAL_FEATURES if name.startswith(("dept_", "store_", "total_"))),
}

SALES_VIEW: Final = "sales_features"
STORE_VIEW: Final = "store_features"
SEASONAL_VIEW: Final = "seasonal_features"
UPCOMING: Final = "upcoming.parquet"  # every feature of the upcoming week, one row a series, beside the views' files

TRAINING_SERVICE: Final = "training_features"
INFERENCE_SERVICE: Final = "inference_features"
TRAINING_SERVICE_SEASONAL: Final = "training_features_seasonal"
INFERENCE_SERVICE_SEASONAL: Final = "inference_features_seasonal"

QUANTILES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MEDIAN: Final = 0.5  # the quantile that is reported as the forecast
# The mean of a distribution from three of its quantiles: Swanson's rule (Hurst, Brown and Swanson 2000).
MEAN_WEIGHTS: Final = {0.1: 0.3, 0.5: 0.4, 0.9: 0.3}
MODEL_NAME: Final = "sales-forecast"


def level_name(level: float) -> str:
    """The name of a quantile in answers and files: 0.1 -> p10, 0.975 -> p97.5."""
    return f"p{round(level * 100, 6):g}"
