"""Import of a retailer's own files: every record ends in the dataset, in its plan, or in the report of rejections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final, NoReturn

import polars as pl

from salescast import retail_calendar
from salescast.data import dataset
from salescast.data.dataset import (
    PLAN,
    PLAN_KEYS,
    REJECTED,
    SALES,
    STORE_WEEKS,
    STORES,
    Dataset,
    combined,
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
# No planned column may be called like these: they mean something else in the plan.
_RESERVED: Final = frozenset({"Store", "Dept", "Date", "Weekly_Sales", *dataset.PLAN_KEYS})


@dataclass(frozen=True)
class FileReport:
    """What became of the records of one file: rows = accepted + plan_rows + rejected."""

    file: str
    rows: int
    accepted: int
    plan_rows: int
    rejected: int
    ignored_columns: tuple[str, ...]


@dataclass(frozen=True)
class OpeningDays:
    """For how many `rows` of sales, and in how many `weeks`, opening days are known; the others count as usual.

    `closed` counts the rows with sales on 0 opening days: they say nothing of an open day, and are not learned from.
    """

    rows: int
    weeks: int
    of_rows: int
    of_weeks: int
    closed: int


@dataclass(frozen=True)
class ImportReport:
    """The dataset written, and what there is to know about it.

    `rejected`: one row for each record left out, with file, row (the header of a CSV file is row 1), column, value,
    reason. `negative` counts sales below zero, `gaps` the weeks without sales inside a series; both are kept as they
    are. `empty_weeks` counts weeks between the first and the last in which no series has sales: a mistyped year.
    `opening` is None when no column of opening days was named.
    """

    dataset: dataset.Dataset
    files: tuple[FileReport, ...]
    rejected: pl.DataFrame
    negative: int
    gaps: int
    empty_weeks: int
    opening: OpeningDays | None = None


def opening_days(sales: pl.LazyFrame, plan: pl.LazyFrame, column: str) -> OpeningDays:
    """How much is known of the opening days in `column` of `plan` (plan.parquet) for `sales` (RAW_SALES)."""
    known = plan.filter(pl.col(column).is_not_null()).sort("known_at").rename({column: "days"})
    own, general = (
        known.filter(pl.col("dept_id").is_null() == every)
        .group_by("store_id", *(() if every else ("dept_id",)), "week")
        .agg(pl.col("days").last())
        for every in (False, True)
    )
    days = pl.coalesce("days", "days_store")
    found = (
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
    return OpeningDays(**found.row(0, named=True))


def reasons(rejected: pl.DataFrame) -> pl.DataFrame:
    """Rejections by file and reason, the most frequent first: count, row and value of the first one."""
    counted = rejected.group_by("file", "reason", maintain_order=True).agg(
        pl.len().alias("rows"), pl.col("row").first().alias("first_row"), pl.col("value").first()
    )
    return counted.sort("rows", descending=True, maintain_order=True)


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
    """Validate files of weekly sales (CSV or Parquet) and write them as the dataset folder `out`, replacing it whole.

    `mapping`: standard column name (see `checks.COLUMNS`) -> name in the files. `planned`: columns of the sales file
    (known per series and week) or of the features file (per store and week) that are known ahead; numbers or yes/no.
    `open_days`: the planned column that holds on how many days of the week the store is open. In the sales file, rows
    after the last observed week with empty sales and a planned value are plan.
    Raises UserError when a file or column is missing or `out` cannot be written; and, unless `skip_bad_rows`, when a
    row must be rejected: `out` is then left as it was but for rejected.csv, the list of rejected rows.
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
    # The features of a planned input are named by it and these endings; their own names begin with an underscore.
    ends = ("_recent", "_last_year")
    reserved = sorted(
        name for name in planned if name in _RESERVED or name.startswith("_") or f"_{name}".endswith(ends)
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
    """Checks across records and files; the last week with sales, None when no row is left."""
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
    """The weekday (Monday = 1) of the data's weeks. Raises UserError when the data are not weekly."""
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
    found = reasons(rejected)
    shown = "; ".join(
        f"{Path(file).name}: {count} x {reason} (first in row {row}: {value!r})"
        for file, reason, count, row, value in found.head(5).iter_rows()
    )
    more = f"; and {found.height - 5} other reasons" if found.height > 5 else ""
    try:
        with replace_file(out / dataset.REJECTED) as path:
            rejected.write_csv(path)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; give another folder") from None
    advice = "correct them, or import the rest with --skip-bad-rows" if usable else "no usable row of sales is left"
    listed = f"all are listed in {out / dataset.REJECTED}"
    raise UserError(f"{rejected.height} of {total} rows cannot be used: {shown}{more}; {listed}; {advice}")


def _conform(rows: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Parsed rows as a raw table: its columns (null where the file has none), its types, sorted by keys and week."""
    columns = [pl.col(name) if name in rows.columns else pl.lit(None).alias(name) for name in schema]
    table = rows.select(columns)
    if "dept_id" in schema and "dept_id" not in rows.columns:
        table = table.with_columns(dept_id=pl.lit(0))
    return table.cast(pl.Schema(schema)).sort([name for name in (*KEYS, "week") if name in schema])


def _plan(sold: Source, conditions: Source | None, planned: Sequence[str]) -> pl.DataFrame | None:
    """The table of plan.parquet, sorted; None when nothing is planned."""
    sources = [source for source in (sold, conditions) if source is not None and source.planned]
    if not sources:
        return None
    plans = [_planned_rows(source, planned, by_store=source is conditions) for source in sources]
    return pl.concat(plans).sort(*KEYS, "week", nulls_last=False)


def _planned_rows(source: Source, planned: Sequence[str], *, by_store: bool) -> pl.DataFrame:
    """The rows of a file with a planned value, as plan.parquet has them."""
    rows = source.rows.rename({PLANNED + name: name for name in source.planned}, strict=True)
    rows = rows.filter(pl.any_horizontal(pl.col(name).is_not_null() for name in source.planned))
    table = _conform(rows, {**dataset.PLAN_KEYS, **dict.fromkeys(planned, pl.Float32())})
    return table.with_columns(dept_id=pl.lit(None, pl.Int32)) if by_store else table


def _write(
    out: Path,
    dataset: dataset.Dataset,
    sales: pl.DataFrame,
    plan: pl.DataFrame | None,
    conditions: Source | None,
    static: Source | None,
    rejected: pl.DataFrame,
) -> dataset.Dataset:
    """Write the dataset folder; the dataset with its digest."""
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
        dataset = replace(dataset, digest=combined(digests))
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
    """Weeks from the first to the last one, summed over the groups of `keys`."""
    length = (pl.col("week").max() - pl.col("week").min()).dt.total_days() // 7 + 1
    groups = table.group_by(keys).agg(weeks=length) if keys else table.select(weeks=length)
    return int(groups["weeks"].sum())
