"""Encode columns as integers: join keys by value and type, timestamps as instants."""

from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_asof.asof import Codes, Ints, dense
from feast_asof.errors import AsofError

WIDE = 2**31  # integer keys with a larger range are renumbered
ZONE = r":\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)$"

KINDS: Final[dict[str, list[Callable[[pa.DataType], bool]]]] = {
    "integer": [pa.types.is_integer],
    "string": [pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view],
    "bytes": [pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view],
    "boolean": [pa.types.is_boolean],
    "date": [pa.types.is_date],
    "timestamp": [pa.types.is_timestamp],
    "float": [pa.types.is_floating],
    "decimal": [pa.types.is_decimal],
    "null": [pa.types.is_null],
}


def flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One contiguous array, dictionaries decoded."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def ints(array: pa.Array) -> Ints:
    """The values of a 64-bit array as int64 without a copy; the value of a null is undefined."""
    if array.null_count:
        array = array.fill_null(0)
    return np.asarray(array.view(pa.int64()) if array.type != pa.int64() else array)


def key_class(dtype: pa.DataType) -> str:
    """What kind of value a join key holds; only keys of one kind can be compared."""
    if pa.types.is_dictionary(dtype):
        return key_class(dtype.value_type)
    return next((name for name, checks in KINDS.items() if any(check(dtype) for check in checks)), str(dtype))


def is_time(dtype: pa.DataType) -> bool:
    """Whether `instants` accepts columns of this type."""
    return key_class(dtype) in ("timestamp", "date", "string", "null")


def check_key(name: str, entity: pa.DataType, source: pa.DataType, view: str) -> None:
    """Raise AsofError unless a key of the entity frame can equal one of the source.

    A float column may hold integers (pandas casts integers with nulls to float). A column of nulls matches nothing
    and is accepted.
    """
    left, right = key_class(entity), key_class(source)
    if left == right or "null" in (left, right) or {left, right} == {"float", "integer"}:
        return
    raise AsofError(
        f"join key {name!r}: the entity frame has {entity}, the source of feature view {view!r} has {source}; "
        f"a {left} never equals a {right}: cast one of them"
    )


def common(array: pa.Array) -> pa.Array:
    """The same values in the widest type of their class."""
    wide = {
        "string": pa.large_string(),
        "bytes": pa.large_binary(),
        "date": pa.date32(),
        "float": pa.float64(),
        "boolean": pa.int64(),
        "decimal": pa.decimal256(76, getattr(array.type, "scale", 0)),
    }
    kind = key_class(array.type)
    if kind == "timestamp":
        return instants(array)[0]
    array = array.cast(wide[kind]) if kind in wide else array
    array = array.cast(pa.int32()).cast(pa.int64()) if kind == "date" else array
    if kind == "float":
        array = pc.if_else(pc.is_nan(array), None, array)
    return array.cast(pa.int64()) if kind == "integer" and array.type != pa.uint64() else array


def _align(source: pa.Array, entity: pa.Array, name: str) -> tuple[pa.Array, pa.Array]:
    """Both sides in one type, so that equal values are equal."""
    source, entity = common(source), common(entity)
    kinds = {key_class(source.type), key_class(entity.type)}
    if kinds == {"float", "integer"}:
        try:
            return source.cast(pa.int64()), entity.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise AsofError(
                f"join key {name!r}: one side has integers, the other floats that are not 64-bit integers ({error}): "
                "cast the column"
            ) from error
    if source.type != entity.type and pa.uint64() in (source.type, entity.type):
        return source.cast(pa.decimal128(20)), entity.cast(pa.decimal128(20))
    if kinds == {"decimal"}:
        scale = max(source.type.scale, entity.type.scale)
        return source.cast(pa.decimal256(76, scale)), entity.cast(pa.decimal256(76, scale))
    return source, entity


def key_codes(source: pa.Array, entity: pa.Array, name: str) -> Codes:
    """Codes of one join key column; the source has no nulls, a null in the entity frame gets -1.

    Codes have the order of the values, so that a file sorted by its keys need not be sorted again.
    """
    source, entity = _align(flat(source), flat(entity), name)
    if len(source) == 0 or pa.types.is_null(entity.type):
        return Codes(np.zeros(len(source), np.int64), np.full(len(entity), -1), 1)
    if source.type == pa.int64():
        left, right = ints(source), ints(entity)
        low, high = int(left.min()), int(left.max())
        known = (right >= low) & (right <= high)
        if entity.null_count:
            known &= np.asarray(entity.is_valid())
        if high - low < WIDE:
            return Codes(left - low, np.where(known, right - low, -1), high - low + 1)
        codes = dense(Codes(left, right, WIDE))
        return Codes(codes.source, np.where(known, codes.entity, -1), codes.span)
    coded = source.dictionary_encode()
    order = np.asarray(pc.sort_indices(coded.dictionary)).astype(np.int64)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    at = pc.index_in(entity, value_set=coded.dictionary, skip_nulls=True)
    position = np.asarray(at.fill_null(0))
    return Codes(rank[np.asarray(coded.indices)], np.where(np.asarray(at.is_valid()), rank[position], -1), len(order))


def instants(column: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, str]:
    """Timestamps as int64 since 1970-01-01 UTC and their unit: "us" where that is exact, else "ns".

    Accepts timestamps (naive ones are UTC), dates and ISO 8601 strings.
    Raises AsofError for any other type and for text that is not a timestamp.
    """
    array = flat(column)
    if key_class(array.type) == "string":
        array = parse(array)
    elif pa.types.is_date(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(array.type):
        raise AsofError(f"{array.type} is not a timestamp type: give datetimes or ISO 8601 strings")
    unit = array.type.unit
    if unit != "ns":
        try:
            return array.cast(pa.timestamp("us", array.type.tz)).view(pa.int64()), "us"
        except pa.ArrowInvalid as error:
            raise AsofError(f"a timestamp lies outside the range of microseconds: {error}") from error
    nanos = array.view(pa.int64())
    if len(nanos) and np.any(ints(nanos) % 1000):
        return nanos, "ns"
    return pc.divide(nanos, 1000), "us"


def parse(text: pa.Array) -> pa.Array:
    """ISO 8601 strings as timestamps, UTC where they name no zone. Raises AsofError naming the first bad value."""
    zoned = pc.match_substring_regex(text, ZONE)
    if pc.any(zoned).as_py():
        rest = pc.if_else(zoned, None, text)
        return pc.coalesce(
            _cast_text(pc.if_else(zoned, text, None), "UTC"), _cast_text(rest, None).cast(pa.timestamp("us", "UTC"))
        )
    return _cast_text(text, None)


def _cast_text(text: pa.Array, zone: str | None) -> pa.Array:
    try:
        return text.cast(pa.timestamp("us", zone))
    except pa.ArrowInvalid as error:
        raise AsofError(f"not an ISO 8601 timestamp: {error}") from error


def same_unit(units: set[str], columns: list[tuple[pa.Array, str]]) -> list[Ints]:
    """(values, unit) pairs as int64 arrays in one unit. Raises AsofError where nanoseconds overflow."""
    if units == {"us"}:
        return [ints(values) for values, _ in columns]
    try:
        return [ints(values if unit == "ns" else pc.multiply_checked(values, 1000)) for values, unit in columns]
    except pa.ArrowInvalid as error:
        raise AsofError(
            "some timestamps have nanoseconds and others lie outside 1677-2262, the range of nanoseconds: "
            "round the nanoseconds to microseconds"
        ) from error
