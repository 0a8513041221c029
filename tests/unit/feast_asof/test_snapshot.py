"""A retrieval sees one state of each Parquet file, even if the files change while it reads."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from feast import Entity, Field
from feast.types import Int64

from feast_asof import entity_frame, join, local_engine, partition, ray_engine, snapshot
from feast_asof.engine import EngineSettings
from feast_asof.errors import AsofError, SourceChangedError
from feast_asof.join import Feature, View
from feast_asof.source import Source
from feast_asof.store import AsofOfflineStore

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")
ROWS = 1_000
FEATURES = ["f", "g", "h"]
SCHEMA = [Field(name=name, dtype=Int64) for name in FEATURES]
FRAME = pa.table({"id": range(ROWS), "event_timestamp": pa.array([NOON] * ROWS, STAMP)})
Change = Callable[[Path, int], None]


def rows_of_state(number: int) -> pa.Table:
    """Rows whose features encode the key and the number of the state; each state has another order of rows."""
    ids = np.random.default_rng(number).permutation(ROWS)
    values = pa.array(ids * 100 + number)
    return pa.table({"id": ids, "ts": pa.array([NOON] * ROWS, STAMP)} | dict.fromkeys(FEATURES, values))


def save(path: Path, number: int) -> None:
    """Every state has the same layout, so that a reader with stale offsets gets wrong values and no error."""
    pq.write_table(rows_of_state(number), path, row_group_size=100, compression="none", use_dictionary=False)


def replaced(path: Path, number: int) -> None:
    """Write beside and rename. The new file may have the size and the modification time of the old one."""
    times = path.stat()
    beside = path.with_name("beside")
    save(beside, number)
    os.utime(beside, ns=(times.st_atime_ns, times.st_mtime_ns))
    beside.replace(path)


def rewritten(path: Path, number: int) -> None:
    """Write in place: an open file changes, too."""
    save(path, number)


def rotated(path: Path, number: int) -> None:
    """In a folder: add a file of another name and remove the old one."""
    save(path.with_name(f"{number}.parquet"), number)
    path.unlink(missing_ok=True)
    path.with_name(f"{number - 1}.parquet").unlink(missing_ok=True)


CHANGES = {"replaced": replaced, "rewritten": rewritten, "rotated": rotated}


def state_of(table: pa.Table, names: list[str] = FEATURES) -> int:
    """The number of the state that a result is from. Fails if it mixes several."""
    values = np.stack([table[name].to_numpy() - table["id"].to_numpy() * 100 for name in names])
    assert len(np.unique(values)) == 1, f"states {np.unique(values)} in one result"
    return int(values[0, 0])


class Disturbed:
    """Patches `Source.read` so that a file changes before `times` reads, beginning with read number `first`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None], first: int, times: int = 1):
        self.reads = itertools.count()
        read, one_writer = Source.read, threading.Lock()

        def disturbed(source: Source, columns: list[str]) -> pa.Table:
            number = next(self.reads)
            if first <= number < first + times:
                with one_writer:
                    change(number - first + 1)
            return read(source, columns)

        monkeypatch.setattr(Source, "read", disturbed)


