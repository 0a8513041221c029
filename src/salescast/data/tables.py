"""Files of tables: read CSV or Parquet with row numbers, parse cells, write CSV, Parquet or Excel.

A parsed number is null where the cell is missing (empty, `NA` ...) and NaN where it is not a number. The rules of
`validation` treat the two differently.
"""

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from salescast.errors import UserError
from salescast.runtime import parquet
from salescast.runtime.atomic_files import replace_file

ROW: Final = "__row__"  # number of a row in its file; the header of a CSV file is row 1
MISSING: Final = ("", "na", "n/a", "#n/a", "nan", "null", "none")
YES_NO: Final = {"true": "1", "yes": "1", "y": "1", "on": "1", "false": "0", "no": "0", "n": "0", "off": "0"}
# Stands for a time that cannot be parsed; earlier than every valid one.
INVALID_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
BROKEN: Final[dict[str, pl.DataType]] = {ROW: pl.Int64(), "value": pl.String(), "reason": pl.String()}
WRITTEN: Final = (".csv", ".parquet", ".xlsx")
EXCEL_ROWS: Final = 1_048_576  # of a sheet, including the header
_BLOCK: Final = 1 << 23  # bytes; also the limit for one CSV row
_ISO_DATE: Final = r"^(\d{4}-\d{2}-\d{2})(?:[T ]00:00(?::00(?:\.0+)?)?(?:Z|\+00:00)?)?$"


@dataclass(frozen=True)
class Table:
    """The rows of a file: `cells` has its columns as they are and ROW, `broken` the rows that could not be split.

    `broken` has the columns BROKEN, its value is the text of the row. Lines without any content are skipped.
    """

    path: Path
    cells: pl.DataFrame
    broken: pl.DataFrame

    @property
    def columns(self) -> list[str]:
        return [name for name in self.cells.columns if name != ROW]

    @property
    def rows(self) -> int:
        return self.cells.height + self.broken.height


def read_table(path: Path) -> Table:
    """Read a file as Parquet if its name ends with .parquet, else as CSV (UTF-8, commas, a header).

    Raises UserError when the file does not exist, has no rows, or has another format than its name says.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a CSV or Parquet file")
    kind, read = ("Parquet", _read_parquet) if path.suffix == ".parquet" else ("CSV", _read_csv)
    try:
        table = read(path)
    except (OSError, pa.ArrowException, csv.Error, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {kind} ({reason}); give CSV in UTF-8, or Parquet") from None
    if table.rows == 0:
        raise UserError(f"{path} has no rows; give a file with a header and at least one row")
    return table


def _check_names(path: Path, names: list[str]) -> None:
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates or ROW in names:
        raise UserError(f"{path} has more than one column named {(duplicates or [ROW])[0]!r}; rename or remove one")


def _read_parquet(path: Path) -> Table:
    found = pq.read_table(path)
    _check_names(path, found.column_names)
    cells = pl.DataFrame(found).with_row_index(ROW, offset=1).cast({ROW: pl.Int64})
    return Table(path, cells, pl.DataFrame(schema=BROKEN))


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        names = next(csv.reader(file), [])
    if not names:
        raise UserError(f"{path} is empty or starts with an empty line; its first line must name the columns")
    if any("\N{REPLACEMENT CHARACTER}" in name or "\0" in name for name in names):
        raise UserError(f"{path} is not text in UTF-8; save it as CSV in UTF-8, or Parquet")
    _check_names(path, names)
    return names


def _read_csv(path: Path) -> Table:
    """All cells as text. PyArrow reads the file because it reports each row with too few or too many cells.

    It reads Latin-1, in which all bytes are valid: a row that is not UTF-8 is then a bad row and not a bad file.
    """
    names = _header(path)
    invalid: list[tuple[int, str]] = []

    def keep(record: pa.csv.InvalidRow) -> str:
        invalid.append((record.number, _utf8(record.text)))
        return "skip"

    columns = [f"c{i}" for i in range(len(names))]  # the names in the file may be any text
    parsed = pyarrow.csv.read_csv(
        path,
        # PyArrow numbers broken rows only when it uses one thread.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=_BLOCK, column_names=columns, encoding="latin-1"
        ),
        parse_options=pyarrow.csv.ParseOptions(
            newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=keep
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )
    numbers = np.delete(np.arange(parsed.num_rows + len(invalid)), [number - 1 for number, _ in invalid]) + 1
    cells, undecoded = _decoded(
        pl.DataFrame(parsed).with_columns(pl.Series(ROW, numbers)).filter(pl.col(ROW) > 1), columns
    )
    cells = cells.filter(pl.any_horizontal(pl.col(column) != "" for column in columns))
    # CSV allows a line break inside quotes. In these tables it means a quote that was never closed, and the rows that
    # follow it must not be lost.
    unclosed = pl.any_horizontal(pl.col(column).str.contains(r"[\r\n]") for column in columns)
    lines = _as_broken(cells.filter(unclosed), columns, "a line break inside quotes")
    short = [(number, text, f"not {len(names)} cells as in the header") for number, text in invalid]
    broken = pl.concat([pl.DataFrame(short, schema=BROKEN, orient="row"), undecoded, lines]).sort(ROW)
    return Table(path, cells.filter(~unclosed).rename(dict(zip(columns, names, strict=True))), broken)


def _as_broken(cells: pl.DataFrame, columns: list[str], reason: str) -> pl.DataFrame:
    return cells.select(ROW, pl.concat_str(columns, separator=",").alias("value"), pl.lit(reason).alias("reason"))


def _utf8(text: str) -> str:
    """Decode text as UTF-8 that was read as Latin-1."""
    return text.encode("latin-1").decode(errors="replace")


def _decoded(cells: pl.DataFrame, columns: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The cells decoded from Latin-1 to UTF-8, and the rows where that is impossible (columns BROKEN)."""
    beyond = [column for column in columns if cells[column].str.contains(r"[^\x00-\x7f]").any()]
    cells = cells.with_columns(pl.Series(column, map(_utf8, cells[column]), pl.String) for column in beyond)
    bad = pl.any_horizontal(
        pl.lit(False), *(pl.col(column).str.contains("\N{REPLACEMENT CHARACTER}") for column in beyond)
    )
    return cells.filter(~bad), _as_broken(cells.filter(bad), columns, "not text in UTF-8")


