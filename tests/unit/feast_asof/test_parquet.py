"""The Parquet writer. A limit on the size of files stands in for a full disk: it fails the same way."""

import gc
import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_asof.parquet import FileWriter, table_file

TABLE = pa.table({"a": range(10)})


def test_an_abandoned_writer_does_not_write_when_it_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyArrow's own writer does; on a full disk that prints a traceback."""
    writer = FileWriter(tmp_path / "a.parquet", TABLE.schema)
    writer.write_table(TABLE)
    later: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", later.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        del writer
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not later


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table_file(TABLE, tmp_path / "a.parquet", write_page_checksum=True)
    assert pq.read_table(tmp_path / "a.parquet", page_checksum_verification=True).equals(TABLE)