@pytest.fixture
def views(tmp_path: Path) -> Callable[..., local_engine.Historical]:
    """Joins of a file, or a folder with one file, as one or several views."""

    def make(folder: bool = False, count: int = 1, frame: Any = FRAME) -> local_engine.Historical:
        (tmp_path / "source").mkdir()
        save(tmp_path / "source" / "0.parquet", 0)
        path = tmp_path / "source" if folder else tmp_path / "source" / "0.parquet"
        found = []
        for number in range(count):
            features = tuple(Feature(name, f"{name}{number or ''}", pa.int64()) for name in FEATURES)
            found.append(View(f"v{number}", str(path), None, (("id", "id"),), "ts", None, features, 0, False))
        order = [feature.name for view in found for feature in view.features]
        return local_engine.Historical(EngineSettings(), entity_frame.read(frame), found, order)

    return make


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("held", [256, 0])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_before_any_read(
    change: str, held: int, first: int, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index columns are read, then each feature column: between any two the file changes."""
    monkeypatch.setattr(snapshot, "MAX_OPEN_FILES", held, raising=False)
    monkeypatch.setattr(join, "READ_VALUES", 1, raising=False)
    job = views(folder=change == "rotated")
    disturbed = Disturbed(monkeypatch, lambda n: CHANGES[change](tmp_path / "source" / "0.parquet", n), first)
    table = job.table()
    assert next(disturbed.reads) > first, "the file was not changed during the join"
    assert state_of(table) in (0, 1)
    if change == "replaced" and held:
        assert state_of(table) == 0, "an open file needs no second attempt"


def test_several_views_of_one_file(views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = views(count=3)
    Disturbed(monkeypatch, lambda n: replaced(tmp_path / "source" / "0.parquet", n), 1, times=10**6)
    assert state_of(job.table(), job.order) == 0


def test_entities_and_features_come_from_the_same_state(
    views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = views()
    path = tmp_path / "source" / "0.parquet"
    frame = local_engine.entities_between(job.views, NOON, NOON)
    pq.write_table(rows_of_state(0).slice(0, 10), path)
    Disturbed(monkeypatch, lambda n: replaced(path, n), 1)
    table = local_engine.Historical(job.settings, frame, job.views, job.order).table()
    assert table.num_rows == 10
    assert state_of(table) == 0


def test_an_entity_file_is_read_at_each_retrieval(views: Any, tmp_path: Path) -> None:
    path = tmp_path / "entities.parquet"
    pq.write_table(FRAME, path)
    job = views(frame=path)
    pq.write_table(FRAME.slice(0, 5), path)
    assert job.table().num_rows == 5
    pq.write_table(FRAME.append_column("more", FRAME["id"]), path)
    with pytest.raises(AsofError, match=r"were id, event_timestamp when .* id, event_timestamp, more now"):
        job.table()


@pytest.mark.parametrize("local_disk", [True, False])
def test_a_file_that_changes_in_every_attempt_is_an_error(
    local_disk: bool, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "ATTEMPTS", 2)
    job, path = views(), tmp_path / "source" / "0.parquet"
    if not local_disk:  # a remote file system tells only sizes and modification times
        job.views[0] = View(**vars(job.views[0]) | {"filesystem": pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())})
    Disturbed(monkeypatch, lambda n: rewritten(path, n), 1, times=10**6)
    with pytest.raises(SourceChangedError, match=r"0\.parquet was replaced or written while it was read"):
        job.table()
    monkeypatch.undo()
    state_of(job.table())


@pytest.mark.parametrize("plan", ["range by range", "through buckets"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("to_files", [True, False])
def test_workers_of_one_retrieval_read_one_state(
    to_files: bool, change: str, plan: str, views: Any, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes after the first task has ended and before the others begin."""
    monkeypatch.setattr(partition, "part_rows", lambda *_: 250)
    if plan == "through buckets":
        monkeypatch.setattr(partition, "PART_BYTES", 10_000)
        monkeypatch.setattr(ray_engine, "SMALL_SOURCE_ROWS", -1)
        monkeypatch.setattr(ray_engine, "MAX_READ_FACTOR", -1)
    path, changed = tmp_path / "source" / "0.parquet", itertools.count(1)

    def interrupted(run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def run_with_change(calls: list[Any], title: str) -> list[Any]:
            first = run(calls[:1], title)
            if next(changed) == 1:
                CHANGES[change](path, 1)
            return first + run(calls[1:], title)

        return run_with_change

    monkeypatch.setattr(ray_engine, "run", interrupted(ray_engine.run))
    monkeypatch.setattr(ray_engine, "run_tables", interrupted(ray_engine.run_tables))
    job = views(folder=change == "rotated")
    storage = tmp_path / "storage"
    job = ray_engine.Historical(EngineSettings(cluster, storage), job.entity, job.views, job.order)
    table = pq.read_table(job.parts(tmp_path / "out", None)) if to_files else job.table()
    assert table["id"].equals(FRAME["id"])
    assert state_of(table) == 1
    assert not list(storage.iterdir())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("latest", [True, False])
def test_pulls_read_one_state(
    latest: bool, repo: Any, customer: Entity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes after the driver has planned the read."""
    path = tmp_path / "v.parquet"
    view = repo.view("v", rows_of_state(0), [customer], schema=SCHEMA, row_group_size=100)
    store = repo.store([customer, view])
    call = AsofOfflineStore.pull_latest_from_table_or_query if latest else AsofOfflineStore.pull_all_from_table_or_query
    job = call(store.config, view.batch_source, ["id"], FEATURES, "ts", None, start_date=NOON, end_date=NOON)
    within = Source.within
    changed = itertools.count(1)

    def planned(source: Source, bounds: Any) -> Source:
        found = within(source, bounds)
        if next(changed) == 1:
            replaced(path, 1)
        return found

    monkeypatch.setattr(Source, "within", planned)
    table = job.to_arrow()
    assert sorted(table["id"].to_pylist()) == list(range(ROWS))
    state_of(table)


def test_the_files_of_a_folder_are_in_simultaneous_states(
    views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file is replaced after it was opened, the second before: that combination never existed."""
    job, folder = views(folder=True), tmp_path / "source"
    for number, name in enumerate(["0.parquet", "1.parquet"]):
        pq.write_table(rows_of_state(0).slice(number * 500, 500), folder / name)
    opened = snapshot.Files.open_input_file
    done: list[str] = []

    def hooked(files: snapshot.Files, path: str) -> pa.NativeFile:
        if path.endswith("1.parquet") and not done:
            done.append(path)
            for number, name in enumerate(["0.parquet", "1.parquet"]):
                pq.write_table(rows_of_state(1).slice(number * 500, 500), folder / "beside")
                (folder / "beside").replace(folder / name)
        return opened(files, path)

    monkeypatch.setattr(snapshot.Files, "open_input_file", hooked)
    assert state_of(job.table()) == 1
    assert done


def two_files(job: local_engine.Historical, folder: Path) -> Callable[[int], None]:
    """Gives the second view a file of its own; returns a writer that replaces that one, then the first."""
    save(folder / "second.parquet", 0)
    job.views[1] = View(**vars(job.views[1]) | {"path": str(folder / "second.parquet")})

    def replace(number: int) -> None:
        replaced(folder / "second.parquet", number)
        replaced(folder / "0.parquet", number)

    return replace


def test_two_files_replaced_between_the_joins_of_two_views(
    views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, joined = views(count=2), join.join
    replace, states = two_files(job, tmp_path / "source"), itertools.count(1)

    def hooked(*args: Any) -> join.Features:
        found = joined(*args)
        replace(next(states))
        return found

    monkeypatch.setattr(join, "join", hooked)
    assert state_of(job.table(), job.order) == 0
    assert next(states) == 3, "open files need no second attempt"


@pytest.mark.parametrize(("opens", "frame"), [(1, "file"), (2, "file"), (1, "from the sources")])
def test_files_replaced_while_a_retrieval_opens_them(
    opens: int, frame: str, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one or two sources are open, all files are replaced: the entity frame and two views agree."""
    entities = tmp_path / "entities.parquet"
    pq.write_table(FRAME.append_column("seen", pa.array(np.arange(ROWS) * 100)), entities)
    job = views(count=2, frame=entities)
    replace, opened, calls = two_files(job, tmp_path / "source"), Source.open, itertools.count(1)
    names = [*job.order, "seen"]
    if frame == "from the sources":
        frame_of_sources = local_engine.entities_between(job.views, NOON, NOON)
        job, names = local_engine.Historical(job.settings, frame_of_sources, job.views, job.order), job.order

    def hooked(*args: Any) -> Source:
        source = opened(*args)
        if next(calls) == opens:
            replace(1)
            pq.write_table(FRAME.append_column("seen", pa.array(np.arange(ROWS) * 100 + 1)), tmp_path / "beside")
            (tmp_path / "beside").replace(entities)
        return source

    monkeypatch.setattr(Source, "open", hooked)
    table = job.table()
    assert next(calls) > opens
    assert state_of(table, names) == 1


def test_entities_come_from_simultaneous_states(views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, folder, opened, calls = views(count=2), tmp_path / "source", Source.open, itertools.count(1)
    two_files(job, folder)
    paths = [folder / "0.parquet", folder / "second.parquet"]

    def write(first: int) -> None:
        for path in paths:
            pq.write_table(FRAME.slice(first, 10).rename_columns(["id", "ts"]), folder / "beside")
            (folder / "beside").replace(path)

    def hooked(*args: Any) -> Source:
        source = opened(*args)
        if next(calls) == 1:
            write(10)
        return source

    write(0)
    frame = local_engine.entities_between(job.views, NOON, NOON)
    monkeypatch.setattr(Source, "open", hooked)
    assert snapshot.consistent(frame.at).column("id").to_pylist() == list(range(10, 20))


@pytest.mark.parametrize("local_disk", [True, False])
@pytest.mark.parametrize("part", ["0.parquet", "1.parquet"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_part_deleted_around_its_opening_starts_the_retrieval_again(
    when: str, part: str, local_disk: bool, views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer puts another part in the place of those that were listed."""
    job, folder, opened = views(folder=True), tmp_path / "source", snapshot.Files.open_input_file
    for number, name in enumerate(["0.parquet", "1.parquet"]):
        pq.write_table(rows_of_state(0).slice(number * 500, 500), folder / name)
    if not local_disk:
        job.views[0] = View(**vars(job.views[0]) | {"filesystem": pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())})

    def hooked(files: snapshot.Files, path: str) -> pa.NativeFile:
        file = opened(files, path) if when == "after" else None
        if path.endswith(part) and (folder / part).exists():
            save(folder / "2.parquet", 1)
            for old in ["0.parquet", "1.parquet"]:
                (folder / old).unlink()
        return file or opened(files, path)

    monkeypatch.setattr(snapshot.Files, "open_input_file", hooked)
    assert state_of(job.table()) == 1


def test_more_files_than_a_process_may_open(views: Any, tmp_path: Path) -> None:
    job, folder = views(folder=True), tmp_path / "source"
    shutil.rmtree(folder)
    folder.mkdir()
    for at in range(0, ROWS, 2):
        pq.write_table(rows_of_state(0).slice(at, 2), folder / f"{at}.parquet")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert state_of(job.table()) == 0
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_wide_file_costs_little_more_than_reading_it(
    views: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every read costs time for each column in the file, so the number of reads must not grow with the features."""
    wide = rows_of_state(0).select(["id", "ts"])
    for number in range(300):
        wide = wide.append_column(f"f{number}", rows_of_state(0)["f"])
    job = views()
    pq.write_table(wide, tmp_path / "source" / "0.parquet")
    features = tuple(Feature(f"f{number}", f"f{number}", pa.int64()) for number in range(300))
    view = View(**vars(job.views[0]) | {"features": features})
    disturbed = Disturbed(monkeypatch, lambda _: None, 0, 0)
    table = local_engine.Historical(job.settings, job.entity, [view], [feature.name for feature in features]).table()
    assert state_of(table, [feature.name for feature in features]) == 0
    assert next(disturbed.reads) < 20
