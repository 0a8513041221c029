"""Parquet files with page checksums, so that damage is an error and not a wrong number; row groups of whole series."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feast_asof.parquet import FileWriter, table_file
from salescast.errors import UserError
from salescast.runtime.atomic_files import replace_file

# Polars panics at metadata that is not UTF-8.
DAMAGED: Final = (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException)


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as one file, atomically, with a checksum in every page."""
    with replace_file(path) as temporary:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        table_file(table, temporary, write_page_checksum=True)


def read(path: Path, remedy: str) -> pl.DataFrame:
    """Read a file that `write` wrote.

    Raises UserError, which ends with `remedy`, when the file is missing, cut off or changed.
    """
    try:
        return pl.DataFrame(pq.read_table(path, page_checksum_verification=True))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason[:200]}); {remedy}") from None


def write_series(writer: FileWriter, table: pa.Table, keys: Sequence[str], rows: int) -> None:
    """Append `table`, sorted by `keys`, in row groups that hold complete series and at least `rows` rows.

    The last row group may be smaller.
    """
    series = pl.DataFrame(table.select(list(keys))).select(pl.struct(keys).rle_id()).to_series().to_numpy()
    ends = np.append(np.flatnonzero(np.diff(series)) + 1, len(series))
    start = 0
    while start < len(series):
        end = int(ends[min(int(np.searchsorted(ends, start + rows)), len(ends) - 1)])
        writer.write_table(table.slice(start, end - start), row_group_size=end - start)
        start = end
