"""Bad input raises one error that says what is wrong, before anything is written."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, Field
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Int32, Int64

from feast_asof.errors import AsofError, SourceNotFoundError

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")
SOURCE = pa.table({"id": [1], "ts": pa.array([NOON], STAMP), "f": [2**40]})
FRAME = pa.table({"id": [1], "event_timestamp": pa.array([NOON], STAMP)})


def ask(repo: Any, customer: Entity, frame: Any, table: pa.Table = SOURCE, **options: Any) -> pa.Table:
    store = repo.store([customer, repo.view("v", table, [customer], **options)])
    return store.get_historical_features(frame, ["v:f"]).to_arrow()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            FRAME.drop_columns("event_timestamp"),
            "no column 'event_timestamp' and 0 datetime columns; its .* are id",
        ),
        (FRAME.drop_columns("id"), "lacks the join key 'id' of feature view 'v'; its columns are event_timestamp"),
        (FRAME.set_column(0, "id", pa.array(["1"])), "join key 'id': the entity frame has string, .* has int64"),
        (FRAME.set_column(0, "id", pa.array([1.5])), "join key 'id': one side has integers, the other floats"),
        (FRAME.set_column(1, "event_timestamp", pa.array([5])), "'event_timestamp' of the entity frame is int64"),
        (FRAME.set_column(1, "event_timestamp", pa.array(["noon"])), "'event_timestamp' of the entity frame: .*noon"),
        (FRAME.append_column("f", pa.array([1])), "two columns of the result would be named 'f'"),
        (FRAME.append_column("id", pa.array([1])), "columns of the same name"),
        ([1, 2], "the entity frame is a list; give a pandas"),
        (pd.DataFrame({"id": [1, "a"], "event_timestamp": [NOON, NOON]}), "column of mixed types: .*id"),
    ],
)
def test_entity_frames(repo: Any, customer: Entity, frame: Any, message: str) -> None:
    with pytest.raises(AsofError, match=message):
        ask(repo, customer, frame)


def test_two_datetime_columns_are_ambiguous(local_repo: Any, customer: Entity) -> None:
    frame = FRAME.rename_columns(["id", "a"]).append_column("b", FRAME["event_timestamp"])
    with pytest.raises(AsofError, match="2 datetime columns; its columns are id, a, b"):
        ask(local_repo, customer, frame)


def test_missing_files(repo: Any, customer: Entity, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"entity frame: no Parquet file or folder at /no/where\.parquet"):
        ask(repo, customer, "/no/where.parquet")
    store = repo.store([customer, repo.view("v", SOURCE, [customer])])
    (tmp_path / "v.parquet").unlink()
    with pytest.raises(SourceNotFoundError, match=r"feature view 'v': no Parquet file or folder at .*v\.parquet"):
        store.get_historical_features(FRAME, ["v:f"])
    (tmp_path / "v.parquet").mkdir()
    with pytest.raises(SourceNotFoundError, match="holds no Parquet files"):
        store.get_historical_features(FRAME, ["v:f"])


def test_file_without_a_column(repo: Any, customer: Entity) -> None:
    with pytest.raises(AsofError, match=r"feature view 'v': .*v\.parquet has no column 'when'; it has id, ts, f"):
        ask(repo, customer, FRAME, timestamp="when")
    with pytest.raises(AsofError, match=r"column 'f' of .*v\.parquet is int64, not a timestamp"):
        ask(repo, customer, FRAME, timestamp="f")


def test_value_that_does_not_fit_its_declared_type(repo: Any, customer: Entity) -> None:
    with pytest.raises(AsofError, match="feature 'f' of feature view 'v' is declared int32, the file has int64"):
        ask(repo, customer, FRAME, schema=[Field(name="f", dtype=Int32)])


def test_corrupt_files_leave_nothing_behind(repo: Any, customer: Entity, tmp_path: Path) -> None:
    many = pa.table({"id": range(5000), "ts": pa.array([NOON] * 5000, STAMP), "f": range(5000)})
    store = repo.store([customer, repo.view("v", many, [customer], schema=[Field(name="f", dtype=Int64)])])
    path = tmp_path / "v.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * (len(content) * 3 // 4) + content[4 + len(content) * 3 // 4 :])
    job = store.get_historical_features(FRAME, ["v:f"])
    with pytest.raises(AsofError, match=r"v\.parquet is (damaged|not readable as Parquet)"):
        job.persist(SavedDatasetFileStorage(str(tmp_path / "out.parquet")))
    with pytest.raises(AsofError, match=r"v\.parquet is"):
        job.to_remote_storage()
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left <= {"v.parquet", "registry.db", "online.db"}
    path.write_bytes(b"not parquet at all")
    with pytest.raises(AsofError, match=r"v\.parquet is not readable as Parquet"):
        store.get_historical_features(FRAME, ["v:f"])


def test_existing_saved_dataset_is_kept(repo: Any, customer: Entity, tmp_path: Path) -> None:
    store = repo.store([customer, repo.view("v", SOURCE, [customer])])
    target = tmp_path / "kept"
    job = store.get_historical_features(FRAME, ["v:f"])
    job.persist(SavedDatasetFileStorage(str(target)))
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(SavedDatasetFileStorage(str(target)))
    job.persist(SavedDatasetFileStorage(str(target)), allow_overwrite=True)
    assert pq.read_table(target)["f"].to_pylist() == [2**40]


def test_rows_that_do_not_belong_are_not_written(local_repo: Any, customer: Entity, tmp_path: Path) -> None:
    view = local_repo.view("v", SOURCE, [customer])
    store = local_repo.store([customer, view])
    provider = store._get_provider()
    with pytest.raises(AsofError, match=r"feature view 'v': the rows have columns id, ts, but .* has id, ts, f"):
        provider.ingest_df_to_offline_store(view, SOURCE.drop_columns("f"))
    with pytest.raises(AsofError, match="do not convert to the columns"):
        provider.ingest_df_to_offline_store(view, SOURCE.set_column(2, "f", pa.array(["x"])))
    assert pq.read_table(tmp_path / "v.parquet").equals(SOURCE)
