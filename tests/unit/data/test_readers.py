"""Files are read by their content: any delimiter, encoding, preamble, compression, Excel, Parquet, folders."""

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from salescast.data.files import read_tables, unpivoted
from salescast.data.readers import ROW, read_table
from salescast.errors import UserError

HEADER = "Store,Ort,Wert"
ROWS = ["1,Köln,2.5", "2,Zürich,3", "3,Łódź,4"]
TEXT = "\n".join([HEADER, *ROWS]) + "\n"


def read(path: Path, content: bytes) -> pl.DataFrame:
    path.write_bytes(content)
    return read_table(path).cells


def archive(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("sales.csv", content)
    return out.getvalue()


def workbook() -> bytes:
    out = io.BytesIO()
    pl.DataFrame({"Store": ["1", "2", "3"], "Ort": ["Köln", "Zürich", "Łódź"], "Wert": ["2.5", "3", "4"]}).write_excel(
        out
    )
    return out.getvalue()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "Report of the week\n\n", "Firm\nCreated 2026-11-02\n"]),
    st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress, archive]),
)
def test_every_form_of_text_gives_the_same_cells(
    tmp_path: Path, delimiter: str, encoding: str, line: str, above: str, packed: object
) -> None:
    text = above + TEXT.replace(",", delimiter)
    assert callable(packed)
    cells = read(tmp_path / "any.dat", packed(text.replace("\n", line).encode(encoding)))
    assert cells.drop(ROW).rows() == [tuple(row.split(",")) for row in ROWS]
    assert cells[ROW].to_list() == [above.count("\n") + 2 + k for k in range(3)]


def test_windows_1252_and_workbooks(tmp_path: Path) -> None:
    western = TEXT.replace("Łódź", "Łódź"[2:]).replace("ź", "é")
    assert read(tmp_path / "a.csv", western.encode("cp1252"))["Ort"].to_list()[:2] == ["Köln", "Zürich"]
    assert read(tmp_path / "b.csv", workbook()).drop(ROW).rows() == [tuple(row.split(",")) for row in ROWS]
    with pytest.raises(UserError, match=r"has no sheet 'May', its sheets are \['Sheet1'\]"):
        read_table(tmp_path / "b.csv", "May")


def test_a_folder_and_a_pattern_are_one_table_with_rows_numbered_on(tmp_path: Path) -> None:
    for name, rows in (("a", ROWS[:2]), ("b", ROWS[2:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([HEADER, *rows]))
    for path in (tmp_path, tmp_path / "*.csv"):
        table = read_tables(path)
        assert table.cells["Store"].to_list() == ["1", "2", "3"] and table.cells[ROW].to_list() == [2, 3, 5]
        assert table.notes == ("2 files",)
    (tmp_path / "c.csv").write_text("Store,Wert\n1,2\n")
    with pytest.raises(UserError, match=r"differ in the columns \['Ort'\]"):
        read_tables(tmp_path)
    with pytest.raises(UserError, match="has no files"):
        read_tables(tmp_path / "*.xlsx")


def test_a_column_per_week_becomes_rows(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("Dept,2024-09-01,2024-09-08\nA,1,2\nB,3,\n")
    table = unpivoted(read_table(tmp_path / "w.csv"), "Date", "Weekly_Sales")
    assert table.cells.select("Dept", "Date", "Weekly_Sales").rows() == [
        ("A", "2024-09-01", "1"), ("A", "2024-09-08", "2"), ("B", "2024-09-01", "3"), ("B", "2024-09-08", ""),
    ]  # fmt: skip
    assert table.cells[ROW].is_unique().all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"Store,Dept\n", "has no rows"),
        (b"Store,Store\n1,2\n", "more than one column named 'Store'"),
        (b"\0\1\2", "is not text"),
        (b"PAR1xxxx", "cannot be read"),
        (b"\x1f\x8bxxxx", "cannot be read"),
        (workbook()[:900], "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path / "x.csv", content)
    assert "\n" not in str(refused.value)
