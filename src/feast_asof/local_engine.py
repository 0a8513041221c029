"""Engine `local`: the whole join in this process, on all its cores."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from feast_asof import write
from feast_asof.entity_frame import DEFAULT_TIMESTAMP, EntityFrame
from feast_asof.job import Finish
from feast_asof.join import View, bounds_of, join
from feast_asof.progress import steps
from feast_asof.pull import Columns, between, newest
from feast_asof.ray_tasks import append, moments_of
from feast_asof.snapshot import Snapshot, consistent
from feast_asof.source import Source

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
        return consistent(self._table)

    def _table(self, snapshot: Snapshot) -> pa.Table:
        table = self.entity.at(snapshot).load()
        moments = moments_of(table, self.entity.timestamp)
        features: dict[str, pa.ChunkedArray] = {}
        for view in steps(self.views, "joining feature views", len(self.views)):
            source = view.open(snapshot)
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
        table = consistent(lambda snapshot: self._rows(of.open(snapshot)))
        if of.constant:
            name, value = of.constant
            table = table.append_column(name, pa.repeat(value, table.num_rows))
        log.info("read %d rows x %d columns of %s, %d bytes", table.num_rows, table.num_columns, of.path, table.nbytes)
        return table

    def _rows(self, source: Source) -> pa.Table:
        table = between(source, self.columns, self.start, self.end)
        return newest(table, self.columns) if self.only_latest else table

    def parts(self, folder: Path, finish: Finish | None) -> list[Path]:
        """The result as Parquet files, see `job.Work`."""
        table = self.table()
        return write.dataset(finish(table) if finish else table, folder)


def entities_between(views: list[View], start: datetime, end: datetime) -> EntityFrame:
    """The distinct (join keys, event timestamp) of the sources between two moments, sorted; keys a view lacks are null.

    Views without join keys add rows only if no view has any. Only the schema is read before a retrieval.
    """
    keyed = [view for view in views if view.keys] or views

    def schema(snapshot: Snapshot) -> pa.Schema:
        return distinct([(view, view.open(snapshot).schema.empty_table()) for view in keyed]).schema

    def find(snapshot: Snapshot) -> EntityFrame:
        frames = []
        for view in keyed:
            columns = [column for column, _ in view.keys]
            of = Columns(view.path, view.filesystem, columns, [*columns, view.timestamp], view.timestamp, None, None)
            frames.append((view, between(of.open(snapshot), of, start, end)))
        table = distinct(frames)
        return EntityFrame(table.schema, DEFAULT_TIMESTAMP, table=table)

    return EntityFrame(consistent(schema), DEFAULT_TIMESTAMP, find=find)


def distinct(frames: list[tuple[View, pa.Table]]) -> pa.Table:
    """The distinct (join keys, event timestamp) of rows of some views' sources, sorted."""
    named = []
    for view, table in frames:
        moments = pc.cast(table[view.timestamp], pa.timestamp("us", "UTC"), safe=False)
        named.append(pa.table({key: table[column] for column, key in view.keys} | {DEFAULT_TIMESTAMP: moments}))
    union = pa.concat_tables(named, promote_options="permissive")
    names = [*(name for name in union.column_names if name != DEFAULT_TIMESTAMP), DEFAULT_TIMESTAMP]
    found = union.group_by(names).aggregate([]).select(names)
    return found.sort_by([(name, "ascending") for name in names])
