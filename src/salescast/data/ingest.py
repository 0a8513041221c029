"""Import of a retailer's files: every row goes to the dataset or to its plan, or is rejected with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final, NoReturn

import polars as pl

from salescast import retail_calendar
from salescast.data.dataset import (
    PLAN,
    PLAN_KEYS,
    REJECTED,
    SALES,
    STORE_WEEKS,
    STORES,
    Dataset,
    combine_digests,
    replacing,
    write_meta,
    write_table,
)
from salescast.data.validation import COLUMNS, PLANNED, Source
from salescast.errors import UserError
from salescast.runtime.atomic_files import replace_file
from salescast.schema import KEYS, LABEL, RAW_SALES, RAW_STORE_WEEKS, RAW_STORES

_SALES: Final = ("Store", "Dept", "Date", "Weekly_Sales", "known_at")
_FEATURES: Final = ("Store", "Date", "Temperature", "Fuel_Price", "CPI", "Unemployment", "known_at")
_STORES: Final = ("Store", "Type", "Size", "Region")
# Names that a planned column must not have, because they mean something else in the plan.
_RESERVED: Final = frozenset({"Store", "Dept", "Date", "Weekly_Sales", *PLAN_KEYS})


@dataclass(frozen=True)
class FileReport:
    """Counts of the rows of one file: rows = accepted + plan_rows + rejected."""

    file: str
    rows: int
    accepted: int
    plan_rows: int
    rejected: int
    ignored_columns: tuple[str, ...]


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
class ImportReport:
    """The dataset that was written, and counts of what was notable in the files.

    `rejected` has one row for each rejected row, with file, row (the header of a CSV file is row 1), column, value and
    reason. `negative` counts sales below zero and `gaps` weeks without sales inside a series; both are kept as they
    are. `empty_weeks` counts weeks between the first and the last in which no series has sales, as after a mistyped
    year. `opening` is None when no column of opening days was named.
    """

    dataset: Dataset
    files: tuple[FileReport, ...]
    rejected: pl.DataFrame
    negative: int
    gaps: int
    empty_weeks: int
    opening: OpeningDays | None = None


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


def import_sales(
    sales: Path,
    features: Path | None,
    stores: Path | None,
    out: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    planned: Sequence[str] = (),
    open_days: str | None = None,
    country: str = "US",
    skip_bad_rows: bool = False,
) -> ImportReport:
    """Validate files of weekly sales (CSV or Parquet) and write them as the dataset folder `out`, replacing it.

    `mapping`: standard column name (see `validation.COLUMNS`) -> name in the files. `planned`: columns of the sales
    file (per series and week) or of the features file (per store and week) that are known ahead; numbers or yes/no.
    `open_days`: the planned column with the number of days of the week on which the store is open. Rows of the sales
    file after the last observed week, with empty sales and a planned value, are part of the plan.
    Raises UserError when a file or column is missing or `out` cannot be written. Raises it as well when a row is
    rejected, unless `skip_bad_rows`: `out` is then unchanged except for rejected.csv, the list of rejected rows.
    """
    mapping, planned = dict(mapping or {}), tuple(dict.fromkeys((*planned, *([open_days] if open_days else []))))
    _check_options(mapping, planned)
    retail_calendar.calendar(country)
    sold = Source(sales, _SALES, mapping, planned, open_days)
    conditions = Source(features, _FEATURES, mapping, planned, open_days) if features else None
    static = Source(stores, _STORES, mapping, ()) if stores else None
    sources = [source for source in (sold, conditions, static) if source is not None]
    _check_used(sources, mapping, planned)
    last = _check_records(sold, conditions, static)

    rejected = pl.concat(
        source.rejected().select(pl.lit(str(source.path)).alias("file"), pl.all()) for source in sources
    )
    if last is None or (rejected.height and not skip_bad_rows):
        _refuse(rejected, sum(source.total for source in sources), out, usable=last is not None)
    observed = sold.rows.filter(pl.col(LABEL).is_not_null())
    table = _conform(observed, RAW_SALES)
    dataset = Dataset(
        source=str(sales),
        rows=table.height,
        series=table.select(KEYS).n_unique(),
        stores=table["store_id"].n_unique(),
        first_week=table.select(pl.col("week").min()).item(),
        last_week=last,
        country=country,
        planned=planned,
        open_days=open_days,
    )
    plan = _plan(sold, conditions, planned)
    dataset = _write(out, dataset, table, plan, conditions, static, rejected)
    return ImportReport(
        dataset=dataset,
        files=tuple(_file_report(source, plan_rows=_plan_rows(source)) for source in sources),
        rejected=rejected,
        negative=int((table[LABEL] < 0).sum()),
        gaps=_span(table, KEYS) - table.height,
        empty_weeks=_span(table, ()) - table["week"].n_unique(),
        opening=None if plan is None or open_days is None else opening_days(table.lazy(), plan.lazy(), open_days),
    )


def _check_options(mapping: Mapping[str, str], planned: Sequence[str]) -> None:
    unknown = sorted(mapping.keys() - COLUMNS.keys())
    if unknown:
        raise UserError(f"--map of unknown columns {unknown}; the standard names are {list(COLUMNS)}")
    if len(set(mapping.values())) < len(mapping):
        raise UserError(f"--map gives one column two meanings: {dict(mapping)}; map each column once")
    # Features of a planned input are named after it with these suffixes; the others begin with an underscore.
    suffixes = ("_recent", "_last_year")
    reserved = sorted(
        name for name in planned if name in _RESERVED or name.startswith("_") or f"_{name}".endswith(suffixes)
    )
    if reserved:
        raise UserError(f"{reserved} cannot be planned columns, the names have another meaning; rename the columns")


def _check_used(sources: Sequence[Source], mapping: Mapping[str, str], planned: Sequence[str]) -> None:
    found = {column for source in sources for column in source.columns}
    for option, names in (("--map", mapping.values()), ("--planned", planned)):
        absent = [name for name in names if name not in found]
        if absent:
            raise UserError(f"{option}: no file has the columns {absent}; the columns are {sorted(found)}")


def _check_records(sold: Source, conditions: Source | None, static: Source | None) -> date | None:
    """Apply the rules across rows and files; return the last week with sales, None when no row is left."""
    if static is not None:
        static.keep_unique("store_id")
        known = static.rows["store_id"].implode()
        reason = f"{sold.label['store_id']} is not in {static.path.name}"
        sold.keep(pl.col("store_id").is_in(known), reason, "store_id")
    weekday = pl.lit(_weekday(sold), pl.Int8)
    for source in (sold, conditions):
        if source is not None:
            reason = f"{source.label['week']} is not on the weekday of the other weeks"
            source.keep(pl.col("week").dt.weekday() == weekday, reason, "week")
    last = sold.rows.filter(pl.col(LABEL).is_not_null())["week"].max()
    is_plan = pl.lit(False)
    if sold.planned and last is not None:
        is_plan = (pl.col("week") > last) & pl.any_horizontal(
            pl.col(PLANNED + name).is_not_null() for name in sold.planned
        )
    sold.keep(pl.col(LABEL).is_not_null() | is_plan, f"{sold.label[LABEL]} is missing", LABEL)
    sold.keep_unique("store_id", "dept_id", "week")
    if conditions is not None:
        conditions.keep_unique("store_id", "week")
    return last if isinstance(last, date) else None


def _weekday(sold: Source) -> int | None:
    """The most frequent weekday (Monday = 1) of the dates. Raises UserError when the data are not weekly."""
    days = sold.rows["week"].dt.weekday().value_counts(sort=True).sort(["count", "week"], descending=[True, False])
    if days.is_empty():
        return None
    if 2 * days["count"][0] < sold.rows.height:
        raise UserError(
            f"{sold.path} is not weekly: its dates lie on {days.height} different weekdays; "
            "sum the sales to weeks and give each week one date, always the same weekday"
        )
    return int(days["week"][0])


def _refuse(rejected: pl.DataFrame, total: int, out: Path, *, usable: bool) -> NoReturn:
    """List the rejected rows in `out` and raise UserError with a summary."""
    groups = reasons(rejected)
    shown = "; ".join(
        f"{Path(file).name}: {count} x {reason} (first in row {row}: {value!r})"
        for file, reason, count, row, value in groups.head(5).iter_rows()
    )
    more = f"; and {groups.height - 5} other reasons" if groups.height > 5 else ""
    try:
        with replace_file(out / REJECTED) as path:
            rejected.write_csv(path)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; give another folder") from None
    advice = "correct them, or import the rest with --skip-bad-rows" if usable else "no usable row of sales is left"
    listed = f"all are listed in {out / REJECTED}"
    raise UserError(f"{rejected.height} of {total} rows cannot be used: {shown}{more}; {listed}; {advice}")


def _conform(rows: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Parsed rows as a raw table: its columns (null where the file has none), its types, sorted by keys and week."""
    columns = [pl.col(name) if name in rows.columns else pl.lit(None).alias(name) for name in schema]
    table = rows.select(columns)
    if "dept_id" in schema and "dept_id" not in rows.columns:
        table = table.with_columns(dept_id=pl.lit(0))
    return table.cast(pl.Schema(schema)).sort([name for name in (*KEYS, "week") if name in schema])


