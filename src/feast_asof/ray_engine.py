"""Engine `ray`: the same joins on many workers. The driver plans; it holds rows only when asked for a table.

There are two plans. If every range of entity rows needs few row groups of the sources (sorted or small files), workers
join range by range. Otherwise sources and entity rows are first scattered into buckets by join key, in the shared
storage, and joined bucket by bucket; then the features are collected range by range. The parts have the order of the
entity frame.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from feast_asof import join, local_engine, partition, pull, ray_tasks, write
from feast_asof.engine import EngineSettings, Finish
from feast_asof.entity_frame import EntityFrame
from feast_asof.errors import AsofError
from feast_asof.join import View
from feast_asof.partition import Chunk, Range
from feast_asof.progress import steps
from feast_asof.ray_connection import connect
from feast_asof.snapshot import Snapshot, consistent
from feast_asof.source import Bounds, Source

log = logging.getLogger(__name__)

RETRIES = 5
CANCEL_SECONDS = 60  # that a cancelled task may take to end
MAX_READ_FACTOR = 4  # above this many source rows for each entity row of a range, scattering is faster
SMALL_SOURCE_ROWS = 1_000_000  # any task may read a source of so many rows completely

Call = tuple[Callable[..., Any], tuple[Any, ...]]


@cache
def remote(function: Callable[..., Any], returns: int) -> Any:
    """The function as a Ray task that Ray repeats if its worker is lost."""
    options = ray.remote(num_cpus=1, max_retries=RETRIES, num_returns=returns, scheduling_strategy="SPREAD")
    return options(function)


def with_row_count(function: Callable[..., pa.Table], *args: Any) -> tuple[int, pa.Table]:
    """The table and its number of rows: the driver waits for the number and fetches the table later."""
    table = function(*args)
    return table.num_rows, table


def run(calls: list[Call], title: str) -> list[int]:
    """Run the calls on workers; returns their (small) results in order.

    Raises AsofError from a task, and if a task lost its worker more than RETRIES times.
    """
    return _wait([remote(function, 1).remote(*args) for function, args in calls], title)


def run_tables(calls: list[Call], title: str) -> list[pa.Table]:
    """Run calls that return tables; returns the tables in order. Raises as `run`."""
    pairs = [remote(with_row_count, 2).remote(function, *args) for function, args in calls]
    _wait([count for count, _ in pairs], title)
    return list(_get([table for _, table in pairs]))


def _wait(refs: list[Any], title: str) -> list[int]:
    waiting = list(refs)
    try:
        for _ in steps(range(len(refs)), title, len(refs)):
            done, waiting = ray.wait(waiting)
            _get(done)
    finally:
        for ref in waiting:
            ray.cancel(ref)
        if waiting:  # their files are about to be removed; they must not write then
            ray.wait(waiting, num_returns=len(waiting), timeout=CANCEL_SECONDS)
    results: list[int] = _get(refs)
    return results


def _get(refs: list[Any]) -> Any:
    try:
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AsofError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise AsofError(
            f"the Ray cluster lost a task {RETRIES + 1} times: {error}; check the memory and the logs of its workers"
        ) from error


@dataclass(frozen=True)
class Job:
    """One range of entity rows and, for every view, the part of its source that they can match."""

    rows: Range
    sources: list[tuple[View, Source]]


@dataclass(frozen=True)
class Historical(local_engine.Historical):
    """A point-in-time join on workers."""

    def table(self) -> pa.Table:
        """The complete result in this process, in the order of the entity frame. Raises AsofError."""
        connect(self.settings.ray_address)
        return consistent(lambda snapshot: self._attempt(snapshot).table())

    def parts(self, folder: Path, finish: Finish | None) -> list[Path]:
        """Workers write the result as ordered files, see `engine.Work`; no row passes through the driver."""
        connect(self.settings.ray_address)
        return consistent(lambda snapshot: self._attempt(snapshot).parts(folder, finish))

    def _attempt(self, snapshot: Snapshot) -> "DistributedJoin":
        sources = join.open_views(self.views, snapshot)
        return DistributedJoin(self.settings, self.entity.at(snapshot), sources, self.order)


@dataclass(frozen=True)
class DistributedJoin:
    """A point-in-time join over one state of the files; workers raise SourceChangedError if a file has changed."""

    settings: EngineSettings
    entity: EntityFrame
    sources: list[tuple[View, Source]]
    order: list[str]

    @property
    def views(self) -> list[View]:
        """The views to join."""
        return [view for view, _ in self.sources]

    def table(self) -> pa.Table:
        """See `Historical.table`."""
        entity, stamp, order = self.entity.load(), self.entity.timestamp, self.order
        if entity.num_rows == 0:
            return local_engine.Historical(self.settings, self.entity, self.views, order).table()
        with self._scratch() as folder:
            jobs = self._jobs()
            if self._can_join_by_range(jobs):
                calls: list[Call] = [
                    (ray_tasks.features_table, (job.rows.only(self._needed()), stamp, job.sources, order))
                    for job in jobs
                ]
            else:
                files = self._scatter([job.rows for job in jobs], folder)
                calls = [(ray_tasks.collect, (n, job.rows.start, files, order)) for n, job in enumerate(jobs)]
            features = pa.concat_tables(run_tables(calls, "joining partitions"))
        log.info("joined %d rows in %d partitions, %d bytes", features.num_rows, len(calls), features.nbytes)
        return join.append_features(entity, {name: features[name] for name in order}, order)

    def parts(self, folder: Path, finish: Finish | None) -> list[Path]:
        """See `Historical.parts`."""
        names, stamp, order = self.entity.schema.names, self.entity.timestamp, self.order
        jobs = self._jobs()
        if not jobs:
            return local_engine.Historical(self.settings, self.entity, self.views, order).parts(folder, finish)
        files = [f"part-{number:05d}.parquet" for number, _ in enumerate(jobs)]
        with self._scratch() as scratch, write.atomic(folder) as beside:
            beside.mkdir()
            if self._can_join_by_range(jobs):
                calls: list[Call] = [
                    (ray_tasks.write_range, (job.rows, names, stamp, job.sources, order, (beside / file, finish)))
                    for file, job in zip(files, jobs, strict=True)
                ]
            else:
                scattered = self._scatter([job.rows for job in jobs], scratch)
                calls = [
                    (ray_tasks.write_collected, (job.rows, names, n, scattered, order, (beside / file, finish)))
                    for n, (file, job) in enumerate(zip(files, jobs, strict=True))
                ]
            sizes = run(calls, "writing partitions")
        log.info("wrote %d rows in %d partitions, %d bytes", sum(j.rows.length for j in jobs), len(jobs), sum(sizes))
        return [folder / file for file in files]

    def _needed(self) -> list[str]:
        return ray_tasks.needed(self.views, self.entity.timestamp)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with write.scratch(self.settings.storage or Path(tempfile.gettempdir())) as folder:
            yield folder

    def _part_rows(self, rows: int) -> int:
        features = pa.schema([(f.name, f.dtype or pa.string()) for view in self.views for f in view.features])
        row_bytes = partition.width(self.entity.schema) + partition.width(features)
        return partition.part_rows(row_bytes, rows, workers())

    def _ranges(self) -> list[Range]:
        """The entity frame, cut to the memory share of one task."""
        table = self.entity.table
        if table is not None:
            size = self._part_rows(table.num_rows)
            return [Range(start, table.slice(start, size)) for start in range(0, table.num_rows, size)]
        assert self.entity.source is not None
        ranges, start = [], 0
        for chunk in partition.chunks(self.entity.source, self._part_rows(self.entity.source.rows())):
            ranges.append(Range(start, chunk))
            start += chunk.length
        return ranges

    def _jobs(self) -> list[Job]:
        return [
            Job(
                rows,
                [(view, source.within(range_bounds(view, source, rows, self.entity))) for view, source in self.sources],
            )
            for rows in self._ranges()
        ]

    def _can_join_by_range(self, jobs: list[Job]) -> bool:
        """Whether each range needs only so few rows of each source that workers can join range by range."""
        return all(
            source.rows() <= max(SMALL_SOURCE_ROWS, MAX_READ_FACTOR * job.rows.length)
            for job in jobs
            for _, source in job.sources
        )

    def _scatter(self, ranges: list[Range], folder: Path) -> list[list[Path]]:
        """Join by buckets; returns for every view the files with its features, one batch for each range."""
        if self.settings.storage is None and self.settings.ray_address:
            raise AsofError(
                "the files are not sorted by their join keys, so workers must exchange rows: "
                "set offline_store.storage_path in feature_store.yaml to a folder that all workers share"
            )
        starts, stamp, sources = [rows.start for rows in ranges], self.entity.timestamp, self.sources
        count = max(self._buckets(source, view) for view, source in sources)
        calls: list[Call] = []
        staged: list[tuple[View, list[Path], list[Path]]] = []
        scattered: dict[tuple[tuple[str, str], ...], list[Path]] = {}  # entity files by keys and their types
        partners = {field.name: field.type for field in self.entity.schema}
        for number, (view, source) in enumerate(sources):
            size = self._source_rows(source, view)
            files = []
            for at, chunk in enumerate(partition.chunks(source, size) or [Chunk(source, 0, 0)]):
                files.append(folder / f"source-{number}-{at}.arrow")
                calls.append((ray_tasks.scatter_source, (chunk, view, partners, count, files[-1])))
            keys = [(key, source.type_of(column)) for column, key in view.keys]
            name = tuple((key, str(dtype)) for key, dtype in keys)
            if name not in scattered:
                scattered[name] = [folder / f"entity-{number}-{at}.arrow" for at, _ in enumerate(ranges)]
                needed = list(dict.fromkeys([*(key for key, _ in keys), stamp]))
                for rows, file in zip(ranges, scattered[name], strict=True):
                    calls.append((ray_tasks.scatter_entities, (rows.only(needed), keys, stamp, count, file)))
            staged.append((view, files, scattered[name]))
        log.info("scattered to %d buckets, %d bytes", count, sum(run(calls, "scattering by join key")))
        calls, joined = [], []
        for number, (view, files, entities) in enumerate(staged):
            joined.append([folder / f"joined-{number}-{bucket}.arrow" for bucket in range(count)])
            for bucket, file in enumerate(joined[-1]):
                calls.append((ray_tasks.join_bucket, (bucket, view, (files, entities), stamp, starts, file)))
        run(calls, "joining buckets")
        return joined

    def _source_rows(self, source: Source, view: View) -> int:
        wanted = {*view.index_columns(), *(feature.column for feature in view.features)}
        schema = pa.schema([field for field in source.dataset.schema if field.name in wanted])
        return max(partition.PART_BYTES // partition.width(schema), 1)

    def _buckets(self, source: Source, view: View) -> int:
        return max(-(-source.rows() // self._source_rows(source, view)), workers() if view.keys else 1)


def workers() -> int:
    """CPUs of the cluster."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def range_bounds(view: View, source: Source, rows: Range, entity: EntityFrame) -> Bounds:
    """The bounds of a source for a range of entity rows, from the rows or from the statistics of their file."""
    if isinstance(rows.rows, pa.Table):
        return join.bounds_from_rows(view, source, rows.rows, join.entity_times(rows.rows, entity.timestamp))
    names = [*(key for _, key in view.keys if join.prunable(entity.schema.field(key).type)), entity.timestamp]
    spans = {name: rows.rows.statistics(name) for name in dict.fromkeys(names)}
    known = {name: span for name, span in spans.items() if span is not None}
    return join.bounds_from_ranges(view, source, known, entity.timestamp)


@dataclass(frozen=True)
class Pull(local_engine.Pull):
    """A plain read of one source; workers find the newest rows chunk by chunk."""

    def _rows(self, source: Source) -> pa.Table:
        of = self.columns
        if not self.only_latest:
            return super()._rows(source)
        connect(self.settings.ray_address)
        source = pull.within(source, of.timestamp, self.start, self.end)
        size = partition.part_rows(partition.width(source.schema), source.rows(), workers())
        calls: list[Call] = [
            (pull.newest_of, (chunk, of, self.start, self.end)) for chunk in partition.chunks(source, size)
        ]
        if not calls:
            return super()._rows(source)
        return pull.newest(pa.concat_tables(run_tables(calls, "finding the newest rows")), of)


historical_join, plain_read = Historical, Pull  # the names of `engine.Engine`
