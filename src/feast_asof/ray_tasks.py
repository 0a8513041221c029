"""What Ray workers run: functions of files and plain values, so that a lost task is simply run again.

Nothing here imports Feast: a worker starts in the time that Arrow takes to load.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from feast_asof import encode, gather, join, partition, write
from feast_asof.errors import AsofError
from feast_asof.join import View
from feast_asof.partition import Chunk, Range
from feast_asof.source import Source

Finish = Callable[[pa.Table], pa.Table]
ROW = "__row__"  # position of an entity row in the whole frame


def moments_of(table: pa.Table, timestamp: str) -> join.Moments:
    """Entity timestamps as integers. Raises AsofError naming the column."""
    try:
        return encode.instants(table[timestamp])
    except AsofError as error:
        raise AsofError(f"column {timestamp!r} of the entity frame: {error}") from error


def append(table: pa.Table, features: dict[str, pa.ChunkedArray], order: list[str]) -> pa.Table:
    """The table with features appended in the given order."""
    added = pa.table([features[name] for name in order], names=order)
    fields = [*table.schema, *added.schema]
    return pa.Table.from_arrays([*table.columns, *added.columns], schema=pa.schema(fields, table.schema.metadata))


def join_range(entity: pa.Table, timestamp: str, views: list[tuple[View, Source]]) -> dict[str, pa.ChunkedArray]:
    """The features of several views for some entity rows, see `join.join`."""
    moments = moments_of(entity, timestamp)
    features: dict[str, pa.ChunkedArray] = {}
    for view, source in views:
        features |= join.join(view, source, entity, moments)
    return features


def needed(views: list[View], timestamp: str) -> list[str]:
    """The columns of the entity frame that decide about the join."""
    return list(dict.fromkeys([*(key for view in views for _, key in view.keys), timestamp]))


def features_table(rows: Range, timestamp: str, views: list[tuple[View, Source]], order: list[str]) -> pa.Table:
    """The features alone, in the order of the entity rows."""
    features = join_range(rows.read(needed([view for view, _ in views], timestamp)), timestamp, views)
    return pa.table({name: features[name] for name in order})


def write_range(
    rows: Range,
    names: list[str],
    timestamp: str,
    views: list[tuple[View, Source]],
    order: list[str],
    target: tuple[Path, Finish | None],
) -> int:
    """Write entity rows with their features to a file; returns its size in bytes."""
    entity = rows.read(names)
    return finished(append(entity, join_range(entity, timestamp, views), order), target)


def finished(table: pa.Table, target: tuple[Path, Finish | None]) -> int:
    """Apply the last step, if any, and write the file; returns its size in bytes."""
    path, finish = target
    write.parquet(finish(table) if finish else table, path)
    return path.stat().st_size


def scatter(table: pa.Table, keys: list[pa.Array], count: int, path: Path) -> int:
    """Write a table as an Arrow file of `count` batches by join key; returns its size in bytes."""
    return write.batches(
        partition.split(table, partition.buckets(keys, table.num_rows, count), count), table.schema, path
    )


def scatter_source(chunk: Chunk, view: View, partners: dict[str, pa.DataType], count: int, path: Path) -> int:
    """Scatter rows of a source by the view's keys; `partners` are the types of the entity frame's columns."""
    names = list(dict.fromkeys([*view.index_columns(), *(feature.column for feature in view.features)]))
    table = chunk.read(names)
    keys = [partition.hashable(table[column], partners[key]) for column, key in view.keys]
    return scatter(table, keys, count, path)


def scatter_entities(rows: Range, keys: list[tuple[str, pa.DataType]], timestamp: str, count: int, path: Path) -> int:
    """Scatter keys, timestamps and positions of entity rows; `keys` come with the types of the source's columns."""
    table = rows.read(list(dict.fromkeys([*(key for key, _ in keys), timestamp])))
    hashed = [partition.hashable(table[key], partner) for key, partner in keys]
    position = pa.array(np.arange(rows.start, rows.start + table.num_rows))
    return scatter(table.append_column(ROW, position), hashed, count, path)


def join_bucket(
    bucket: int,
    view: View,
    files: tuple[list[Path], list[Path]],
    timestamp: str,
    starts: list[int],
    path: Path,
) -> int:
    """Join one bucket of a source with one of the entity rows; scatter the features to the ranges of entity rows."""
    sources, entities = files
    entity = write.read_batch(entities, bucket)
    source = write.read_batch(sources, bucket)
    index = join.chosen(view, source.select(view.index_columns()), entity, moments_of(entity, timestamp))
    features = join.features_of(view, source.select, index, source.num_rows)
    position = np.asarray(encode.flat(entity[ROW]))
    table = pa.table({ROW: entity[ROW]} | features)
    batches = partition.split(table, np.searchsorted(starts, position, side="right") - 1, len(starts))
    return write.batches(batches, table.schema, path)


def collect(number: int, start: int, files: list[list[Path]], order: list[str]) -> pa.Table:
    """The features of one range of entity rows from all buckets of all views, in row order."""
    features: dict[str, pa.ChunkedArray] = {}
    for of_view in files:
        table = write.read_batch(of_view, number)
        position = np.asarray(encode.flat(table[ROW])) - start
        index = np.empty(len(position), np.int64)
        index[position] = np.arange(len(position))
        parts = gather.slices(index)
        names = [name for name in table.column_names if name != ROW]
        features |= {name: gather.gather(table[name], parts, None, name) for name in names}
    return pa.table({name: features[name] for name in order})


def write_collected(
    rows: Range,
    names: list[str],
    number: int,
    files: list[list[Path]],
    order: list[str],
    target: tuple[Path, Finish | None],
) -> int:
    """Write entity rows with their collected features to a file; returns its size in bytes."""
    entity, features = rows.read(names), collect(number, rows.start, files, order)
    return finished(append(entity, {name: features[name] for name in order}, order), target)
