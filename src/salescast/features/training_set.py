"""The training set on disk: write its parts, check that it is complete, scan it."""

from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from feast_asof.parquet import FileWriter
from salescast.errors import UserError
from salescast.runtime import checksums, parquet
from salescast.schema import KEYS

DONE: Final = "_SUCCESS"  # checksums of a training set's parts


def scan(folder: Path) -> pl.LazyFrame:
    """The training set's parts in order. Raises UserError when there are none."""
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise UserError(f"no part-*.parquet in {folder}; run `salescast retrieve` first")
    return pl.scan_parquet(parts, hive_partitioning=False)


def is_complete(training: Path) -> bool:
    """Whether the folder holds a training set that is complete and unchanged."""
    parts = sorted(training.glob("part-*.parquet"))
    return bool(parts) and checksums.verified(parts, training / DONE) is not None


def write_training_set(table: pa.Table, path: Path, group_rows: int = 32_768) -> None:
    """Write rows sorted by keys as one part, in row groups of about `group_rows` rows that never cut a series."""
    with FileWriter(path, table.schema, compression="zstd") as writer:
        parquet.write_series(writer, table, KEYS, group_rows)
