"""Files with random damage, in every form that is read: a one-line error, or no row is lost and no traceback."""

import bz2
import csv
import gzip
import io
import lzma
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path

import polars as pl
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from xlsxwriter import Workbook

from salescast.data import dataset, ingest
from salescast.data.import_report import FileReport, ImportReport
from salescast.data.weeks import Weeks
from salescast.errors import UserError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "600"))  # of all tests together; `make fuzz` asks for 12,000
HEADER = ["Store", "Dept", "Date", "Weekly_Sales"]
fuzzed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def week(k: int) -> str:
    return str(date(2012, 9, 7) + timedelta(7 * k))


def balanced(report: ImportReport) -> bool:
    """Whether each row of each file is somewhere in its report."""
    return all(
        file.rows == file.accepted + file.plan_rows + file.rejected + file.merged + file.empty + file.left_out
        for file in report.files
    )


BASE = io.StringIO()
csv.writer(BASE, lineterminator="\n").writerows(
    [
        [*HEADER, "IsHoliday"],
        *((s, d, week(k), f"{100 * s + k}.25", "TRUE") for s in (1, 2) for d in (1, 2) for k in range(4)),
    ]
)
PIECES = [
    b",",
    b"\n",
    b"\r",
    b"\r\n",
    b'"',
    b'""',
    b",,,,",
    b"\xff",
    b"\0",
    b"-",
    b"e",
    b"NA",
    b";",
    b"\xef\xbb\xbf",
    b" ",
    b"9",
]
mutation = st.tuples(
    st.sampled_from(["insert", "delete", "overwrite", "repeat"]),
    st.integers(0, 600),
    st.integers(1, 40),
    st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4),
)


def mutated(mutations: list[tuple[str, int, int, bytes]], content: bytes = BASE.getvalue().encode()) -> bytes:
    for how, where, length, piece in mutations:
        at = where % (len(content) + 1)
        match how:
            case "insert":
                content = content[:at] + piece + content[at:]
            case "delete":
                content = content[:at] + content[at + length :]
            case "overwrite":
                content = content[:at] + piece + content[at + len(piece) :]
            case _:
                content = content[:at] + content[at : at + length] + content[at:]
    return content


def lines_with_content(text: str) -> int:
    return sum(bool(re.sub(r'[",;|\s]', "", line)) for line in re.split(r"\r\n|\r|\n", text))


def check_lines(report: ImportReport, content: bytes, encoding: str = "utf-8") -> None:
    """Each line with content below the header is a used row or is in the report."""
    file = report.files[0]
    listed = sum(
        1 if column is not None or "second row" in reason else lines_with_content(value)
        for column, value, reason in report.rejected.select("column", "value", "reason").iter_rows()
    )
    encoding = "cp1252" if "Windows-1252" in file.notes else encoding
    text = content.removeprefix(b"\xef\xbb\xbf").decode(encoding, errors="replace")
    above = next((int(note.split()[-1]) for note in file.notes if note.startswith("header in row")), 1)
    lines = re.split(r"\r\n|\r|\n", text)
    assert lines_with_content("\n".join(lines[above:])) == file.rows - file.rejected + listed


