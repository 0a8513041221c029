"""The tasks of Ray workers. They depend on files and plain values only, so that a lost task can run again.

Nothing here imports Feast, so that workers start fast.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from feast_asof import encode, gather, join, partition, write
from feast_asof.engine import Finish
from feast_asof.join import Features, View
from feast_asof.partition import Chunk, Range
from feast_asof.source import Source

ROW = "__row__"  # position of an entity row in the entity frame


def join_range(entity: pa.Table, timestamp: str, views: list[tuple[View, Source]]) -> Features:
    """The features of several views for some entity rows, see `join.join`."""
    times = join.entity_times(entity, timestamp)
    features: Features = {}
    for view, source in views:
        features |= join.join(view, source, entity, times)
    return features


def needed(views: list[View], timestamp: str) -> list[str]:
    """The columns of the entity frame that the join needs."""
    return list(dict.fromkeys([*(key for view in views for _, key in view.keys), timestamp]))


def features_table(rows: Range, timestamp: str, views: list[tuple[View, Source]], order: list[str]) -> pa.Table:
    """The features without the entity frame's columns, in the order of its rows."""
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
    return write_finished(join.append_features(entity, join_range(entity, timestamp, views), order), target)


def write_finished(table: pa.Table, target: tuple[Path, Finish | None]) -> int:
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
    index = join.matching_rows(view, source.select(view.index_columns()), entity, join.entity_times(entity, timestamp))
    features = join.gather_features(view, source.select, index, source.num_rows)
    position = np.asarray(encode.flat(entity[ROW]))
    table = pa.table({ROW: entity[ROW]} | features)
    batches = partition.split(table, np.searchsorted(starts, position, side="right") - 1, len(starts))
    return write.batches(batches, table.schema, path)


def collect(number: int, start: int, files: list[list[Path]], order: list[str]) -> pa.Table:
    """The features of one range of entity rows from all buckets of all views, in row order."""
    features: Features = {}
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
    return write_finished(join.append_features(entity, {name: features[name] for name in order}, order), target)
