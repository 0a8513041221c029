"""Folders are replaced so that a failure or a kill loses nothing; what killed processes left is cleared away."""

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
    """Make everything in a folder look so old."""
    then = folder.stat().st_mtime - days * DAYS
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def put_folder(target: Path, content: str) -> None:
    with write.whole(target) as beside:
        beside.mkdir()
        (beside / "file").write_text(content)


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, swaps: bool
) -> None:
    put_folder(tmp_path / "target", "old")
    if not swaps:
        monkeypatch.setattr(replace, "exchange", lambda *_: False, raising=False)
    rename, calls = Path.rename, []

    def fails(path: Path, to: Path) -> Path:
        calls.append(path)
        if len(calls) == failing:
            raise OSError(errno.EIO, "no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
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
def dies(path, to):
    renames.append(path)
    if len(renames) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, to)
pathlib.Path.rename = dies
how = {"whole": write.whole, "replace_dir": replace_dir}[sys.argv[2]]
with how(pathlib.Path(sys.argv[1])) as beside:
    beside.mkdir(exist_ok=True)
    (beside / "file").write_text("new")
"""


@pytest.mark.parametrize("how", ["whole", "replace_dir"])
def test_a_kill_between_two_renames_is_healed(how: str, tmp_path: Path) -> None:
    """Where folders cannot be swapped, the earlier one comes back when somebody looks for it."""
    target = tmp_path / "target"
    put_folder(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), how], check=False)
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


def test_a_reader_that_heals_too_early_does_not_break_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace, "exchange", lambda *_: False)
    target = tmp_path / "target"
    put_folder(target, "old")
    rename, healed = Path.rename, []

    def watched(path: Path, to: Path) -> Path:
        found = rename(path, to)
        if to == replace.aside(target) and not healed:
            healed.append(path)
            replace.heal(target)
        return found

    monkeypatch.setattr(Path, "rename", watched)
    put_folder(target, "new")
    assert healed
    assert (target / "file").read_text() == "new"
    assert names(tmp_path) == ["target"]


def test_scratch_folders_of_killed_retrievals_go_and_those_in_use_stay(tmp_path: Path) -> None:
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
            assert used.is_dir(), "old, but its owner lives"
            assert len(names(tmp_path)) == 3
            assert other != used
    assert names(tmp_path) == [".mine"]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with write.scratch(tmp_path):
        assert len(names(tmp_path)) == 3, "killed a moment ago, or on another machine without common locks: not yet"


def test_exports_stay_for_a_week_after_their_last_use(local_repo: Any, customer: Entity, tmp_path: Path) -> None:
    local_repo.settings["storage_path"] = str(tmp_path / "storage")
    store = local_repo.store([customer, local_repo.view("v", TABLE, [customer])])
    job = store.get_historical_features(FRAME, ["v:f"])
    first, second = (Path(job.to_remote_storage()[0]) for _ in range(2))
    unfinished = tmp_path / "storage" / "exports" / f".{'a' * 32}.{'b' * 32}"
    unfinished.mkdir()
    (tmp_path / "storage" / "exports" / "of a user").mkdir()
    age(tmp_path / "storage" / "exports", 8)
    os.utime(first, (second.stat().st_mtime + 2 * DAYS, first.stat().st_mtime))  # read six days ago
    third = Path(job.to_remote_storage()[0])
    assert first.exists()
    assert third.exists()
    assert not second.parent.exists()
    assert not unfinished.exists()
    assert (tmp_path / "storage" / "exports" / "of a user").exists()


def test_what_a_killed_writer_of_a_saved_dataset_left_goes(local_repo: Any, customer: Entity, tmp_path: Path) -> None:
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


def slow(folder: str, begun: str) -> int:
    """A task that, cancelled, still has something to write."""
    Path(begun).touch()
    try:
        while True:  # a cancelled task is interrupted between two steps
            time.sleep(0.05)
    finally:
        time.sleep(2)
        try:
            with write.whole(Path(folder) / "late") as beside:
                beside.write_text("late")
        finally:
            Path(begun).with_name("ended").touch()
    return 1


def broken(begun: str) -> int:
    from feast_asof.errors import AsofError

    while not Path(begun).exists():
        time.sleep(0.01)
    raise AsofError("no")


def test_a_failed_retrieval_leaves_nothing_although_tasks_still_run(cluster: str, tmp_path: Path) -> None:
    import ray

    from feast_asof.errors import AsofError

    assert cluster
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    begun = str(tmp_path / "begun")
    storage = tmp_path / "storage"
    with pytest.raises(AsofError, match="no"), write.scratch(storage) as folder:
        ray_engine.run([(slow, (str(folder), begun)), (broken, (begun,))], "both")
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    while not (tmp_path / "ended").exists():
        time.sleep(0.01)
    assert not list(storage.iterdir())
