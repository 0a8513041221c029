"""A worker or a node is killed during a distributed join: the result is complete and equal."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from feast_asof import entity_frame, local_engine
from feast_asof.engine import EngineSettings
from feast_asof.join import Feature, View
from feast_asof.ray_connection import connect

ROWS = 2_000
STAMP = pa.timestamp("us", "UTC")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of three worker nodes, of which the tests kill two."""
    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    for _ in range(3):
        nodes.add_node(num_cpus=1, object_store_memory=10**8)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield nodes.address
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()
    nodes.shutdown()


def kill_once(marker: Path, victim: Callable[[], int], home: str) -> Callable[[pa.Table], pa.Table]:
    """A last step of every part. It kills a process the first time it runs on another node than the driver's.

    The driver's node waits for that: it is ready first and might do all parts before another node gets one.
    """

    def finish(table: pa.Table) -> pa.Table:
        if ray.get_runtime_context().get_node_id() == home:
            while not marker.exists():
                time.sleep(0.05)
            return table
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return table
        os.kill(victim(), signal.SIGKILL)
        return table

    return finish


def case(folder: Path) -> tuple[pa.Table, View]:
    rng = np.random.default_rng(1)
    source = pa.table(
        {
            "id": rng.integers(0, 50, ROWS),
            "ts": pa.array(rng.integers(0, 10**6, ROWS)).cast(STAMP),
            "f": pa.array(np.arange(ROWS)),
        }
    )
    pq.write_table(source, folder / "v.parquet", row_group_size=300)
    frame = pa.table(
        {"id": rng.integers(0, 60, ROWS), "event_timestamp": pa.array(rng.integers(0, 10**6, ROWS)).cast(STAMP)}
    )
    feature = Feature("f", "f", pa.int64())
    return frame, View("v", str(folder / "v.parquet"), None, (("id", "id"),), "ts", None, (feature,), 0, False)


@pytest.mark.slow
@pytest.mark.fault("a worker or a node killed in a distributed join", "the complete, right training set")
@pytest.mark.parametrize("plan", ["range by range", "through buckets"])
@pytest.mark.parametrize(("what", "victim"), [("worker", os.getpid), ("node", os.getppid)])
def test_a_join_survives_lost_workers(
    plan: str, what: str, victim: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast_asof import partition, ray_engine

    connect(address)
    home = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr(partition, "part_rows", lambda *_: 250)
    if plan == "through buckets":
        monkeypatch.setattr(ray_engine, "SMALL_SOURCE_ROWS", -1)
        monkeypatch.setattr(ray_engine, "MAX_READ_FACTOR", -1)
    frame, view = case(tmp_path)
    wanted = local_engine.Historical(EngineSettings(), entity_frame.read(frame), [view], ["f"]).table()
    job = ray_engine.Historical(EngineSettings(address, tmp_path / "storage"), entity_frame.read(frame), [view], ["f"])
    marker = tmp_path / "killed"
    parts = job.parts(tmp_path / "out", kill_once(marker, victim, home))
    assert marker.exists()
    assert len(parts) == ROWS // 250
    assert pa.concat_tables([pq.read_table(part) for part in parts]).equals(wanted)
    assert sorted((tmp_path / "out").iterdir()) == parts
    assert not list((tmp_path / "storage").iterdir())
