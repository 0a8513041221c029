"""What an import did with the rows of its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from salescast.data.dataset import Dataset
from salescast.data.names import Names
from salescast.schema import KEYS, LABEL, SEASON

LARGEST: Final = 5  # series that the report shows
QUIET: Final = 13  # weeks without a sale after which a series has ended


@dataclass(frozen=True)
class FileReport:
    """Counts of the rows of one file: rows = accepted + plan_rows + rejected + merged + empty + left_out.

    `merged` rows repeat another one, `empty` rows have no amount and no planned value, `left_out` rows belong to the
    unfinished last week or to weeks in which the article was out of stock. `notes` says what was not read plainly.
    """

    file: str
    rows: int
    accepted: int
    plan_rows: int
    rejected: int
    ignored_columns: tuple[str, ...]
    merged: int = 0
    empty: int = 0
    left_out: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpeningDays:
    """In how many `rows` of sales and how many `weeks` opening days are known; elsewhere the usual number is assumed.

    `closed` counts rows with sales on 0 opening days. They cannot be expressed per open day and are not learned from.
    """

    rows: int
    weeks: int
    of_rows: int
    of_weeks: int
    closed: int


@dataclass(frozen=True)
class SeriesKinds:
    """How many series are of which kind; a series counts once, as the first of these that it is."""

    ended: int  # without a sale in the last QUIET weeks
    young: int  # whose first week is less than a year before the last one
    slow: int  # without a sale in half of their weeks or more
    regular: int


@dataclass(frozen=True)
class LargeSeries:
    """A series by the retailer's ids, its share of the sales of the last year, and its sales by week; None = no row."""

    store: str | int
    dept: str | int
    share: float
    sales: tuple[float | None, ...]


@dataclass(frozen=True)
class ImportReport:
    """The dataset that was written, and counts of what was notable in the files.

    `rejected` has one row for each rejected row, with file, row (the first line of a text file is row 1), column, value
    and reason; `lost` is the share of the sales that they have, by reason. `negative` counts sales below zero and
    `gaps` weeks without sales inside a series; both are kept as they are. `empty_weeks` counts weeks between the first
    and the last in which no series has sales. `opening` is None when opening days are not known. `decisions` says what
    was found out and not given, `warnings` what looks wrong.
    """

    dataset: Dataset
    files: tuple[FileReport, ...]
    rejected: pl.DataFrame
    negative: int
    gaps: int
    empty_weeks: int
    kinds: SeriesKinds
    lost: Mapping[str, float] = field(default_factory=dict)
    largest: tuple[LargeSeries, ...] = ()
    opening: OpeningDays | None = None
    decisions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def series_kinds(sales: pl.DataFrame) -> SeriesKinds:
    """The kinds of the series of `sales` (RAW_SALES)."""
    last = pl.col("week").max()
    sold = pl.col(LABEL) > 0
    newest = sales["week"].max()
    weeks = (last - pl.col("week").min()).dt.total_days() // 7 + 1
    since = pl.lit(newest) - pl.duration(weeks=QUIET)
    series = sales.group_by(KEYS).agg(
        ended=~(sold & (pl.col("week") > since)).any(),
        young=pl.col("week").min() > pl.lit(newest) - pl.duration(weeks=SEASON),
        slow=2 * sold.sum() <= weeks,
    )
    kind = (
        pl.when("ended").then(pl.lit("ended")).when("young").then(pl.lit("young")).when("slow").then(pl.lit("slow"))
    ).otherwise(pl.lit("regular"))
    counts = dict(series.group_by(kind.alias("kind")).len().iter_rows())
    return SeriesKinds(**{name: counts.get(name, 0) for name in ("ended", "young", "slow", "regular")})


def largest_series(sales: pl.DataFrame, names: Names) -> tuple[LargeSeries, ...]:
    """The LARGEST series of `sales` (RAW_SALES) by their sales of the last year."""
    newest = sales["week"].max()
    year = sales.filter(pl.col("week") > pl.lit(newest) - pl.duration(weeks=SEASON))
    sums = year.group_by(KEYS).agg(pl.col(LABEL).sum())
    total = float(sums[LABEL].sum()) or 1.0
    found = []
    for store, dept, amount in sums.top_k(LARGEST, by=LABEL).sort(LABEL, descending=True).iter_rows():
        own = sales.filter(store_id=store, dept_id=dept).sort("week").upsample("week", every="1w")
        where = names.name_of("store_id", store), names.name_of("dept_id", dept)
        found.append(LargeSeries(*where, amount / total, tuple(own[LABEL])))
    return tuple(found)


def opening_days(sales: pl.LazyFrame, plan: pl.LazyFrame, column: str) -> OpeningDays:
    """How far `column` of `plan` (plan.parquet) covers the rows of `sales` (RAW_SALES) with opening days."""
    known = plan.filter(pl.col(column).is_not_null()).sort("known_at").rename({column: "days"})
    own, general = (
        known.filter(pl.col("dept_id").is_null() == every)
        .group_by("store_id", *(() if every else ("dept_id",)), "week")
        .agg(pl.col("days").last())
        for every in (False, True)
    )
    days = pl.coalesce("days", "days_store")
    counts = (
        sales.join(own, on=[*KEYS, "week"], how="left")
        .join(general, on=["store_id", "week"], how="left", suffix="_store")
        .select(
            rows=days.count(),
            weeks=pl.col("week").filter(days.is_not_null()).n_unique(),
            of_rows=pl.len(),
            of_weeks=pl.col("week").n_unique(),
            closed=((days == 0) & (pl.col(LABEL) != 0)).sum(),
        )
        .collect(engine="streaming")
    )
    return OpeningDays(**counts.row(0, named=True))


def reasons(rejected: pl.DataFrame) -> pl.DataFrame:
    """Rejected rows by file and reason, the most frequent first: their count, and row and value of the first one."""
    groups = rejected.group_by("file", "reason", maintain_order=True).agg(
        pl.len().alias("rows"), pl.col("row").first().alias("first_row"), pl.col("value").first()
    )
    return groups.sort("rows", descending=True, maintain_order=True)
