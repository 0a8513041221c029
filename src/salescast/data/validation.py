"""What a cell and a record of an imported file must be, by pandera; and the record of those that are not.

Inside, columns have the names of the dataset (`COLUMNS`); reasons name them as the file does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pandera.polars as pa
import polars as pl

from salescast import retail_calendar
from salescast.data import tables
from salescast.data.tables import ROW
from salescast.errors import UserError
from salescast.schema import KEYS, LABEL

# The names that columns have in the files, and in the dataset.
COLUMNS: Final[dict[str, str]] = {
    "Store": "store_id",
    "Dept": "dept_id",
    "Date": "week",
    "Weekly_Sales": LABEL,
    "Temperature": "temperature",
    "Fuel_Price": "fuel_price",
    "CPI": "cpi",
    "Unemployment": "unemployment",
    "Type": "store_type",
    "Size": "store_size",
    "Region": "region",
    "known_at": "known_at",
}
REQUIRED: Final = ("Store", "Date", "Weekly_Sales")
PLANNED: Final = "planned:"  # prefix inside: the name of a planned column is the user's and may be anything
MAX_SALES: Final = 1e15  # beyond, sums over stores lose the single sale
REJECTED: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "column": pl.String(),
    "value": pl.String(),
    "reason": pl.String(),
}
_INT32: Final = (-(2**31), 2**31 - 1)
_PARSERS: Final[dict[str, tables.Parser]] = {
    "week": tables.day,
    "known_at": tables.moment,
    "store_type": tables.text,
    "region": tables.text,
}


def _check(passes: pl.Expr, reason: str) -> pa.Check:
    """A check of rows; a null result passes."""
    return pa.Check(lambda data: data.lazyframe.select(passes), error=reason)


def _number_check(name: str, label: str, open_days: bool) -> pa.Check:
    value = pl.col(name)
    if name in KEYS:
        return _check(value.is_between(*_INT32) & (value == value.floor()), f"{label} is not a whole number of 32 bits")
    if name == LABEL:
        return _check(value.abs() <= MAX_SALES, f"{label} is not a number within +-{MAX_SALES:.0e}")
    if name == "store_size":
        whole = value.is_between(0, MAX_SALES) & (value == value.floor())
        return _check(whole, f"{label} is not a whole number, 0 or more")
    if open_days:
        return _check(value.is_between(0, 7), f"{label} is not a number of days, 0 to 7")
    return _check(value.cast(pl.Float32).is_finite(), f"{label} is not a finite number")


def _column(name: str, label: str, open_days: bool) -> pa.Column:
    """What a parsed cell must be. `label` is the column's name in the file."""
    value = pl.col(name)
    if name == "week":
        within = value.is_between(retail_calendar.FIRST_DAY, retail_calendar.LAST_DAY)
        return pa.Column(
            pl.Date, _check(within, f"{label} is not within {retail_calendar.FIRST_DAY} to {retail_calendar.LAST_DAY}")
        )
    if name == "known_at":
        readable = _check(value > tables.NO_TIME, f"{label} is not an ISO date or time")
        return pa.Column(pl.Datetime("us", "UTC"), readable, nullable=True)
    if name in _PARSERS:
        return pa.Column(pl.String, nullable=True)
    return pa.Column(pl.Float64, _number_check(name, label, open_days), nullable=name not in KEYS)


