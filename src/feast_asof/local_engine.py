"""Engine `local`: the join in this process, on all its cores."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from feast_asof import join, write
from feast_asof.engine import EngineSettings, Finish
from feast_asof.entity_frame import DEFAULT_TIMESTAMP, EntityFrame
from feast_asof.join import View
from feast_asof.progress import steps
from feast_asof.pull import Columns, between, newest
from feast_asof.snapshot import Snapshot, consistent
from feast_asof.source import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Historical:
    """A point-in-time join, see `engine.Engine.historical_join`."""

    settings: EngineSettings
    entity: EntityFrame
    views: list[View]
    order: list[str]

    def table(self) -> pa.Table:
        """Rows in the order of the entity frame. Raises AsofError, see `join.join`."""
        return consistent(self._table)

    def _table(self, snapshot: Snapshot) -> pa.Table:
        opened = join.open_views(self.views, snapshot)
        table = self.entity.at(snapshot).load()
        times = join.entity_times(table, self.entity.timestamp)
        features: join.Features = {}
        for view, source in steps(opened, "joining feature views", len(opened)):
            needed = source.within(join.bounds_from_rows(view, source, table, times))
            features |= join.join(view, needed, table, times)
            log.info("joined %s: %d rows x %d features", view.name, table.num_rows, len(view.features))
        result = join.append_features(table, features, self.order)
        log.info("retrieved %d rows x %d columns, %d bytes", result.num_rows, result.num_columns, result.nbytes)
        return result

    def parts(self, folder: Path, finish: Finish | None) -> list[Path]:
        """The result as Parquet files, see `engine.Work`."""
        table = self.table()
        return write.dataset(finish(table) if finish else table, folder)


@dataclass(frozen=True)
class Pull:
    """A plain read of one source, see `engine.Engine.plain_read`."""

    settings: EngineSettings
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
        """The result as Parquet files, see `engine.Work`."""
        table = self.table()
        return write.dataset(finish(table) if finish else table, folder)


historical_join, plain_read = Historical, Pull  # the names of `engine.Engine`


def entities_between(views: list[View], start: datetime, end: datetime) -> EntityFrame:
    """The distinct (join keys, event timestamp) of the sources between two times, sorted; keys a view lacks are null.

    Views without join keys add rows only if no view has any. Only the schema is read before a retrieval.
    """
    keyed = [view for view in views if view.keys] or views

    def schema(snapshot: Snapshot) -> pa.Schema:
        return distinct([(view, view.open(snapshot).schema.empty_table()) for view in keyed]).schema

    def read(snapshot: Snapshot) -> EntityFrame:
        frames = []
        for view, _ in join.open_views(keyed, snapshot):
            columns = [column for column, _ in view.keys]
            of = Columns(view.path, view.filesystem, columns, [*columns, view.timestamp], view.timestamp, None, None)
            frames.append((view, between(of.open(snapshot), of, start, end)))
        table = distinct(frames)
        return EntityFrame(table.schema, DEFAULT_TIMESTAMP, table=table)

    return EntityFrame(consistent(schema), DEFAULT_TIMESTAMP, read_again=read)


def distinct(frames: list[tuple[View, pa.Table]]) -> pa.Table:
    """The distinct (join keys, event timestamp) of rows of some views' sources, sorted."""
    named = []
    for view, table in frames:
        times = pc.cast(table[view.timestamp], pa.timestamp("us", "UTC"), safe=False)
        named.append(pa.table({key: table[column] for column, key in view.keys} | {DEFAULT_TIMESTAMP: times}))
    union = pa.concat_tables(named, promote_options="permissive")
    names = [*(name for name in union.column_names if name != DEFAULT_TIMESTAMP), DEFAULT_TIMESTAMP]
    rows = union.group_by(names).aggregate([]).select(names)
    return rows.sort_by([(name, "ascending") for name in names])
