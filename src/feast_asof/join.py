"""The join of one feature view onto entity rows: read, encode, search, gather. Both engines use it."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_asof import asof, encode, gather
from feast_asof.errors import AsofError
from feast_asof.snapshot import Snapshot
from feast_asof.source import Bounds, Source, bound

READ_VALUES = 1 << 20  # values of all columns that one thread reads at once
Features = dict[str, pa.ChunkedArray]
Times = tuple[pa.Array, str]  # timestamps as `encode.instants` gives them


@dataclass(frozen=True)
class Feature:
    """One feature: its column in the file, its name in the result, its declared type (None: as in the file)."""

    column: str
    name: str
    dtype: pa.DataType | None


@dataclass(frozen=True)
class View:
    """What to join from one feature view. It is pickled for the workers, so it holds plain values only."""

    name: str
    path: str
    filesystem: Any
    keys: tuple[tuple[str, str], ...]  # (column of the source, column of the entity frame)
    timestamp: str
    created: str | None
    features: tuple[Feature, ...]
    ttl: int  # microseconds, 0 = no limit
    known_at: bool  # only rows created at or before the entity timestamp

    def open(self, snapshot: Snapshot) -> Source:
        """Its Parquet files. Raises AsofError, see `Source.open`."""
        return Source.open(f"the source of feature view {self.name!r}", self.path, self.filesystem, snapshot)

    def index_columns(self) -> list[str]:
        """The columns of the source that the search needs: keys, timestamp and created timestamp."""
        created = [self.created] if self.created else []
        return list(dict.fromkeys([*(column for column, _ in self.keys), self.timestamp, *created]))


def open_views(views: list[View], snapshot: Snapshot) -> list[tuple[View, Source]]:
    """The sources of all views, in states that existed at the same time.

    Raises SourceChangedError if a file changed while the others were opened, AsofError as `Source.open`.
    """
    opened = [(view, view.open(snapshot)) for view in views]
    snapshot.check_unchanged()
    return opened


def prunable(dtype: pa.DataType) -> bool:
    """Whether row group statistics of key columns of this type can be compared with a range."""
    return not pa.types.is_dictionary(dtype) and encode.key_class(dtype) in ("integer", "string", "date", "timestamp")


def key_bounds(view: View, source: Source, ranges: Mapping[str, tuple[Any, Any]]) -> Bounds:
    """Ranges of the entity frame's keys in the source's types; keys that do not convert are left out."""
    bounds = {}
    for column, key in view.keys:
        dtype = source.type_of(column)
        low, high = ranges.get(key, (None, None))
        if (
            low is None
            or not low.is_valid
            or not prunable(dtype)
            or encode.key_class(dtype) != encode.key_class(low.type)
        ):
            continue
        try:
            bounds[column] = (low.cast(dtype), high.cast(dtype))
        except pa.ArrowInvalid:  # a key beyond the column's width: do not prune by it
            continue
    return bounds


def bounds_from_rows(view: View, source: Source, entity: pa.Table, times: Times) -> Bounds:
    """The ranges of keys and timestamps in the source that these entity rows can match."""
    spans = {key: pc.min_max(entity[key]) for _, key in view.keys if prunable(entity[key].type)}
    bounds = dict(key_bounds(view, source, {key: (span["min"], span["max"]) for key, span in spans.items()}))
    values, unit = times
    span = pc.min_max(values)
    if span["max"].is_valid:
        bounds[view.timestamp] = time_bounds(view, source, span["min"].as_py(), span["max"].as_py(), unit)
    return bounds


def bounds_from_ranges(view: View, source: Source, ranges: Mapping[str, tuple[Any, Any]], timestamp: str) -> Bounds:
    """The same from (least, greatest) values of entity columns, where those are known."""
    bounds = dict(key_bounds(view, source, ranges))
    if timestamp in ranges and not pa.types.is_string(ranges[timestamp][0].type):
        # Scalars, not datetimes: after some imports PyArrow 25 ignores the zones of a list of datetimes.
        values, unit = encode.instants(pa.array(ranges[timestamp], ranges[timestamp][0].type))
        bounds[view.timestamp] = time_bounds(view, source, values[0].as_py(), values[1].as_py(), unit)
    return bounds


def time_bounds(view: View, source: Source, first: int, last: int, unit: str) -> tuple[Any, Any]:
    """The source timestamps that entity timestamps from `first` to `last` can see."""
    dtype = source.type_of(view.timestamp)
    ttl = view.ttl * (1000 if unit == "ns" else 1)
    return bound(first - ttl if ttl else None, dtype, True, unit), bound(last, dtype, False, unit)


def matching_rows(view: View, table: pa.Table, entity: pa.Table, times: Times) -> asof.Ints:
    """For each entity row the position of its row in `table` (the view's index columns), -1 for none.

    `times` are the entity timestamps from `encode.instants`.
    """
    usable = [table[column] for column, _ in view.keys] + [table[view.timestamp]]
    rows = None
    if any(column.null_count for column in usable):
        valid = np.logical_and.reduce([np.asarray(pc.is_valid(column)) for column in usable])
        rows = np.flatnonzero(valid)
        table = table.take(pa.array(rows))
    codes = [encode.key_codes(encode.flat(table[c]), encode.flat(entity[key]), key) for c, key in view.keys]
    keys = asof.combine(codes, table.num_rows, entity.num_rows)
    timed = [encode.instants(table[view.timestamp]), times]
    if view.created:
        timed.append(encode.instants(table[view.created]))
    units = {unit for _, unit in timed}
    time, now, *rest = encode.same_unit(units, timed)
    if times[0].null_count:
        keys = asof.Codes(keys.source, np.where(np.asarray(times[0].is_valid()), keys.entity, -1), keys.span)
    created = gather.nulls_to_min(rest[0], timed[2][0].is_null()) if rest else None
    ttl = view.ttl * (1000 if "ns" in units else 1)
    index = asof.asof(keys, asof.Side(time, created), now, ttl, view.known_at)
    return index if rows is None or not len(rows) else np.where(index < 0, -1, rows[index])


def gather_features(view: View, read: Callable[[list[str]], pa.Table], index: asof.Ints, rows: int) -> Features:
    """The view's features at `index`, from a source of `rows` rows; each thread takes a few columns at a time."""
    parts = gather.slices(index)

    def some(features: tuple[Feature, ...]) -> Features:
        table = read(list(dict.fromkeys(feature.column for feature in features)))
        return {
            feature.name: gather.gather(
                table[feature.column],
                parts,
                feature.dtype,
                f"feature {feature.column!r} of feature view {view.name!r}",
            )
            for feature in features
        }

    # Every read also costs time for each column in the file, so read few columns at a time only if they are long.
    size = max(min(READ_VALUES // max(rows, 1), -(-len(view.features) // asof.threads())), 1)
    groups = [view.features[at : at + size] for at in range(0, len(view.features), size)]
    result: Features = {}
    with ThreadPoolExecutor(asof.threads()) as pool:
        for features in pool.map(some, groups):
            result |= features
    return result


def entity_times(table: pa.Table, timestamp: str) -> Times:
    """Entity timestamps as integers. Raises AsofError naming the column."""
    try:
        return encode.instants(table[timestamp])
    except AsofError as error:
        raise AsofError(f"column {timestamp!r} of the entity frame: {error}") from error


def append_features(table: pa.Table, features: Features, order: list[str]) -> pa.Table:
    """The table with features appended in the given order."""
    added = pa.table([features[name] for name in order], names=order)
    fields = [*table.schema, *added.schema]
    return pa.Table.from_arrays([*table.columns, *added.columns], schema=pa.schema(fields, table.schema.metadata))


def join(view: View, source: Source, entity: pa.Table, times: Times) -> Features:
    """The features of one view, valid at each entity row.

    Args:
        view: what to join.
        source: its rows, at least those within `bounds_from_rows` the entity rows.
        entity: at least the join key columns, [n] rows.
        times: entity timestamps from `encode.instants`, [n].

    Returns:
        Feature name -> column of n values in the declared type, null where no row was valid.

    Raises:
        AsofError: unreadable source, or values that do not convert to the declared types.
    """
    index = matching_rows(view, source.read(view.index_columns()), entity, times)
    return gather_features(view, source.read, index, source.rows())
