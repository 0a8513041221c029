"""Writing Parquet where the disk may be full."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class FileWriter(pq.ParquetWriter):  # type: ignore[misc]  # PyArrow has no types
    """A Parquet file that its writer closes, or gives up after an error."""

    def __del__(self) -> None:
        """PyArrow would finish here what was given up after an error: on a full disk a traceback, and no use."""


def table_file(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a table as one Parquet file at `path` itself."""
    with FileWriter(path, table.schema, compression="zstd", **options) as writer:
        writer.write_table(table)