@settings(fuzzed, max_examples=EXAMPLES // 4)
@given(st.lists(mutation, min_size=1, max_size=6))
def test_no_line_of_a_mutated_file_is_lost(tmp_path: Path, mutations: list[tuple[str, int, int, bytes]]) -> None:
    path = tmp_path / "sales.csv"
    path.write_bytes(mutated(mutations))
    try:
        report = ingest.import_sales(path, None, None, tmp_path / "raw", skip_bad_rows=True, weeks=Weeks(daily=False))
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert balanced(report)
    assert report.dataset.rows == dataset.load(tmp_path / "raw").sales.collect().height == report.files[0].accepted
    check_lines(report, path.read_bytes())


# --- the forms that people have --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A file as a program writes it, and how it is imported."""

    text: str
    encoding: str = "utf-8"
    weeks: Weeks = field(default_factory=Weeks)
    wide: bool = False
    mapping: tuple[tuple[str, str], ...] = ()


def lines_of(rows: list[list[str]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


DAYS = [str(date(2024, 3, 4) + timedelta(k)) for k in range(14)]
PAIRS = [(store, dept) for store in "12" for dept in "12"]
GERMAN = [
    [shop, ware, f"{day:02d}.09.2012", f"1.{day:03d},50"]
    for shop in ("München", "Köln")
    for ware in "AB"
    for day in (7, 14)
]
TABS = [[store, dept, week(k), "5.5"] for store, dept in PAIRS for k in range(3)]
TITLED = [["007", "1", week(k), "$1,200.50"] for k in range(4)]
RECEIPTS = [[store, "4006381333901", f"{day} 10:0{n}", "2"] for store in "12" for day in DAYS for n in (1, 2)]
SHAPES = {
    "german": Shape(
        lines_of([["Filiale", "Ware", "Datum", "Umsatz"], *GERMAN], ";"),
        "cp1252",
        mapping=(("Store", "Filiale"), ("Dept", "Ware"), ("Date", "Datum"), ("Weekly_Sales", "Umsatz")),
    ),
    "tabs in UTF-16": Shape(lines_of([HEADER, *TABS], "\t"), "utf-16"),
    "a title above": Shape("Sales of all shops\n\n" + lines_of([HEADER, *TITLED])),
    "receipts": Shape(lines_of([HEADER, *RECEIPTS]), weeks=Weeks(summed=True)),
    "a column per week": Shape(
        lines_of([["Store", "Dept", *map(week, range(5))], *([*pair, *"12345"] for pair in PAIRS)]), wide=True
    ),
}


def packed_in_zip(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("sales.csv", content)
    return out.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zip": packed_in_zip,
}  # fmt: skip


def imported(path: Path, out: Path, shape: Shape) -> ImportReport | str:
    """The report of an import, or its error, which has one line."""
    try:
        return ingest.import_sales(
            path, None, None, out, mapping=dict(shape.mapping), skip_bad_rows=True, weeks=shape.weeks, wide=shape.wide
        )
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


@settings(fuzzed, max_examples=EXAMPLES // 3)
@given(st.sampled_from(sorted(SHAPES)), st.sampled_from(sorted(PACKED)), st.lists(mutation, min_size=1, max_size=4))
def test_no_row_of_a_mutated_shape_is_lost_and_packing_changes_nothing(
    tmp_path: Path, name: str, packing: str, mutations: list[tuple[str, int, int, bytes]]
) -> None:
    shape = SHAPES[name]
    content = mutated(mutations, shape.text.encode(shape.encoding))
    assume(not content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK", b"PAR1", b"\xd0\xcf")))  # a container
    plain, packed = tmp_path / "sales.csv", tmp_path / "packed"
    plain.write_bytes(content)
    packed.write_bytes(PACKED[packing](content))
    report, other = imported(plain, tmp_path / "raw", shape), imported(packed, tmp_path / "other", shape)
    if isinstance(report, str) or isinstance(other, str):
        assert isinstance(report, str) and isinstance(other, str)
        return
    assert balanced(report)
    assert _counts(other.files[0]) == _counts(report.files[0])
    assert other.dataset.digest == report.dataset.digest
    if not shape.wide and shape.encoding != "utf-16" and "UTF-16" not in report.files[0].notes:
        check_lines(report, content)


def _counts(file: FileReport) -> FileReport:
    return replace(file, file="", notes=())


CELLS = st.sampled_from(
    ["", "1", "x", "-", "NA", "2012-09-14", "41159", "1,5", "(3)", "1e9", "\n", " 7 ", "München", "0"]
)
edit = st.tuples(st.integers(0, 17), st.integers(0, 4), CELLS)


@settings(fuzzed, max_examples=EXAMPLES // 12)
@given(st.lists(edit, min_size=1, max_size=8))
def test_no_row_of_an_edited_workbook_is_lost(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    rows = list(csv.reader(io.StringIO(BASE.getvalue())))
    for row, column, text in edits:
        rows[row % len(rows)][column] = text
    path = tmp_path / "sales.xlsx"
    with Workbook(path) as book:
        sheet = book.add_worksheet()
        for number, row in enumerate(rows):
            sheet.write_row(number, 0, row)
    report = imported(path, tmp_path / "raw", Shape(""))
    if isinstance(report, str):
        return
    assert balanced(report)
    above = next((int(note.split()[-1]) for note in report.files[0].notes if note.startswith("header in row")), 1)
    assert report.files[0].rows == sum(any(cell.strip() for cell in row) for row in rows[above:])


def workbook() -> bytes:
    out = io.BytesIO()
    with Workbook(out) as book:
        sheet = book.add_worksheet()
        for number, row in enumerate(csv.reader(io.StringIO(BASE.getvalue()))):
            sheet.write_row(number, 0, row)
    return out.getvalue()


CONTAINERS = {"workbook": workbook(), **{name: pack(BASE.getvalue().encode()) for name, pack in PACKED.items()}}
anywhere = st.tuples(
    st.sampled_from(["insert", "delete", "overwrite", "repeat"]),
    st.integers(0, 20_000),
    st.integers(1, 40),
    st.binary(min_size=1, max_size=4),
)


@settings(fuzzed, max_examples=EXAMPLES // 4)
@given(st.sampled_from(sorted(CONTAINERS)), st.lists(anywhere, min_size=1, max_size=4))
def test_a_damaged_container_is_read_or_refused(
    tmp_path: Path, name: str, mutations: list[tuple[str, int, int, bytes]]
) -> None:
    path = tmp_path / "sales"
    path.write_bytes(mutated(mutations, CONTAINERS[name]))
    report = imported(path, tmp_path / "raw", Shape(""))
    assert isinstance(report, str) or balanced(report)


@settings(fuzzed, max_examples=EXAMPLES // 12)
@given(st.lists(st.lists(mutation, max_size=3), min_size=2, max_size=4))
def test_no_line_of_a_folder_of_files_is_lost(tmp_path: Path, files: list[list[tuple[str, int, int, bytes]]]) -> None:
    folder = tmp_path / "sales"
    folder.mkdir(exist_ok=True)
    for number, mutations in enumerate(files):
        rows = [[str(number), "1", week(k), "3.5"] for k in range(6)]
        (folder / f"{number}.csv").write_bytes(mutated(mutations, lines_of([HEADER, *rows]).encode()))
    for number in range(len(files), 4):
        (folder / f"{number}.csv").unlink(missing_ok=True)
    report = imported(folder, tmp_path / "raw", Shape(""))
    assert isinstance(report, str) or balanced(report)


# --- the other files -------------------------------------------------------------------------------------------------

CONDITIONS = f"Store,Date,Temperature,CPI\n1,{week(0)},70.5,NA\n1,{week(1)},71,200.5\n2,{week(0)},60,201\n".encode()
KINDS = b"Store,Type,Size,Region\n1,A,100,north\n2,B,,south\n"
TYPED = io.BytesIO()
pl.read_csv(io.StringIO(BASE.getvalue()), try_parse_dates=True).write_parquet(TYPED)


@settings(fuzzed, max_examples=EXAMPLES // 12)
@given(st.sampled_from(["features", "stores", "parquet"]), st.lists(mutation, min_size=1, max_size=6))
def test_mutated_other_files_and_parquet_are_read_or_refused(
    tmp_path: Path, which: str, mutations: list[tuple[str, int, int, bytes]]
) -> None:
    sales = tmp_path / ("sales.parquet" if which == "parquet" else "sales.csv")
    sales.write_bytes(mutated(mutations, TYPED.getvalue()) if which == "parquet" else BASE.getvalue().encode())
    others = {"features": CONDITIONS, "stores": KINDS}
    for name, content in others.items():
        (tmp_path / f"{name}.csv").write_bytes(mutated(mutations, content) if which == name else content)
    try:
        report = ingest.import_sales(
            sales, tmp_path / "features.csv", tmp_path / "stores.csv", tmp_path / "raw", skip_bad_rows=True
        )
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert balanced(report)
    raw = dataset.load(tmp_path / "raw")
    assert raw.sales.collect().height == report.files[0].accepted
    # Without a column of stores a row holds for all of them.
    assert raw.store_weeks.height <= report.files[1].accepted * raw.meta.stores