def _plan(sold: Source, conditions: Source | None, planned: Sequence[str]) -> pl.DataFrame | None:
    """The content of plan.parquet, sorted; None when nothing is planned."""
    sources = [source for source in (sold, conditions) if source is not None and source.planned]
    if not sources:
        return None
    plans = [_planned_rows(source, planned, by_store=source is conditions) for source in sources]
    return pl.concat(plans).sort(*KEYS, "week", nulls_last=False)


def _planned_rows(source: Source, planned: Sequence[str], *, by_store: bool) -> pl.DataFrame:
    """The rows of a file that have a planned value, in the form of plan.parquet."""
    rows = source.rows.rename({PLANNED + name: name for name in source.planned}, strict=True)
    rows = rows.filter(pl.any_horizontal(pl.col(name).is_not_null() for name in source.planned))
    table = _conform(rows, {**PLAN_KEYS, **dict.fromkeys(planned, pl.Float32())})
    return table.with_columns(dept_id=pl.lit(None, pl.Int32)) if by_store else table


def _write(
    out: Path,
    dataset: Dataset,
    sales: pl.DataFrame,
    plan: pl.DataFrame | None,
    conditions: Source | None,
    static: Source | None,
    rejected: pl.DataFrame,
) -> Dataset:
    """Write the dataset folder and return the dataset with its digest."""
    plan_schema = {**PLAN_KEYS, **dict.fromkeys(dataset.planned, pl.Float32())}
    store_weeks = _conform(conditions.rows, RAW_STORE_WEEKS) if conditions else pl.DataFrame(schema=RAW_STORE_WEEKS)
    stores = _conform(static.rows if static else sales.select("store_id").unique(), RAW_STORES)
    with replacing(out) as folder:
        digests = [
            write_table(folder / SALES, RAW_SALES, sales),
            write_table(folder / STORE_WEEKS, RAW_STORE_WEEKS, store_weeks),
            write_table(folder / STORES, RAW_STORES, stores),
        ]
        if plan is not None:
            digests.append(write_table(folder / PLAN, plan_schema, plan))
        if rejected.height:
            rejected.write_csv(folder / REJECTED)
        dataset = replace(dataset, digest=combine_digests(digests))
        return write_meta(folder, dataset)


def _plan_rows(source: Source) -> int:
    return source.rows[LABEL].null_count() if LABEL in source.rows.columns else 0


def _file_report(source: Source, plan_rows: int) -> FileReport:
    return FileReport(
        file=str(source.path),
        rows=source.total,
        accepted=source.rows.height - plan_rows,
        plan_rows=plan_rows,
        rejected=source.rejected().height,
        ignored_columns=source.ignored(),
    )


def _span(table: pl.DataFrame, keys: Sequence[str]) -> int:
    """Number of weeks from the first to the last one, summed over the groups of `keys`."""
    length = (pl.col("week").max() - pl.col("week").min()).dt.total_days() // 7 + 1
    groups = table.group_by(keys).agg(weeks=length) if keys else table.select(weeks=length)
    return int(groups["weeks"].sum())
