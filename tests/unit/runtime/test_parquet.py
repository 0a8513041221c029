"""A damaged Parquet file is an error with a remedy, never a wrong number."""

import random
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from salescast.errors import UserError
from salescast.runtime import parquet

FRAME = pl.DataFrame(
    {
        "store_id": pl.Series(range(200), dtype=pl.Int32),
        "week": [date(2024, 1, 5)] * 200,
        "yhat": [float(i) ** 1.5 if i % 7 else None for i in range(200)],
        "model": ["salescast", "naive"] * 100,
    }
)


def test_a_table_is_read_back_unchanged(tmp_path: Path) -> None:
    parquet.write(FRAME, tmp_path / "f.parquet")
    assert parquet.read(tmp_path / "f.parquet", "x").equals(FRAME)
    assert pl.read_parquet(tmp_path / "f.parquet").equals(FRAME)
    assert [path.name for path in tmp_path.iterdir()] == ["f.parquet"]


def test_a_flipped_bit_or_a_cut_never_gives_other_values(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    parquet.write(FRAME, path)
    whole = path.read_bytes()
    draw = random.Random(1)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        if draw.random() < 0.8:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            found = parquet.read(path, "make it again")
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and str(error).endswith("; make it again") and "\n" not in str(error)
        else:
            # A bit of the statistics or of a name: the values are right, or columns are missing.
            assert found.equals(FRAME) or found.columns != FRAME.columns or found.schema != FRAME.schema
    assert refused > 200


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.parquet is missing; run it$"):
        parquet.read(tmp_path / "none.parquet", "run it")


def test_metadata_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    """Polars panics at it."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"key": b"\xff"}), path)
    with pytest.raises(UserError, match=r"a.parquet is damaged .*; make it again"):
        parquet.read(path, "make it again")
