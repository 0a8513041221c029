"""Tables are written in the format of the file name."""

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from salescast.data import tables
from salescast.errors import UserError


def test_more_rows_than_a_sheet_holds_are_refused_and_the_earlier_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "all.xlsx"
    tables.write(pl.DataFrame({"week": [date(2025, 1, 3)], "forecast": [1.5]}), path)
    before = path.read_bytes()
    assert before.startswith(b"PK")
    rows = pl.DataFrame({"forecast": pl.zeros(1_048_576, eager=True)})
    with pytest.raises(
        UserError, match=r"1,048,576 rows do not fit .* holds 1,048,575 .*; write all.csv or all.parquet"
    ):
        tables.write(rows, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
