"""How engine `ray` divides the work: entity rows into ranges, files into chunks, rows into buckets by join key."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

from feast_asof import encode
from feast_asof.source import Source

PART_BYTES = 256 << 20  # a task needs about four times this: its rows, a column being gathered, result, buffers
MIN_ROWS = 50_000  # starting a task with fewer rows takes longer than running it
TEXT_BYTES = 24  # assumed for values of variable width


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a source for one task: `length` rows from `offset` on."""

    source: Source
    offset: int
    length: int

    def read(self, columns: list[str]) -> pa.Table:
        """Some columns of its rows. Raises AsofError, see `Source.read`."""
        return self.source.read(columns).slice(self.offset, self.length)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of its columns."""
        return self.source.schema

    def statistics(self, column: str) -> tuple[pa.Scalar, pa.Scalar] | None:
        """Least and greatest value of a column from the metadata of its row groups, None if those have none."""
        dtype = self.source.type_of(column)
        groups = [group.statistics or {} for fragment in self.source.fragments({}) for group in fragment.row_groups]
        if not all(column in group for group in groups):
            return None
        least, greatest = min(group[column]["min"] for group in groups), max(group[column]["max"] for group in groups)
        return pa.scalar(least, dtype), pa.scalar(greatest, dtype)


@dataclass(frozen=True)
class Range:
    """Consecutive entity rows from `start` on, in memory or in files."""

    start: int
    rows: pa.Table | Chunk

    @property
    def length(self) -> int:
        """Number of rows."""
        return self.rows.num_rows if isinstance(self.rows, pa.Table) else self.rows.length

    def read(self, columns: list[str]) -> pa.Table:
        """Some columns. Raises AsofError, see `Source.read`."""
        return self.rows.select(columns) if isinstance(self.rows, pa.Table) else self.rows.read(columns)

    def only(self, columns: list[str]) -> Self:
        """The same rows; if they are in memory, only with these columns, which saves sending the others."""
        return type(self)(self.start, self.rows.select(columns)) if isinstance(self.rows, pa.Table) else self


def width(schema: pa.Schema) -> int:
    """Estimated bytes of one row by its types (lists: 64 values)."""
    total = 0
    for field in schema:
        if pa.types.is_nested(field.type):
            total += 64 * 8
        else:
            total += field.type.bit_width // 8 + 1 if pa.types.is_primitive(field.type) else TEXT_BYTES
    return max(total, 1)


def part_rows(row_bytes: int, rows: int, workers: int) -> int:
    """Rows of one task: within its memory share, and so few that every worker gets a task."""
    fitting = max(PART_BYTES // row_bytes, 1)
    even = -(-rows // workers)
    return max(min(fitting, max(even, MIN_ROWS)), 1)


def chunks(source: Source, rows: int) -> list[Chunk]:
    """The source in file order as chunks of at most about `rows` rows: several row groups, or slices of a large one."""
    result: list[Chunk] = []
    pieces: list[ds.ParquetFileFragment] = []
    held = 0
    for piece in (piece for fragment in source.fragments({}) for piece in fragment.split_by_row_group()):
        count = piece.row_groups[0].num_rows
        if pieces and held + count > rows:
            result.append(Chunk(source.restricted_to(pieces), 0, held))
            pieces, held = [], 0
        if count > rows:
            result += [Chunk(source.restricted_to([piece]), at, min(rows, count - at)) for at in range(0, count, rows)]
        elif count:
            pieces.append(piece)
            held += count
    return [*result, Chunk(source.restricted_to(pieces), 0, held)] if pieces else result


def hashable(column: pa.ChunkedArray, partner: pa.DataType) -> pa.Array:
    """The column in a type in which it has the same hashes as equal values of a `partner` column."""
    array = encode.common(encode.flat(column))
    kinds = {encode.key_class(array.type), encode.key_class(partner)}
    if kinds == {"float", "integer"} or array.type == pa.uint64():
        return array.cast(pa.int64()) if array.type != pa.uint64() else array.view(pa.int64())
    if kinds == {"decimal"}:
        return array.cast(pa.float64())
    return array.cast(pa.int64()) if pa.types.is_null(array.type) else array


def buckets(columns: list[pa.Array], rows: int, count: int) -> npt.NDArray[np.int64]:
    """The bucket in [0, count) of every row by its join keys; equal keys get the same one in every process."""
    if not columns:
        return np.zeros(rows, np.int64)
    frame = pl.DataFrame({str(number): pl.Series(column) for number, column in enumerate(columns)})
    hashes = frame.hash_rows(seed=1).to_numpy()
    return (hashes % np.uint64(count)).astype(np.int64)


def split(table: pa.Table, bucket: npt.NDArray[np.int64], count: int) -> list[pa.RecordBatch]:
    """One record batch for each bucket; rows keep their order."""
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(count + 1))
    ordered = table.take(pa.array(order)).combine_chunks()
    return [one_batch(ordered.slice(ends[i], ends[i + 1] - ends[i])) for i in range(count)]


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as a single record batch."""
    columns = [encode.flat(column) if column.num_chunks != 1 else column.chunk(0) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)
