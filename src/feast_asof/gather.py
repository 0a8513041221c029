"""Gather feature columns by row index and cast them to their declared types."""

from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from feast_asof.asof import SLICE, Ints
from feast_asof.errors import AsofError

WIDE_BYTES = 2**30  # text columns larger than this get 64-bit offsets


def slices(index: Ints) -> list[pa.Array]:
    """The index as Arrow arrays of at most SLICE rows, null where it is negative."""
    parts = [index[start : start + SLICE] for start in range(0, len(index), SLICE)]
    return [pa.array(part, mask=part < 0) if part.min() < 0 else pa.array(part) for part in parts]


def _is_plain_list(dtype: pa.DataType) -> bool:
    if not (pa.types.is_list(dtype) or pa.types.is_large_list(dtype)):
        return False
    return bool(pa.types.is_primitive(dtype.value_type) or pa.types.is_string(dtype.value_type))


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    """One array; text and bytes too large for 32-bit offsets get 64-bit ones."""
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(column.type)
    if wide is not None and column.nbytes > WIDE_BYTES:
        column = column.cast(wide)
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def as_declared(column: pa.ChunkedArray, dtype: pa.DataType | None, what: str) -> pa.ChunkedArray:
    """The column in its declared type. Raises AsofError, naming `what`, where a value does not fit."""
    if dtype is None or column.type == dtype:
        return column
    try:
        return column.cast(dtype, safe=not pa.types.is_floating(dtype))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise AsofError(
            f"{what} is declared {dtype}, the file has {column.type}, and it does not convert: {error}"
        ) from error


def gather(column: pa.ChunkedArray, index: Iterable[pa.Array], dtype: pa.DataType | None, what: str) -> pa.ChunkedArray:
    """`column[index]` as a column of the declared type; null where the index is null.

    Args:
        column: all rows of one source column.
        index: int64 arrays, one for each chunk of the result.
        dtype: the declared type, None = as in the file.
        what: name of the column in messages.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    source = _contiguous(column)
    if _is_plain_list(source.type):  # Arrow's take builds lists value by value, which is slow
        series = pl.Series(source)
        chunks = [series.gather(pl.Series(part)).to_arrow().cast(source.type) for part in index]
    else:
        chunks = [pc.take(source, part, boundscheck=False) for part in index]
    return as_declared(pa.chunked_array(chunks, source.type), dtype or column.type, what)


def nulls_to_min(values: Ints, missing: pa.Array) -> Ints:
    """`values` with the smallest int64 where `missing` is true."""
    return np.where(np.asarray(missing), np.iinfo(np.int64).min, values)