class Source:
    """One file on its way in.

    `rows` holds the parsed records that no check has rejected: ROW and the columns of `label`, by their names inside.
    `label` maps a name inside to the column's name in the file; `planned` lists the planned columns of the file.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        mapping: Mapping[str, str],
        planned: Sequence[str],
        open_days: str | None = None,
    ) -> None:
        """Read and check cell by cell. Raises UserError when the file or a required column is missing."""
        table = tables.read_table(path)
        self.path, self.total, self.columns = path, table.rows, table.columns
        self.label = _labels(path, table.columns, columns, mapping)
        self.planned = [name for name in planned if name in table.columns]
        self.label |= {PLANNED + name: name for name in self.planned}
        cells = pl.DataFrame({name: table.cells[label] for name, label in self.label.items()})
        parsed = [_parser(name)(cells, name).alias(name) for name in self.label]
        self.rows = cells.select(parsed).with_columns(table.cells[ROW])
        self._cells = cells.with_columns(table.cells[ROW])
        self._rejected = [
            table.broken.select(pl.col(ROW).alias("row"), pl.lit(None).alias("column"), "value", "reason")
        ]
        cell = {name: _column(name, label, name == f"{PLANNED}{open_days}") for name, label in self.label.items()}
        self._validate(pa.DataFrameSchema(cell))

    def keep(self, passes: pl.Expr, reason: str, column: str | None = None) -> None:
        """Reject the rows for which the expression is false; `column` holds the cell that is wrong."""
        self._validate(pa.DataFrameSchema(checks=_check(passes, reason)), column)

    def keep_unique(self, *names: str) -> None:
        """Of rows with the same values in these columns (as far as the file has them), keep the first."""
        keys = [name for name in names if name in self.label]
        same = ", ".join(self.label[key] for key in keys)
        self.keep(pl.struct(keys).is_first_distinct(), f"a second row for the same {same}")

    def _validate(self, schema: pa.DataFrameSchema, column: str | None = None) -> None:
        """Rows that fail leave, with the first reason; `column` is the one of checks of the whole frame."""
        try:
            schema.validate(self.rows, lazy=True)
        except pa.errors.SchemaErrors as errors:
            # Of NaN, which is "not a number" here, pandera says also that it is null: that reason comes last.
            failed = (
                errors.failure_cases.sort(pl.col("check") == "not_nullable", maintain_order=True)
                .unique("index", keep="first", maintain_order=True)
                .sort("index")
                .with_columns(pl.col("column").fill_null(pl.lit(column)))
            )
            index = failed["index"].cast(pl.UInt32)
            self._rejected.append(self._described(failed.with_columns(self.rows[ROW].gather(index))))
            self.rows = self.rows.filter(~pl.int_range(pl.len(), dtype=pl.UInt32).is_in(index.implode()))

    def _described(self, failed: pl.DataFrame) -> pl.DataFrame:
        """Failures (ROW, column by its name inside, check) as REJECTED, with the cells as they are in the file."""
        name = pl.col("column")
        value = pl.coalesce(pl.when(name == inside).then(pl.col(inside).cast(pl.String)) for inside in self.label)
        label = name.replace_strict(self.label, default=None, return_dtype=pl.String)
        date = pl.when(name == "week").then(pl.lit(" or not a date like 2012-10-26")).otherwise(pl.lit(""))
        missing = pl.concat_str(label, pl.lit(" is missing"), date)
        return (
            failed.select(ROW, "column", "check")
            .join(self._cells, on=ROW, how="left", maintain_order="left")
            .select(
                pl.col(ROW).alias("row"),
                label.alias("column"),
                value.alias("value"),
                pl.when(pl.col("check") == "not_nullable").then(missing).otherwise("check").alias("reason"),
            )
        )

    def rejected(self) -> pl.DataFrame:
        """The records left out (REJECTED) in the order of the file."""
        return pl.concat([part.cast(pl.Schema(REJECTED)) for part in self._rejected]).sort("row")

    def ignored(self) -> tuple[str, ...]:
        """The file's columns that are not used."""
        used = set(self.label.values())
        return tuple(name for name in self.columns if name not in used)


def _parser(name: str) -> tables.Parser:
    return tables.number_or_yes_no if name.startswith(PLANNED) else _PARSERS.get(name, tables.number)


def _labels(path: Path, found: Sequence[str], wanted: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Name inside -> name in the file, for each wanted column that the file has."""
    labels = {}
    for name in wanted:
        # A name is mapped for all files, but another file may well use the standard one.
        label = next((label for label in (mapping.get(name, name), name) if label in found), None)
        if label is not None:
            labels[COLUMNS[name]] = label
        elif name in REQUIRED:
            raise UserError(
                f"{path} has no column {mapping.get(name, name)!r}, its columns are {list(found)}; "
                f"name the right one with --map {name}=COLUMN"
            )
    return labels
