"""The rest of Feast's interface: materialization, reading and appending rows, logs, progress, imports."""

import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureView
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination

from feast_asof.store import AsofOfflineStore

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")


def rows(*given: tuple[Any, float, float | None, int]) -> pa.Table:
    """Rows of (id, days after noon, days after noon created, value)."""

    def time(days: float | None) -> datetime | None:
        return None if days is None else NOON + timedelta(days=days)

    return pa.table(
        {
            "id": pa.array([row[0] for row in given], pa.int64()),
            "ts": pa.array([time(row[1]) for row in given], STAMP),
            "made": pa.array([time(row[2]) for row in given], STAMP),
            "f": pa.array([row[3] for row in given], pa.int64()),
        }
    )


DATA = rows(
    (1, 0, 1, 10), (1, 0, 3, 11), (1, 0, None, 12), (2, -1, 0, 20), (2, -3, 9, 21), (3, 5, 5, 30), (None, 0, 0, 9)
)


def pull(store: Any, view: FeatureView, latest: bool, start: float = -2, end: float = 1) -> list[tuple[Any, ...]]:
    call = AsofOfflineStore.pull_latest_from_table_or_query if latest else AsofOfflineStore.pull_all_from_table_or_query
    span = {"start_date": NOON + timedelta(days=start), "end_date": NOON + timedelta(days=end)}
    job = call(store.config, view.batch_source, ["id"], ["f"], "ts", "made", **span)
    table = job.to_arrow()
    assert table.column_names == ["id", "f", "ts", "made"]
    return list(zip(table["id"].to_pylist(), table["f"].to_pylist(), strict=True))


def test_pull_latest_and_all(repo: Any, customer: Entity) -> None:
    view = repo.view("v", DATA, [customer], created_timestamp_column="made")
    store = repo.store([customer, view])
    assert pull(store, view, True) == [(1, 11), (2, 20)]
    assert pull(store, view, False) == [(1, 10), (1, 11), (1, 12), (2, 20), (None, 9)]
    assert pull(store, view, False, start=0, end=0) == [(1, 10), (1, 11), (1, 12), (None, 9)]
    assert pull(store, view, True, start=6, end=9) == []


def test_materialize(repo: Any, customer: Entity) -> None:
    store = repo.store([customer, repo.view("v", DATA.slice(0, 6), [customer], created_timestamp_column="made")])
    store.materialize(NOON - timedelta(days=9), NOON + timedelta(days=1))
    got = store.get_online_features(["v:f"], [{"id": 1}, {"id": 2}, {"id": 3}]).to_dict()
    assert got["f"] == [11, 20, None]


def test_append_to_a_file_and_to_a_folder(repo: Any, customer: Entity, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    pq.write_table(DATA, folder / "0.parquet")
    one, many = repo.view("one", DATA, [customer]), repo.view("many", None, [customer], path=folder)
    store = repo.store([customer, one, many])
    new = rows((4, 0, 0, 40)).to_pandas()
    for name in ("one", "many"):
        store.write_to_offline_store(name, new[["f", "id", "made", "ts"]])
    assert pq.read_table(tmp_path / "one.parquet")["f"].to_pylist() == [*DATA["f"].to_pylist(), 40]
    assert sorted(pq.read_table(folder)["f"].to_pylist()) == sorted([*DATA["f"].to_pylist(), 40])
    assert not list(tmp_path.rglob(".*"))


def test_logged_features_are_read_back(repo: Any, customer: Entity, tmp_path: Path) -> None:
    view = repo.view("v", DATA, [customer])
    logs = tmp_path / "logs"
    destination = FileLoggingDestination(path=str(logs), partition_by=["f"])
    service = FeatureService(name="s", features=[view], logging_config=LoggingConfig(destination=destination))
    config = repo.store([customer, view, service]).config
    for _ in range(2):
        AsofOfflineStore.write_logged_features(config, DATA, None, service.logging_config, None)
    job = AsofOfflineStore.pull_all_from_table_or_query(config, destination.to_data_source(), [], ["f", "id"], "ts")
    assert sorted(job.to_df()["f"]) == sorted(DATA["f"].to_pylist() * 2)
    assert not list(logs.rglob(".*"))


def test_progress_and_log(
    repo: Any, customer: Entity, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    store = repo.store([customer, repo.view("v", DATA, [customer])])
    frame = pd.DataFrame({"id": [1], "event_timestamp": [NOON]})
    monkeypatch.setenv("FEAST_ASOF_PROGRESS", "1")
    with caplog.at_level(logging.INFO, "feast_asof"):
        store.get_historical_features(frame, ["v:f"]).to_arrow()
    assert "100%" in capsys.readouterr().err
    assert "bytes" in caplog.text


def test_importing_the_store_imports_no_ray_or_dask() -> None:
    code = "import sys, feast_asof.store; print([m for m in ('ray', 'dask', 'duckdb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_workers_import_no_feast() -> None:
    code = "import sys, feast_asof.ray_tasks; print([m for m in ('feast', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
