"""Engine `local`: the whole join in this process, on all its cores."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_asof import columns, encode, kernel, write
from feast_asof.entity import DEFAULT_TIMESTAMP, EntityFrame
from feast_asof.job import Finish
from feast_asof.join import View, bounds_of, join
from feast_asof.progress import steps
from feast_asof.source import Source, bound
from feast_asof.tasks import append, moments_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What engines take from feature_store.yaml."""

    ray_address: str | None = None
    storage: Path | None = None


@dataclass(frozen=True)
class Historical:
    """A point-in-time join: the entity frame with the features `order` appended, each valid at the row's timestamp."""

    settings: Settings
    entity: EntityFrame
    views: list[View]
    order: list[str]

    def table(self) -> pa.Table:
        """Rows in the order of the entity frame. Raises AsofError, see `join.join`."""
        table = self.entity.load()
        moments = moments_of(table, self.entity.timestamp)
        features: dict[str, pa.ChunkedArray] = {}
        for view in steps(self.views, "joining feature views", len(self.views)):
            source = view.open()
            source = source.within(bounds_of(view, source, table, moments))
            features |= join(view, source, table, moments)
            log.info("joined %s: %d rows x %d features", view.name, table.num_rows, len(view.features))
        result = append(table, features, self.order)
        log.info("retrieved %d rows x %d columns, %d bytes", result.num_rows, result.num_columns, result.nbytes)
        return result

    def parts(self, folder: Path, finish: Finish | None) -> list[Path]:
        """The result as Parquet files, see `job.Work`."""
        table = self.table()
        return write.dataset(finish(table) if finish else table, folder)


@dataclass(frozen=True)
class Columns:
    """A plain read of a source: its columns `names` (None: all), and a `constant` column to add."""

    path: str
    filesystem: Any
    keys: list[str]
    names: list[str] | None
    timestamp: str
    created: str | None
    constant: tuple[str, str] | None


@dataclass(frozen=True)
class Pull:
    """Rows of one source between two moments: all, or the newest of every entity."""

    settings: Settings
    columns: Columns
    start: datetime | None
    end: datetime | None
    only_latest: bool

    def table(self) -> pa.Table:
        """Rows in file order. Raises AsofError for unreadable files and missing columns."""
        of = self.columns
        source = Source.open("the source", of.path, of.filesystem)
        names = list(dict.fromkeys(of.names or source.dataset.schema.names))
        table = between(source, of.timestamp, self.start, self.end, names)
        if self.only_latest:
            table = newest(table, of.keys, of.timestamp, of.created)
        if of.constant:
            name, value = of.constant
            table = table.append_column(name, pa.repeat(value, table.num_rows))
        log.info("read %d rows x %d columns of %s, %d bytes", table.num_rows, table.num_columns, of.path, table.nbytes)
        return table

    def parts(self, folder: Path, finish: Finish | None) -> list[Path]:
        """The result as Parquet files, see `job.Work`."""
        table = self.table()
        return write.dataset(finish(table) if finish else table, folder)


def entities_between(views: list[View], start: datetime, end: datetime) -> pa.Table:
    """The distinct (join keys, event timestamp) of the sources between two moments, sorted; keys a view lacks are null.

    Views without join keys add rows only if no view has any.
    """
    keyed = [view for view in views if view.keys] or views
    frames = []
    for view in keyed:
        columns = [column for column, _ in view.keys]
        table = between(view.open(), view.timestamp, start, end, [*columns, view.timestamp])
        moments = pc.cast(table[view.timestamp], pa.timestamp("us", "UTC"), safe=False)
        named = {key: table[column] for column, key in view.keys} | {DEFAULT_TIMESTAMP: moments}
        frames.append(pa.table(named))
    union = pa.concat_tables(frames, promote_options="permissive")
    names = [*(name for name in union.column_names if name != DEFAULT_TIMESTAMP), DEFAULT_TIMESTAMP]
    distinct = union.group_by(names).aggregate([]).select(names)
    return distinct.sort_by([(name, "ascending") for name in names])


def _micros(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return int(pa.scalar(moment, pa.timestamp("us", "UTC")).value)


def between(source: Source, timestamp: str, start: datetime | None, end: datetime | None, names: list[str]) -> pa.Table:
    """Columns `names` of the rows with start <= timestamp <= end (None: open; naive: UTC), null timestamps left out."""
    first, last = _micros(start), _micros(end)
    dtype = source.type_of(timestamp)
    source = source.within({timestamp: (bound(first, dtype, True, "us"), bound(last, dtype, False, "us"))})
    table = source.read(list(dict.fromkeys([*names, timestamp])))
    values, unit = encode.instants(table[timestamp])
    scale = 1000 if unit == "ns" else 1
    keep = np.asarray(values.is_valid())
    if first is not None:
        keep &= encode.ints(values) >= first * scale
    if last is not None:
        keep &= encode.ints(values) <= last * scale
    table = table.select(names)
    return table if keep.all() else table.filter(pa.array(keep))


def newest(table: pa.Table, keys: list[str], timestamp: str, created: str | None) -> pa.Table:
    """The newest row of every key; ties are decided by `created`, then by the later row. Null keys are left out."""
    missing = [np.asarray(pc.is_null(table[key])) for key in keys if table[key].null_count]
    if missing:
        table = table.filter(pa.array(~np.logical_or.reduce(missing)))
    codes = [encode.key_codes(encode.flat(table[key]), encode.flat(table[key])[:0], key) for key in keys]
    time, unit = encode.instants(table[timestamp])
    timed = [(time, unit)]
    if created:
        timed.append(encode.instants(table[created]))
    values, *rest = encode.same_unit({unit for _, unit in timed}, timed)
    age = columns.least(rest[0], timed[1][0].is_null()) if rest else None
    rows = kernel.latest(kernel.combine(codes, table.num_rows, 0), kernel.Side(values, age))
    parts = columns.slices(rows)
    return pa.table({name: columns.gather(table[name], parts, None, name) for name in table.column_names})