def text(cells: pl.DataFrame, column: str) -> pl.Expr:
    """A column as text without surrounding blanks; null where the cell is one of MISSING."""
    if isinstance(cells.schema[column], pl.List | pl.Array | pl.Struct | pl.Object | pl.Binary):
        raise UserError(f"column {column!r} holds {cells.schema[column]}; give numbers, dates or text")
    stripped = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(~stripped.str.to_lowercase().is_in(MISSING)).then(stripped)


def number(cells: pl.DataFrame, column: str) -> pl.Expr:
    """A column as Float64: null = missing, NaN = not a number."""
    dtype = cells.schema[column]
    if dtype.is_numeric() or dtype == pl.Boolean:
        return pl.col(column).cast(pl.Float64).fill_nan(None)
    return _to_number(text(cells, column))


def number_or_yes_no(cells: pl.DataFrame, column: str) -> pl.Expr:
    """Like `number`; yes, true, y, on are 1 and no, false, n, off are 0."""
    if cells.schema[column].is_numeric() or cells.schema[column] == pl.Boolean:
        return number(cells, column)
    return _to_number(text(cells, column).str.to_lowercase().replace(YES_NO))


def _to_number(texts: pl.Expr) -> pl.Expr:
    return pl.when(texts.is_not_null()).then(texts.cast(pl.Float64, strict=False).fill_null(float("nan")))


def day(cells: pl.DataFrame, column: str) -> pl.Expr:
    """A column as Date: ISO dates, or times at midnight; null = missing or not a date."""
    if isinstance(cells.schema[column], pl.Date | pl.Datetime):
        return pl.when(pl.col(column).cast(pl.Datetime("us")).dt.time() == pl.time(0)).then(
            pl.col(column).cast(pl.Date)
        )
    return text(cells, column).str.extract(_ISO_DATE).str.to_date("%Y-%m-%d", strict=False)


def time(cells: pl.DataFrame, column: str) -> pl.Expr:
    """A column as UTC time: ISO date or time, with or without a zone; null = missing, INVALID_TIME = not a time."""
    dtype = cells.schema[column]
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return pl.col(column).dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    if isinstance(dtype, pl.Date | pl.Datetime):
        return pl.col(column).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    texts = text(cells, column)
    full = texts.str.replace(" ", "T").str.replace("^(.{10})$", "${1}T00:00:00")
    zoned = pl.when(full.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$")).then(full).otherwise(full + "Z")
    parsed = zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", strict=False)
    return pl.when(texts.is_not_null()).then(parsed.fill_null(INVALID_TIME))


Parser = Callable[[pl.DataFrame, str], pl.Expr]


def check_target(path: Path) -> None:
    """Raises UserError when the file's name does not end with a format of WRITTEN. Call it before the work starts."""
    if path.suffix.lower() not in WRITTEN:
        raise UserError(f"{path} names no known format; end the name with .csv, .parquet or .xlsx")


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table atomically, in the format that the file's name ends with (WRITTEN).

    Raises UserError for another format and for more rows than fit into an Excel sheet.
    """
    check_target(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        parquet.write(frame, path)
        return
    if kind == ".xlsx" and frame.height >= EXCEL_ROWS:
        raise UserError(
            f"{frame.height:,} rows do not fit into an Excel sheet, which holds {EXCEL_ROWS - 1:,} below its header; "
            f"write {path.with_suffix('.csv').name} or {path.with_suffix('.parquet').name} instead"
        )
    with replace_file(path) as temporary:
        if kind == ".csv":
            frame.write_csv(temporary)
        else:
            workbook = BytesIO()  # Polars accepts only paths that end with .xlsx
            frame.write_excel(workbook, autofit=True)
            temporary.write_bytes(workbook.getbuffer())
