"""Published features: pure Polars expressions from raw tables to `sales_features` and `store_features`.

The row of week t holds what is known before week t begins, and `weekly_sales` of week t as the label. One code makes
the rows of the history and of the upcoming week. `build` streams chunks of whole stores, so memory does not grow with
the number of stores.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from feast_asof.parquet import FileWriter
from salescast import codedigest, contracts, parquet, seasonal, weeks
from salescast.data import Raw, load, parquet_writer
from salescast.errors import UserError
from salescast.files import replace_file
from salescast.progress import counted
from salescast.schema import (
    KEYS,
    LABEL,
    SALES_FEATURES,
    SALES_VIEW,
    SEASONAL_VIEW,
    STORE_FEATURES,
    STORE_VIEW,
    TIMESTAMP,
    UPCOMING,
)

WEEK: Final = timedelta(days=7)
CHUNK_ROWS: Final = 1_000_000
ROW_GROUP: Final = 100_000  # rows, as whole series


@dataclass(frozen=True)
class Chunk:
    """The raw tables of some whole stores, and what those of all stores have in common."""

    sales: pl.DataFrame
    store_weeks: pl.DataFrame
    stores: pl.DataFrame
    plan: pl.DataFrame | None
    calendar: weeks.Calendar
    upcoming: date


View = Callable[[Chunk], pl.DataFrame]

# For each view: from the whole dataset (for what is pooled over stores) and the horizon to the function that makes a
# chunk's rows, sorted by keys and time.
VIEWS: Final[dict[str, Callable[[Raw, int], View]]] = {
    SALES_VIEW: lambda _raw, _horizon: (
        lambda chunk: sales_features(chunk.sales, chunk.store_weeks, chunk.calendar, upcoming=chunk.upcoming)
    ),
    STORE_VIEW: lambda _raw, _horizon: lambda chunk: store_features(chunk.sales, chunk.stores),
    SEASONAL_VIEW: seasonal.view,
}


@dataclass(frozen=True)
class Summary:
    """What `build` wrote: rows by view, series, and the upcoming week (the last row of every series)."""

    rows: dict[str, int]
    series: int
    upcoming: date
    files: dict[str, Path]


def grid(sales: pl.DataFrame, upcoming: date) -> pl.DataFrame:
    """Every week of every series, from its first observed one to `upcoming`: keys, week, `age`, sales.

    `sales` is sorted by keys and week (RAW_SALES). `age` counts weeks from 0 at the first one; weekly_sales is null
    in gaps and in weeks not yet observed.
    """
    first = sales.group_by(KEYS, maintain_order=True).agg(pl.col("week").min())
    every = first.with_columns(pl.date_ranges("week", pl.lit(upcoming), "7d")).explode("week")
    return every.join(sales.select(*KEYS, "week", LABEL), on=[*KEYS, "week"], how="left", maintain_order="left").select(
        *KEYS, "week", pl.int_range(pl.len()).over(KEYS).alias("age"), LABEL
    )


def _lag(weeks_back: int) -> pl.Expr:
    """Sales so many weeks ago in the same series, on the sorted grid; null before its first week."""
    return pl.when(pl.col("age") >= weeks_back).then(pl.col(LABEL).shift(weeks_back))


def _sales_expressions() -> list[pl.Expr]:
    """The features made of earlier sales, in Float64; null when one of the sales they need is."""
    one, two, three, four = (_lag(k) for k in (1, 2, 3, 4))
    # Pairs first: the mean of four equal values is then exact, and their deviation exactly zero.
    mean = ((one + two) + (three + four)) / 4
    squares = sum(((lag - mean) ** 2 for lag in (two, three, four)), start=(one - mean) ** 2)
    return [
        *(_lag(k).alias(f"lag_{k}") for k in (1, 2, 4, 8)),
        mean.alias("rolling_mean_4w"),
        (squares / 3).sqrt().alias("rolling_std_4w"),
        pl.when(mean != 0).then(one / mean).alias("sales_vs_avg"),
    ]


def _calendar_columns(weeks_held: pl.Series, calendar: weeks.Calendar) -> pl.DataFrame:
    distinct = weeks_held.unique().sort()
    return pl.DataFrame({"week": distinct, **weeks.published(distinct.to_numpy(), calendar)})


def sales_features(
    sales: pl.DataFrame, store_weeks: pl.DataFrame, calendar: weeks.Calendar, *, upcoming: date | None = None
) -> pl.DataFrame:
    """Keys, event_timestamp and SALES_FEATURES on the full weekly grid of every series, sorted.

    `sales` (RAW_SALES) and `store_weeks` (RAW_STORE_WEEKS) are sorted by keys and week. `upcoming` is the week after
    the last one of the whole dataset; by default after the last one of `sales`.
    """
    known = store_weeks.with_columns(pl.col("week") + WEEK)
    rows = grid(sales, upcoming or _last(sales) + WEEK)
    return (
        rows.with_columns(_sales_expressions())
        .join(known, on=["store_id", "week"], how="left", maintain_order="left")
        .join(_calendar_columns(rows["week"], calendar), on="week", how="left", maintain_order="left")
        .select(*KEYS, _timestamp(), *(pl.col(name).cast(dtype) for name, dtype in SALES_FEATURES.items()))
    )


def store_features(sales: pl.DataFrame, stores: pl.DataFrame) -> pl.DataFrame:
    """Keys, event_timestamp and STORE_FEATURES: one row for each series, dated at its first week."""
    first = sales.group_by(KEYS, maintain_order=True).agg(pl.col("week").min())
    return first.join(stores, on="store_id", how="left", maintain_order="left").select(
        *KEYS, _timestamp(), *(pl.col(name).cast(dtype) for name, dtype in STORE_FEATURES.items())
    )


def _timestamp(week: pl.Expr = pl.col("week")) -> pl.Expr:  # noqa: B008
    return week.cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias(TIMESTAMP)


def _last(sales: pl.DataFrame) -> date:
    last = sales["week"].max()
    if not isinstance(last, date):
        raise UserError("there are no sales to make features of; generate or import data first")
    return last


def chunks(raw: Raw, calendar: weeks.Calendar, rows: int) -> Iterator[Chunk]:
    """The dataset in key order, as whole stores of together about `rows` feature rows."""
    upcoming = raw.meta.last_week + WEEK
    # Rows of the grid, not of the sales: gaps and ended series are filled up to the upcoming week.
    span = (pl.lit(upcoming) - pl.col("week").min()).dt.total_days() // 7 + 1
    sizes = raw.sales.group_by(KEYS).agg(span.alias("rows")).group_by("store_id").agg(pl.col("rows").sum())
    bundles = sizes.sort("store_id").with_columns((pl.col("rows").cum_sum() - pl.col("rows")) // rows)
    bounds = bundles.group_by("rows", maintain_order=True).agg(
        pl.col("store_id").min().alias("first"), pl.col("store_id").max().alias("last")
    )
    for first, last in bounds.select("first", "last").collect(engine="streaming").iter_rows():
        held = pl.col("store_id").is_between(first, last)
        yield Chunk(
            sales=raw.sales.filter(held).collect(),
            store_weeks=raw.store_weeks.filter(held),
            stores=raw.stores.filter(held),
            plan=None if raw.plan is None else raw.plan.filter(held).collect(),
            calendar=calendar,
            upcoming=upcoming,
        )


class _ViewFile:
    """One sorted Parquet file, written chunk by chunk in row groups of whole series."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._writer: FileWriter | None = None

    def write(self, table: pl.DataFrame) -> None:
        self.rows += table.height
        arrow: pa.Table = table.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = parquet_writer(self._path, arrow.schema)
        ends = table.group_by(KEYS, maintain_order=True).len()["len"].cum_sum()
        start = 0
        while start < table.height:
            full = ends.search_sorted(start + ROW_GROUP, "right")
            # At least one series; a longer one than the limit has a row group of its own.
            end = max(ends[max(full - 1, 0)], ends[ends.search_sorted(start, "right")])
            self._writer.write_table(arrow.slice(start, end - start), row_group_size=end - start)
            start = end

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def build(raw_dir: Path, out_dir: Path, horizon: int = 8, views: Sequence[str] = tuple(VIEWS)) -> Summary:
    """Write `<view>.parquet` for each of `views` from a raw dataset folder; each file appears whole or not at all.

    Beside them `upcoming.parquet`: the views' columns but the label side by side, of the upcoming week alone.

    The published views need the memory of a chunk, the seasonal one that of all series' histories. Raises UserError
    when the dataset cannot be read, breaks the features' contract (see `contracts`) or the folder cannot be written.
    """
    raw = load(raw_dir)
    calendar = weeks.calendar(raw.meta.country)
    paths = {name: out_dir / f"{name}.parquet" for name in views}
    try:
        with ExitStack() as stack:
            files = {name: _ViewFile(stack.enter_context(replace_file(path))) for name, path in paths.items()}
            ahead = _ViewFile(stack.enter_context(replace_file(out_dir / UPCOMING)))
            makers = {name: VIEWS[name](raw, horizon) for name in views}
            for chunk in counted(chunks(raw, calendar, CHUNK_ROWS), "features", raw.meta.rows):
                last: list[pl.DataFrame] = []
                for name, view in makers.items():
                    made = view(chunk)
                    contracts.check(name, made)
                    files[name].write(made)
                    last.append(made.group_by(KEYS, maintain_order=True).last().drop(TIMESTAMP, LABEL, strict=False))
                week = pl.lit(chunk.upcoming).alias("week")
                ahead.write(pl.concat(last, how="align_left").select(*KEYS, _timestamp(week), pl.exclude(KEYS)))
            for file in (*files.values(), ahead):
                file.close()
        code = codedigest.digest(codedigest.FEATURES)
        parquet.seal([*paths.values(), out_dir / UPCOMING], out_dir / parquet.LISTING, code)
    except OSError as error:
        raise UserError(
            f"cannot write the features to {out_dir}: {error.strerror or error}; give another folder"
        ) from None
    rows = {name: file.rows for name, file in files.items()}
    return Summary(rows=rows, series=raw.meta.series, upcoming=raw.meta.last_week + WEEK, files=paths)
