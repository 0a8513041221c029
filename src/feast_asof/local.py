"""Engine `local`: the whole join in this process, on all its cores."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from feast_asof import write
from feast_asof.entity import DEFAULT_TIMESTAMP, EntityFrame
from feast_asof.job import Finish
from feast_asof.join import View, bounds_of, join
from feast_asof.progress import steps
from feast_asof.pull import Columns, between, newest
from feast_asof.source import Source
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
        table = self._rows(of.open())
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


def entities_between(views: list[View], start: datetime, end: datetime) -> pa.Table:
    """The distinct (join keys, event timestamp) of the sources between two moments, sorted; keys a view lacks are null.

    Views without join keys add rows only if no view has any.
    """
    keyed = [view for view in views if view.keys] or views
    frames = []
    for view in keyed:
        columns = [column for column, _ in view.keys]
        of = Columns(view.path, view.filesystem, columns, [*columns, view.timestamp], view.timestamp, None, None)
        table = between(of.open(), of, start, end)
        moments = pc.cast(table[view.timestamp], pa.timestamp("us", "UTC"), safe=False)
        named = {key: table[column] for column, key in view.keys} | {DEFAULT_TIMESTAMP: moments}
        frames.append(pa.table(named))
    union = pa.concat_tables(frames, promote_options="permissive")
    names = [*(name for name in union.column_names if name != DEFAULT_TIMESTAMP), DEFAULT_TIMESTAMP]
    distinct = union.group_by(names).aggregate([]).select(names)
    return distinct.sort_by([(name, "ascending") for name in names])
