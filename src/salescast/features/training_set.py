"""The training set on disk: write it complete or not at all, and scan it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from feast_asof.parquet import FileWriter
from salescast import schema
from salescast.errors import UserError
from salescast.runtime import parquet

if TYPE_CHECKING:
    pass


logger = logging.getLogger(__name__)


def scan(folder: Path) -> pl.LazyFrame:
    """The training set's parts in order. Raises UserError when there are none."""
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise UserError(f"no part-*.parquet in {folder}; run `salescast retrieve` first")
    return pl.scan_parquet(parts, hive_partitioning=False)


logger = logging.getLogger(__name__)
DONE = "_SUCCESS"  # digests of a training set's parts


def is_complete(training: Path) -> bool:
    """True if a training set is there, complete and unchanged."""
    parts = sorted(training.glob("part-*.parquet"))
    return bool(parts) and parquet.sealed(parts, training / DONE) is not None


def write_training_set(table: pa.Table, path: Path, group_rows: int = 32_768) -> None:
    """Write rows sorted by keys in row groups of about `group_rows` that never cut a series in two."""
    keys = pl.DataFrame(table.select(list(schema.KEYS)))
    starts = keys.select(pl.struct(schema.KEYS).rle_id()).to_series().to_numpy()
    with FileWriter(path, table.schema, compression="zstd") as writer:
        begin = 0
        while begin < len(starts):
            end = min(begin + group_rows, len(starts))
            while end < len(starts) and starts[end] == starts[end - 1]:
                end += 1
            writer.write_table(table.slice(begin, end - begin), row_group_size=end - begin)
            begin = end
