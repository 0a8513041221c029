"""Replacing folders loses nothing in a failure or a kill; what killed processes left is removed."""

import errno
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

from feast_asof import ray_engine, replace, write

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
TABLE = pa.table({"id": [1], "ts": pa.array([NOON], pa.timestamp("us", "UTC")), "f": [7]})
FRAME = pa.table({"id": [1], "event_timestamp": TABLE["ts"]})
DAYS = 86_400.0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def age(folder: Path, days: float) -> None:
    """Set the times of everything in a folder back."""
    then = folder.stat().st_mtime - days * DAYS
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def put_folder(target: Path, content: str) -> None:
    with write.atomic(target) as beside:
        beside.mkdir()
        (beside / "file").write_text(content)


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, swaps: bool
) -> None:
    put_folder(tmp_path / "target", "old")
    if not swaps:
        monkeypatch.setattr(replace, "exchange", lambda *_: False, raising=False)
    rename, calls = Path.rename, []

    def failing_rename(path: Path, to: Path) -> Path:
        calls.append(path)
        if len(calls) == failing:
            raise OSError(errno.EIO, "no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing_rename)
    if swaps:
        put_folder(tmp_path / "target", "new")
    else:
        with pytest.raises(OSError, match="no"):
            put_folder(tmp_path / "target", "new")
    assert names(tmp_path) == ["target"]
    assert (tmp_path / "target" / "file").read_text() == ("new" if swaps else "old")


KILLED = """
import os, pathlib, signal, sys
from feast_asof import replace; from feast_asof import write
from salescast.runtime.atomic_files import replace_dir
replace.exchange = lambda *_: False
renames, rename = [], pathlib.Path.rename
def killed_rename(path, to):
    renames.append(path)
    if len(renames) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, to)
pathlib.Path.rename = killed_rename
atomic = {"write.atomic": write.atomic, "replace_dir": replace_dir}[sys.argv[2]]
with atomic(pathlib.Path(sys.argv[1])) as beside:
    beside.mkdir(exist_ok=True)
    (beside / "file").write_text("new")
"""


@pytest.mark.parametrize("function", ["write.atomic", "replace_dir"])
def test_a_kill_between_two_renames_loses_nothing(function: str, tmp_path: Path) -> None:
    """Where folders cannot be swapped, the next reader or writer restores the earlier one."""
    target = tmp_path / "target"
    put_folder(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), function], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    replace.heal(target)
    assert (target / "file").read_text() == "old"
    put_folder(target, "newer")
    assert (target / "file").read_text() == "newer"


def test_a_source_that_was_moved_aside_is_found(repo: Any, customer: Entity, tmp_path: Path) -> None:
    (tmp_path / ".many.old").mkdir()
    pq.write_table(TABLE, tmp_path / ".many.old" / "0.parquet")
    store = repo.store([customer, repo.view("v", None, [customer], path=tmp_path / "many")])
    assert store.get_historical_features(FRAME, ["v:f"]).to_arrow()["f"].to_pylist() == [7]


def test_a_reader_that_restores_too_early_does_not_break_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace, "exchange", lambda *_: False)
    target = tmp_path / "target"
    put_folder(target, "old")
    rename, restored = Path.rename, []

    def rename_and_restore(path: Path, to: Path) -> Path:
        moved = rename(path, to)
        if to == replace.aside(target) and not restored:
            restored.append(path)
            replace.heal(target)
        return moved

    monkeypatch.setattr(Path, "rename", rename_and_restore)
    put_folder(target, "new")
    assert restored
    assert (target / "file").read_text() == "new"
    assert names(tmp_path) == ["target"]


def test_scratch_folders_of_killed_retrievals_are_removed_and_those_in_use_stay(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys; from feast_asof import write\n"
        "with write.scratch(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (tmp_path / ".mine").mkdir()
    age(tmp_path, 2)
    (left,) = set(tmp_path.iterdir()) - {tmp_path / ".mine"}
    with write.scratch(tmp_path) as used:
        assert not left.exists()
        age(used, 2)
        with write.scratch(tmp_path) as other:
            assert used.is_dir(), "old, but its owner is running"
            assert len(names(tmp_path)) == 3
            assert other != used
    assert names(tmp_path) == [".mine"]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with write.scratch(tmp_path):
        assert len(names(tmp_path)) == 3, (
            "killed a short time ago: perhaps another machine without shared locks uses it"
        )


def test_exports_stay_for_a_week_after_their_last_use(local_repo: Any, customer: Entity, tmp_path: Path) -> None:
    local_repo.settings["storage_path"] = str(tmp_path / "storage")
    store = local_repo.store([customer, local_repo.view("v", TABLE, [customer])])
    job = store.get_historical_features(FRAME, ["v:f"])
    first, second = (Path(job.to_remote_storage()[0]) for _ in range(2))
    unfinished = tmp_path / "storage" / "exports" / f".{'a' * 32}.{'b' * 32}"
    unfinished.mkdir()
    (tmp_path / "storage" / "exports" / "user folder").mkdir()
    age(tmp_path / "storage" / "exports", 8)
    os.utime(first, (second.stat().st_mtime + 2 * DAYS, first.stat().st_mtime))  # read six days ago
    third = Path(job.to_remote_storage()[0])
    assert first.exists()
    assert third.exists()
    assert not second.parent.exists()
    assert not unfinished.exists()
    assert (tmp_path / "storage" / "exports" / "user folder").exists()


def test_what_a_killed_persist_left_is_removed(local_repo: Any, customer: Entity, tmp_path: Path) -> None:
    store = local_repo.store([customer, local_repo.view("v", TABLE, [customer])])
    left, young, other = (tmp_path / f".{name}.{'a' * 31}{at}" for at, name in enumerate(["out", "out", "outer"]))
    for path in (left, young, other):
        path.mkdir()
    age(left, 2)
    age(other, 2)
    store.get_historical_features(FRAME, ["v:f"]).persist(SavedDatasetFileStorage(str(tmp_path / "out")))
    assert not left.exists()
    assert young.exists()
    assert other.exists()


def slow_task(folder: str, begun: str) -> int:
    """A task that writes a file after it was cancelled."""
    Path(begun).touch()
    try:
        while True:  # cancelling interrupts the task between two steps
            time.sleep(0.05)
    finally:
        time.sleep(2)
        try:
            with write.atomic(Path(folder) / "late") as beside:
                beside.write_text("late")
        finally:
            Path(begun).with_name("ended").touch()
    return 1


def failing_task(begun: str) -> int:
    from feast_asof.errors import AsofError

    while not Path(begun).exists():
        time.sleep(0.01)
    raise AsofError("no")


def test_a_failed_retrieval_leaves_nothing_while_tasks_still_run(cluster: str, tmp_path: Path) -> None:
    import ray

    from feast_asof.errors import AsofError

    assert cluster
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    begun = str(tmp_path / "begun")
    storage = tmp_path / "storage"
    with pytest.raises(AsofError, match="no"), write.scratch(storage) as folder:
        ray_engine.run([(slow_task, (str(folder), begun)), (failing_task, (begun,))], "both")
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    while not (tmp_path / "ended").exists():
        time.sleep(0.01)
    assert not list(storage.iterdir())
