"""Import of a retailer's files: every row goes to the dataset or to its plan, or is reported with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Final, NoReturn

import polars as pl

from salescast import retail_calendar
from salescast.data import gaps as gap_rules
from salescast.data.attributes import FILE as ATTRIBUTES
from salescast.data.attributes import SCHEMA as ATTRIBUTES_SCHEMA
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
from salescast.data.files import read_tables, unpivoted
from salescast.data.findings import findings
from salescast.data.import_report import ImportReport, largest_series, opening_days, reasons, series_kinds
from salescast.data.labels import COLUMNS, labels_of
from salescast.data.names import FILE as NAMES
from salescast.data.names import SCHEMA as NAMES_SCHEMA
from salescast.data.names import Names
from salescast.data.plan import plan_table
from salescast.data.records import Records
from salescast.data.validation import STOCK, Form, Source
from salescast.data.weeks import Weeks
from salescast.errors import UserError
from salescast.runtime.atomic_files import replace_file
from salescast.schema import KEYS, LABEL, RAW_SALES, RAW_STORE_WEEKS, RAW_STORES

_SALES: Final = ("Store", "Dept", "Date", "Weekly_Sales", "known_at")
_FEATURES: Final = ("Store", "Dept", "Date", "Temperature", "Fuel_Price", "CPI", "Unemployment", "known_at")
_STORES: Final = ("Store", "Type", "Size", "Region", "Label", "Opened", "Closed")
_PRODUCTS: Final = ("Dept", "Label", "Category", "Brand", "Price_Class", "Listed", "Delisted")
# Names that a planned column must not have, because they mean something else in the plan.
_RESERVED: Final = frozenset({"Store", "Dept", "Date", "Weekly_Sales", *PLAN_KEYS})


def import_sales(
    sales: Path,
    features: Path | None,
    stores: Path | None,
    out: Path,
    *,
    products: Path | None = None,
    mapping: Mapping[str, str] | None = None,
    planned: Sequence[str] = (),
    open_days: str | None = None,
    country: str = "US",
    skip_bad_rows: bool = False,
    form: Form = Form(),  # noqa: B008
    weeks: Weeks = Weeks(),  # noqa: B008
    gaps: str = "auto",
    out_of_stock: str | None = None,
    wide: bool = False,
) -> ImportReport:
    """Validate files of sales and write them as the dataset folder `out`, replacing it.

    A path is a file (CSV, Excel or Parquet), a folder of files or a pattern such as `sales/*.csv`.
    `products`: a file with a row for each department: label, category, brand, price class, first and last day.
    `mapping`: standard column name (see `labels.COLUMNS`) -> name in the files. `planned`: columns of the sales
    file (per series and week) or of the features file (per store and week) that are known ahead; numbers or yes/no.
    `open_days`: the planned column with the number of days of the week on which the store is open. `out_of_stock`: the
    column of the sales file with the stock, or yes where nothing was left; sales of such a week are unknown demand.
    `gaps`: what a week without a row means, one of `gaps.GAPS`. `wide`: the sales file has a column per week.
    Rows of the sales file with empty sales and a planned value are part of the plan.
    Raises UserError when a file or column is missing or `out` cannot be written. Raises it as well when a row is
    rejected, unless `skip_bad_rows`: `out` is then unchanged except for rejected.csv, the list of rejected rows.
    """
    mapping, planned = dict(mapping or {}), tuple(dict.fromkeys((*planned, *([open_days] if open_days else []))))
    _check_options(mapping, planned)
    gap_rules.check(gaps)
    retail_calendar.calendar(country)
    stock = {STOCK: out_of_stock} if out_of_stock else {}
    sold = _source(sales, _SALES, mapping, planned, form, open_days, stock, wide)
    conditions = _source(features, _FEATURES, mapping, planned, form, open_days) if features else None
    static = _source(stores, _STORES, mapping, (), form) if stores else None
    goods = _source(products, _PRODUCTS, mapping, (), form) if products else None
    sources = [source for source in (sold, conditions, static, goods) if source is not None]
    _check_used(sources, mapping, planned, out_of_stock)
    records = Records(sold, conditions, static, goods, Names.read(out), planned, open_days)
    records.check(weeks)
    rejected = pl.concat(source.rejected() for source in sources)
    if not records.usable or (rejected.height and not skip_bad_rows):
        _refuse(rejected, sources, out, usable=records.usable, second_rows=records.second_rows)
    return _import(records, str(sales), country, gaps, rejected, out)


def _import(records: Records, source: str, country: str, gaps: str, rejected: pl.DataFrame, out: Path) -> ImportReport:
    """Write the rows that no rule has rejected, and say what became of all."""
    table, decision = records.sales(gaps)
    plan = plan_table(records, table)
    dataset = Dataset(
        source=source,
        rows=table.height,
        series=table.select(KEYS).n_unique(),
        stores=table["store_id"].n_unique(),
        first_week=table.select(pl.col("week").min()).item(),
        last_week=table.select(pl.col("week").max()).item(),
        country=country,
        planned=records.planned,
        open_days=records.open_days,
        gaps=decision,
    )
    dataset = _write(out, dataset, table, plan, records, rejected)
    column = dataset.open_days
    return ImportReport(
        dataset=dataset,
        files=tuple(records.file_report(file) for file in records.sources),
        rejected=rejected,
        negative=int((table[LABEL] < 0).sum()),
        gaps=_span(table, KEYS) - table.height,
        empty_weeks=_span(table, ()) - table["week"].n_unique(),
        kinds=series_kinds(table),
        lost=records.sold.lost(),
        largest=largest_series(table, records.names),
        opening=None if plan is None or column is None else opening_days(table.lazy(), plan.lazy(), column),
        decisions=tuple(records.decisions),
        warnings=tuple(findings(table, records.names, date.today())),
    )


def _source(
    path: Path,
    columns: Sequence[str],
    mapping: Mapping[str, str],
    planned: Sequence[str],
    form: Form,
    open_days: str | None = None,
    more: Mapping[str, str] | None = None,
    wide: bool = False,
) -> Source:
    """Read the files of a path and apply the rules for cells. `more`: further names inside -> names in the file."""
    table = read_tables(path, form.sheet)
    if wide:
        table = unpivoted(table, mapping.get("Date", "Date"), mapping.get("Weekly_Sales", "Weekly_Sales"))
    present = {name: label for name, label in (more or {}).items() if label in table.columns}
    return Source(table, labels_of(table, columns, mapping) | present, planned, form, open_days)


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


def _check_used(
    sources: Sequence[Source], mapping: Mapping[str, str], planned: Sequence[str], stock: str | None
) -> None:
    """Raises UserError when an option names a column that no file has."""
    found = {column for source in sources for column in source.columns}
    known = {*found, *(label for source in sources for label in source.label.values())}
    folded = {column.casefold() for column in known}
    absent = [name for name in mapping.values() if " ".join(name.split()).casefold() not in folded]
    for option, names in (
        ("--map", absent),
        ("--planned", [name for name in planned if name not in found]),
        ("--out-of-stock", [stock] if stock and stock not in found else []),
    ):
        if names:
            raise UserError(f"{option}: no file has the columns {names}; the columns are {sorted(found)}")


def _refuse(
    rejected: pl.DataFrame, sources: Sequence[Source], out: Path, *, usable: bool, second_rows: str | None
) -> NoReturn:
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
    share = sum(sources[0].lost().values())
    listed = f"all are listed in {out / REJECTED}"
    if not usable:
        advice = "no usable row of sales is left"
    elif second_rows:
        advice = f"{second_rows}; without these rows {share:.0%} of the sales would be lost"
    elif share >= 0.01:
        advice = f"correct them: they hold {share:.0%} of the sales, which --skip-bad-rows would lose"
    else:
        advice = "correct them, or import the rest with --skip-bad-rows"
    total = sum(source.total for source in sources)
    what = (
        f"{rejected.height} of {total} rows cannot be used: {shown}{more}; {listed}" if rejected.height else "no sales"
    )
    raise UserError(f"{what}; {advice}")


def _write(
    out: Path,
    dataset: Dataset,
    sales: pl.DataFrame,
    plan: pl.DataFrame | None,
    records: Records,
    rejected: pl.DataFrame,
) -> Dataset:
    """Write the dataset folder and return the dataset with its digest."""
    plan_schema = {**PLAN_KEYS, **dict.fromkeys(dataset.planned, pl.Float32())}
    with replacing(out) as folder:
        digests = [
            write_table(folder / SALES, RAW_SALES, sales),
            write_table(folder / STORE_WEEKS, RAW_STORE_WEEKS, records.store_weeks()),
            write_table(folder / STORES, RAW_STORES, records.stores(sales)),
        ]
        if plan is not None:
            digests.append(write_table(folder / PLAN, plan_schema, plan))
        if records.names.needed:
            digests.append(write_table(folder / NAMES, NAMES_SCHEMA, records.names.table))
        if (attributes := records.attributes.table).height:
            digests.append(write_table(folder / ATTRIBUTES, ATTRIBUTES_SCHEMA, attributes))
        if rejected.height:
            rejected.write_csv(folder / REJECTED)
        dataset = replace(dataset, digest=combine_digests(digests))
        return write_meta(folder, dataset)


def _span(table: pl.DataFrame, keys: Sequence[str]) -> int:
    """Number of weeks from the first to the last one, summed over the groups of `keys`."""
    length = (pl.col("week").max() - pl.col("week").min()).dt.total_days() // 7 + 1
    groups = table.group_by(keys).agg(weeks=length) if keys else table.select(weeks=length)
    return int(groups["weeks"].sum())
