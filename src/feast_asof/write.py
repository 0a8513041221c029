"""Atomic writes of Parquet and Arrow files, and temporary folders that outlive no retrieval for long."""

import fcntl
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from feast_asof import replace
from feast_asof.errors import AsofError
from feast_asof.parquet import FileWriter, table_file

PART_ROWS = 1 << 22  # rows of one file of a dataset
HEX = "[0-9a-f]{32}"
OWNER = "owner"  # a file in a scratch folder, locked by the process that uses the folder
DAY, WEEK = 86_400.0, 604_800.0  # seconds


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """A temporary path in the folder of `target` for a file or folder; on success it is synced and replaces the target.

    On an error the target stays as it was and the temporary path is removed. The folder of `target` must exist: a task
    that outlives its retrieval must not create it again.
    """
    replace.heal(target)
    beside = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        yield beside
        for path in [beside, *beside.rglob("*")] if beside.is_dir() else [beside]:
            replace.sync(path)
        replace.put(beside, target)
        replace.sync(target.parent)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def parquet(table: pa.Table, path: Path) -> None:
    """Write one Parquet file, atomically."""
    with atomic(path) as beside:
        table_file(table, beside)


def dataset(table: pa.Table, folder: Path) -> list[Path]:
    """Write the rows in order as folder/part-00000.parquet, ...; the folder appears when all are written."""
    starts = range(0, max(table.num_rows, 1), PART_ROWS)
    names = [f"part-{number:05d}.parquet" for number, _ in enumerate(starts)]
    with atomic(folder) as beside:
        beside.mkdir()
        for name, start in zip(names, starts, strict=True):
            table_file(table.slice(start, PART_ROWS), beside / name)
    return [folder / name for name in names]


def export(storage: Path) -> Path:
    """A path for a new export below `storage`; removes exports that were not used for a week."""
    folder = storage / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder, rf"\.{HEX}\.{HEX}", DAY)
    remove_stale(folder, HEX, WEEK)
    return folder / uuid.uuid4().hex


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder below `folder`, removed afterwards. Also removes those of killed retrievals, after a day."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder, rf"\.asof-{HEX}", DAY)
    path = folder / f".asof-{uuid.uuid4().hex}"
    path.mkdir()
    owner = os.open(path / OWNER, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(owner)
        yield path
    finally:
        os.close(owner)
        shutil.rmtree(path, ignore_errors=True)


def _lock(handle: int) -> bool:
    """Lock the file; False if another process holds the lock. A file system without locks counts as free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def remove_stale(folder: Path, name: str, seconds: float) -> None:
    """Remove folders whose names match the pattern `name` that no process uses or has used for `seconds`.

    The clock of the file system gives the time, since those of two machines may differ.
    """
    matching = [path for path in folder.iterdir() if re.fullmatch(name, path.name)]
    if not matching:
        return
    with tempfile.TemporaryFile(dir=folder) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    for path in matching:
        with suppress(FileNotFoundError):  # another process is removing it
            if now - _last_use(path) > seconds and not _in_use(path):
                shutil.rmtree(path, ignore_errors=True)


def _last_use(folder: Path) -> float:
    """The last time that a folder was written to, or anything in it was written or read."""
    states = [path.lstat() for path in [folder, *folder.rglob("*")]]
    # Listing a folder, as this does, sets its access time.
    return max(one.st_mtime if stat.S_ISDIR(one.st_mode) else max(one.st_mtime, one.st_atime) for one in states)


def _in_use(folder: Path) -> bool:
    try:
        handle = os.open(folder / OWNER, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def merge(parts: list[Path], target: Path) -> None:
    """Concatenate Parquet files, row group by row group, into one, atomically."""
    with atomic(target) as beside, FileWriter(beside, pq.read_schema(parts[0]), compression="zstd") as writer:
        for part in parts:
            with pq.ParquetFile(part) as source:
                for group in range(source.num_row_groups):
                    writer.write_table(source.read_row_group(group))


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Lock the folder of `path`: two writers that read and replace a file at once would lose rows."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def append(table: pa.Table, path: Path, view: str) -> None:
    """Add rows to a Parquet file (rewritten atomically) or to a folder (as a new file).

    Raises AsofError if the columns are not exactly the existing ones or a value does not convert.
    """
    folder = path.is_dir()
    existing = ds.dataset(path, format="parquet").schema
    if set(table.column_names) != set(existing.names):
        raise AsofError(
            f"feature view {view!r}: the rows have columns {', '.join(table.column_names)}, "
            f"but {path} has {', '.join(existing.names)}: give exactly those"
        )
    try:
        rows = table.select(existing.names).cast(existing)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise AsofError(f"feature view {view!r}: the rows do not convert to the columns of {path}: {error}") from error
    if folder:
        parquet(rows, path / f"part-{uuid.uuid4().hex}.parquet")
        return
    with exclusive(path), scratch(path.parent) as beside:
        parquet(rows, beside / "new.parquet")
        merge([path, beside / "new.parquet"], path)


def add_files(table: pa.Table, folder: Path, name: str, by: list[str]) -> None:
    """Add rows to a folder of Parquet, in sub-folders by the columns `by`; each file appears complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with scratch(folder) as held:
        beside = held / "new"
        ds.write_dataset(
            table,
            beside,
            format="parquet",
            basename_template=name + "-{i}.parquet",
            partitioning=by,
            partitioning_flavor="hive" if by else None,
        )
        for file in sorted(beside.rglob("*.parquet")):
            replace.sync(file)
            target = folder / file.relative_to(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
            replace.sync(target.parent)


def batches(parts: list[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Write an Arrow file with one batch for each part, atomically; returns its size in bytes."""
    with atomic(path) as beside:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
            for part in parts:
                writer.write_batch(part)
    return path.stat().st_size


def read_batch(paths: list[Path], number: int) -> pa.Table:
    """Batch `number` of every file, concatenated."""
    read = []
    for path in paths:
        with pa.memory_map(str(path)) as source:
            read.append(pa.ipc.open_file(source).get_batch(number))
    return pa.Table.from_batches(read)
