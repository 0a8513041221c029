"""The 22 published features: the columns of `sales_features` and `store_features`, as Polars expressions."""

from collections.abc import Callable
from datetime import date

import polars as pl

from salescast import retail_calendar
from salescast.data.dataset import Chunk
from salescast.errors import UserError
from salescast.retail_calendar import WEEK
from salescast.schema import KEYS, LABEL, SALES_FEATURES, STORE_FEATURES, TIMESTAMP

View = Callable[[Chunk], pl.DataFrame]


def grid(sales: pl.DataFrame, upcoming: date) -> pl.DataFrame:
    """The weekly grid: every week of every series from its first observed one to `upcoming`. Keys, week, `age`, sales.

    `sales` (RAW_SALES) is sorted by keys and week. `age` is the number of weeks since the first one; weekly_sales is
    null in gaps and in weeks that are not yet observed.
    """
    first = sales.group_by(KEYS, maintain_order=True).agg(pl.col("week").min())
    every = first.with_columns(pl.date_ranges("week", pl.lit(upcoming), "7d")).explode("week")
    return every.join(sales.select(*KEYS, "week", LABEL), on=[*KEYS, "week"], how="left", maintain_order="left").select(
        *KEYS, "week", pl.int_range(pl.len()).over(KEYS).alias("age"), LABEL
    )


def _lag(weeks_back: int) -> pl.Expr:
    """Sales of the same series some weeks ago, on the sorted grid; null before its first week."""
    return pl.when(pl.col("age") >= weeks_back).then(pl.col(LABEL).shift(weeks_back))


def _sales_expressions() -> list[pl.Expr]:
    """The features computed from earlier sales, in Float64; null when any of the sales they need is null."""
    one, two, three, four = (_lag(k) for k in (1, 2, 3, 4))
    # Add pairs first: then the mean of four equal values is exact and their standard deviation exactly zero.
    mean = ((one + two) + (three + four)) / 4
    squares = sum(((lag - mean) ** 2 for lag in (two, three, four)), start=(one - mean) ** 2)
    return [
        *(_lag(k).alias(f"lag_{k}") for k in (1, 2, 4, 8)),
        mean.alias("rolling_mean_4w"),
        (squares / 3).sqrt().alias("rolling_std_4w"),
        pl.when(mean != 0).then(one / mean).alias("sales_vs_avg"),
    ]


def _calendar_columns(weeks: pl.Series, calendar: retail_calendar.Calendar) -> pl.DataFrame:
    distinct = weeks.unique().sort()
    return pl.DataFrame({"week": distinct, **retail_calendar.published(distinct.to_numpy(), calendar)})


def sales_features(
    sales: pl.DataFrame, store_weeks: pl.DataFrame, calendar: retail_calendar.Calendar, *, upcoming: date | None = None
) -> pl.DataFrame:
    """Keys, event_timestamp and SALES_FEATURES on the full weekly grid of every series, sorted.

    `sales` (RAW_SALES) and `store_weeks` (RAW_STORE_WEEKS) are sorted by keys and week. `upcoming` is the week after
    the last one of the dataset; by default the week after the last one of `sales`.
    """
    known = store_weeks.with_columns(pl.col("week") + WEEK)
    rows = grid(sales, upcoming or _last(sales) + WEEK)
    return (
        rows.with_columns(_sales_expressions())
        .join(known, on=["store_id", "week"], how="left", maintain_order="left")
        .join(_calendar_columns(rows["week"], calendar), on="week", how="left", maintain_order="left")
        .select(*KEYS, timestamp(), *(pl.col(name).cast(dtype) for name, dtype in SALES_FEATURES.items()))
    )


def store_features(sales: pl.DataFrame, stores: pl.DataFrame) -> pl.DataFrame:
    """Keys, event_timestamp and STORE_FEATURES: one row for each series, with the time of its first week."""
    first = sales.group_by(KEYS, maintain_order=True).agg(pl.col("week").min())
    return first.join(stores, on="store_id", how="left", maintain_order="left").select(
        *KEYS, timestamp(), *(pl.col(name).cast(dtype) for name, dtype in STORE_FEATURES.items())
    )


def timestamp(week: pl.Expr = pl.col("week")) -> pl.Expr:  # noqa: B008
    return week.cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias(TIMESTAMP)


def _last(sales: pl.DataFrame) -> date:
    last = sales["week"].max()
    if not isinstance(last, date):
        raise UserError("there are no sales to make features of; generate or import data first")
    return last
