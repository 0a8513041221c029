"""A disk that fills up while Parquet is written: here a limit on the size of files, which fails alike."""

import gc
import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_asof.parquet import FileWriter, table_file

TABLE = pa.table({"a": range(10)})


def test_a_file_that_was_given_up_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyArrow's own writer tries when it is collected; on a full disk that is a traceback nobody can do much with."""
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


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table_file(TABLE, tmp_path / "a.parquet", write_page_checksum=True)
    assert pq.read_table(tmp_path / "a.parquet", page_checksum_verification=True).equals(TABLE)
