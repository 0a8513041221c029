"""Read a file of rows, whatever program wrote it: text with any delimiter, Excel, Parquet, also compressed.

All cells of text files and workbooks are read as text; `plain` says what they mean.
"""

import bz2
import csv
import gzip
import io
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import fastexcel
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from salescast.errors import UserError

ROW: Final = "__row__"  # number of a row in its file; the first line of a text file and of a sheet is row 1
BROKEN: Final[dict[str, pl.DataType]] = {ROW: pl.Int64(), "value": pl.String(), "reason": pl.String()}
DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BLOCK: Final = 1 << 23  # bytes; also the limit for one row of text
_HEAD: Final = 60  # lines in which delimiter and header are searched
_UNPACK: Final[dict[bytes, tuple[str, Callable[[bytes], bytes]]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ": ("xz", lzma.decompress),
}
# RuntimeError: a zip archive with a password; NotImplementedError: one with a method that Python lacks.
_DAMAGED: Final = (
    zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError, fastexcel.FastExcelError
)  # fmt: skip
_WORKBOOKS: Final = ("xl/workbook.xml", "xl/workbook.bin", "content.xml")


@dataclass(frozen=True)
class Table:
    """The rows of a file: `cells` has its columns as they are and ROW, `broken` the rows that could not be split.

    `broken` has the columns BROKEN, its value is the text of the row. Lines without any content are skipped. `notes`
    says what about the file was not plain: its encoding, its delimiter, lines above the header.
    """

    path: Path
    cells: pl.DataFrame
    broken: pl.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        return [name for name in self.cells.columns if name != ROW]

    @property
    def rows(self) -> int:
        return self.cells.height + self.broken.height


def short(text: str, length: int = 60) -> str:
    """A text for a message: on one line and cut to `length` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else f"{flat[: length - 3]}..."


def read_table(path: Path, sheet: str | None = None) -> Table:
    """Read a file by its content, not by its name. `sheet` names the sheet of a workbook.

    Raises UserError when the file does not exist, is no table, has no rows, or two columns have one name.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a CSV, Excel or Parquet file")
    try:
        with path.open("rb") as file:
            start = file.read(8)
        table = _read_parquet(path) if start.startswith(b"PAR1") else _read_bytes(path, start, sheet)
    except (OSError, EOFError, ValueError, *_DAMAGED) as error:
        raise UserError(f"{path} cannot be read ({short(str(error), 200)}); is the file complete?") from None
    except (pa.ArrowException, csv.Error, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({short(str(error), 200)}); give CSV, Excel or Parquet") from None
    if table.rows == 0:
        raise UserError(f"{path} has no rows; give a file with a header and at least one row")
    return table


def _read_bytes(path: Path, start: bytes, sheet: str | None) -> Table:
    content, notes = path.read_bytes(), []
    for magic, (name, unpack) in _UNPACK.items():
        if start.startswith(magic):
            content, notes = unpack(content), [f"compressed with {name}"]
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            if any(name in members for name in _WORKBOOKS):
                return _read_excel(path, content, sheet)
            if len(members) != 1:
                raise UserError(f"{path} is an archive of {len(members)} files; give one file, or unpack it")
            content, notes = archive.read(members[0]), [f"{members[0]} of a zip archive"]
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        return _read_excel(path, content, sheet)
    if content.startswith(b"PAR1"):
        return _parquet(path, pq.read_table(pa.BufferReader(content)), notes)
    if sheet is not None:
        raise UserError(f"{path} is not an Excel workbook; --sheet {sheet} is for workbooks")
    return _read_text(path, content, notes)


def _read_parquet(path: Path) -> Table:
    return _parquet(path, pq.read_table(path), [])


def _parquet(path: Path, found: pa.Table, notes: list[str]) -> Table:
    _check_names(path, found.column_names)
    cells = pl.DataFrame(found).with_row_index(ROW, offset=1).cast({ROW: pl.Int64})
    return Table(path, cells, pl.DataFrame(schema=BROKEN), tuple(notes))


def _check_names(path: Path, names: list[str]) -> None:
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates or ROW in names:
        name = short((duplicates or [ROW])[0])
        raise UserError(f"{path} has more than one column named {name!r}; rename or remove one")


def _read_excel(path: Path, content: bytes, sheet: str | None) -> Table:
    book = fastexcel.read_excel(content)
    if sheet is not None and sheet not in book.sheet_names:
        raise UserError(f"{path} has no sheet {sheet!r}, its sheets are {book.sheet_names}")
    name = sheet or book.sheet_names[0]
    frame = pl.DataFrame(book.load_sheet(name, header_row=None, dtypes="string", skip_rows=0).to_arrow())
    frame = frame.rename({column: f"c{i}" for i, column in enumerate(frame.columns)}).fill_null("")
    rows = [list(row) for row in frame.head(_HEAD).iter_rows()]
    header = _header_of(path, rows, [len(row) for row in rows])
    notes = ["an Excel workbook" + (f", sheet {name!r}" if len(book.sheet_names) > 1 else "")]
    notes += [f"header in row {header + 1}"] if header else []
    cells = frame.with_row_index(ROW, offset=1).cast({ROW: pl.Int64}).slice(header + 1)
    return _named(path, cells, rows[header], pl.DataFrame(schema=BROKEN), notes)


def _decoded(path: Path, content: bytes, notes: list[str]) -> bytes:
    """The content in UTF-8. Bytes that are no text stay as they are; their rows are reported one by one."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        notes.append("UTF-16")
        return content.decode("utf-16", errors="replace").encode(errors="replace")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in content[:_BLOCK].partition(b"\n")[0]:  # elsewhere, only the row is wrong
        raise UserError(f"{path} is not text; give CSV, Excel or Parquet")
    try:
        content.decode()
    except UnicodeDecodeError:
        if any(ord(letter) > 0x7F and letter != "\ufffd" for letter in content.decode(errors="replace")):
            return content  # most of it is UTF-8: what is not is wrong
        notes.append("Windows-1252")
        return content.decode("cp1252", errors="replace").encode()
    return content


def _read_text(path: Path, content: bytes, notes: list[str]) -> Table:
    content = _decoded(path, content, notes)
    if not content.strip():
        raise UserError(f"{path} is empty; give a file with a header and at least one row")
    lines = content[: 1 << 20].decode(errors="replace").splitlines()[:_HEAD]
    delimiter, skipped = _delimiter(lines)
    if delimiter != ",":
        notes.append(f"{DELIMITERS[delimiter]} between cells")
    rows = list(csv.reader(lines[skipped:], delimiter=delimiter))
    header = _header_of(path, rows, [len(row) for row in rows])
    if header:
        notes.append(f"header in row {skipped + header + 1}")
    return _split(path, content, delimiter, rows[header], skipped + header, notes)


def _delimiter(lines: list[str]) -> tuple[str, int]:
    """The delimiter that splits most lines into the same number of cells, and 1 if a line `sep=` names it, else 0."""
    if lines[0].lower().startswith("sep=") and lines[0][4:5] in DELIMITERS:
        return lines[0][4], 1

    def score(delimiter: str) -> tuple[int, int]:
        widths = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter) if len(row) > 1)
        width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
        return count, width

    return max(DELIMITERS, key=score), 0


def _header_of(path: Path, rows: list[list[str]], widths: list[int]) -> int:
    """The index of the row that names the columns: the first one as wide as most rows, with a name in most cells.

    Raises UserError when there is none.
    """
    width = Counter(widths).most_common(1)[0][0]
    for index, row in enumerate(rows):
        named = sum(bool(cell.strip()) for cell in row)
        # A title line of a table has one cell, and as many delimiters as the others.
        if len(row) >= width and (named > 1 or width == 1 == named) and 2 * named >= min(width, _last_filled(rows)):
            return index
    raise UserError(f"{path} has no line that names the columns; its first line must do so")


def _last_filled(rows: list[list[str]]) -> int:
    """How many leading columns have content in any of the rows."""
    return max((i + 1 for row in rows for i, cell in enumerate(row) if cell.strip()), default=0)


def _split(path: Path, content: bytes, delimiter: str, names: list[str], above: int, notes: list[str]) -> Table:
    """All cells as text. PyArrow reads the content because it reports each row with too few or too many cells.

    It reads Latin-1, in which all bytes are valid: a row that is not UTF-8 is then a bad row and not a bad file.
    """
    invalid: list[tuple[int, str]] = []

    def keep(record: pa.csv.InvalidRow) -> str:
        invalid.append((record.number, record.text.encode("latin-1").decode(errors="replace")))
        return "skip"

    columns = [f"c{i}" for i in range(len(names))]  # the names in the file may be any text
    parsed = pyarrow.csv.read_csv(
        pa.BufferReader(content),
        # PyArrow numbers broken rows only when it uses one thread.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=_BLOCK, column_names=columns, encoding="latin-1"
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=keep
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )
    numbers = np.delete(np.arange(parsed.num_rows + len(invalid)), [number - 1 for number, _ in invalid]) + 1
    cells = pl.DataFrame(parsed).with_columns(pl.Series(ROW, numbers)).filter(pl.col(ROW) > above + 1)
    cells, undecoded = _text_of(cells.filter(pl.any_horizontal(pl.col(column) != "" for column in columns)), columns)
    # CSV allows a line break inside quotes. In these tables it means a quote that was never closed, and the rows that
    # follow it must not be lost.
    unclosed = pl.any_horizontal(pl.col(column).str.contains(r"[\r\n]") for column in columns)
    lines = _as_broken(cells.filter(unclosed), columns, "a line break inside quotes")
    short_rows = [
        (number, text, f"not {len(names)} cells as in the header")
        for number, text in invalid
        if number > above + 1 and text.strip()
    ]
    broken = pl.concat([pl.DataFrame(short_rows, schema=BROKEN, orient="row"), undecoded, lines]).sort(ROW)
    return _named(path, cells.filter(~unclosed), names, broken, notes)


def _named(path: Path, cells: pl.DataFrame, names: list[str], broken: pl.DataFrame, notes: list[str]) -> Table:
    """A table with the names of the header, without the columns that have no name."""
    found = [" ".join(name.split()) for name in names]
    columns = [name for name in cells.columns if name != ROW]
    cells = cells.filter(pl.any_horizontal(pl.col(column).str.strip_chars() != "" for column in columns))
    nameless = [column for column, name in zip(columns, found, strict=False) if not name]
    nameless += columns[len(found) :]
    if nameless and (cells.select(pl.col(column).str.strip_chars() != "" for column in nameless).sum().row(0) != ()):
        filled = sum(cells.select((pl.col(column).str.strip_chars() != "").any() for column in nameless).row(0))
        notes = [*notes, *([f"{filled} columns without a name are not used"] if filled else [])]
    named = {column: name for column, name in zip(columns, found, strict=False) if name}
    _check_names(path, list(named.values()))
    return Table(path, cells.select(ROW, *named).rename(named), broken, tuple(notes))


def _as_broken(cells: pl.DataFrame, columns: list[str], reason: str) -> pl.DataFrame:
    return cells.select(ROW, pl.concat_str(columns, separator=",").alias("value"), pl.lit(reason).alias("reason"))


def _text_of(cells: pl.DataFrame, columns: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The cells decoded from Latin-1 to UTF-8, and the rows where that is impossible (columns BROKEN)."""
    beyond = [column for column in columns if cells[column].str.contains(r"[^\x00-\x7f]").any()]
    # Many cells have few values: decode each value once.
    for column in beyond:
        values = cells[column].unique()
        texts = [value.encode("latin-1").decode(errors="replace") for value in values]
        cells = cells.with_columns(pl.col(column).replace_strict(values, texts, return_dtype=pl.String))
    bad = pl.any_horizontal(
        pl.lit(False), *(pl.col(column).str.contains("\N{REPLACEMENT CHARACTER}") for column in beyond)
    )
    return cells.filter(~bad), _as_broken(cells.filter(bad), columns, "not text in UTF-8")
