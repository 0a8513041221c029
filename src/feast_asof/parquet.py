"""A Parquet writer for disks that may be full."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class FileWriter(pq.ParquetWriter):  # type: ignore[misc]  # PyArrow has no types
    """A ParquetWriter that does nothing when it is collected unclosed, after an error."""

    def __del__(self) -> None:
        """PyArrow would write the footer of the abandoned file here, which on a full disk prints a traceback."""


def table_file(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a table as one Parquet file at `path` itself."""
    with FileWriter(path, table.schema, compression="zstd", **options) as writer:
        writer.write_table(table)
