"""An independent oracle of the point-in-time rules in plain Python, and small feature stores to test against it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Int64

# Tests send no usage report.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pick(
    rows: list[dict[str, Any]], entity: dict[str, Any], keys: list[tuple[str, str]], rule: dict[str, Any]
) -> list[dict[str, Any]]:
    """All source rows that the rules allow for one entity row; empty = null features.

    Rows have their keys, "time" and "created" (nanoseconds or None); `rule` has ttl (nanoseconds) and known_at.
    """
    now = entity["time"]
    if now is None or any(entity[key] is None for _, key in keys):
        return []
    valid = []
    for row in rows:
        if row["time"] is None or any(row[column] is None for column, _ in keys):
            continue
        if any(row[column] != entity[key] for column, key in keys):
            continue
        if row["time"] > now or (rule["ttl"] and row["time"] < now - rule["ttl"]):
            continue
        if rule["known_at"] and (row["created"] is None or row["created"] > now):
            continue
        valid.append(row)
    if not valid:
        return []
    newest = max(row["time"] for row in valid)
    valid = [row for row in valid if row["time"] == newest]
    if rule["created"]:
        last = max((row["created"] for row in valid if row["created"] is not None), default=None)
        valid = [row for row in valid if row["created"] == last]
    return valid


@pytest.fixture(scope="session")
def oracle() -> Callable[..., list[dict[str, Any]]]:
    """See `pick`."""
    return pick


@dataclass
class Repo:
    """A feature store in a temporary folder."""

    path: Path
    settings: dict[str, Any]

    def store(self, objects: list[Any]) -> FeatureStore:
        config = RepoConfig(
            project="test",
            provider="local",
            registry=str(self.path / "registry.db"),
            online_store={"type": "sqlite", "path": str(self.path / "online.db")},
            offline_store={"type": "feast_asof.store.AsofOfflineStore"} | self.settings,
            entity_key_serialization_version=3,
            coerce_tz_aware=False,
            repo_path=self.path,
        )
        store = FeatureStore(config=config)
        store.apply(objects)
        return store

    def view(self, name: str, table: pa.Table, keys: list[Entity], **options: Any) -> FeatureView:
        """A feature view over `table`, whose columns f, g, ... (all but keys and times) are features."""
        source = {
            key: options.pop(key) for key in ("created_timestamp_column", "field_mapping", "path") if key in options
        }
        path = source.pop("path", self.path / f"{name}.parquet")
        if table is not None:
            pq.write_table(table, path, row_group_size=options.pop("row_group_size", None))
        schema = options.pop("schema", None) or [Field(name="f", dtype=Int64)]
        return FeatureView(
            name=name,
            entities=keys,
            ttl=options.pop("ttl", timedelta(0)),
            schema=schema,
            source=FileSource(
                name=f"{name}_source", path=str(path), timestamp_field=options.pop("timestamp", "ts"), **source
            ),
            **options,
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Address of a real Ray cluster of two workers with one CPU each; this process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=10**8)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(params=["local", "ray"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The offline_store section for each engine."""
    if request.param == "local":
        return {"engine": "local", "storage_path": str(tmp_path / "storage")}
    return {
        "engine": "ray",
        "ray_address": request.getfixturevalue("cluster"),
        "storage_path": str(tmp_path / "storage"),
    }


@pytest.fixture
def repo(tmp_path: Path, settings: dict[str, Any]) -> Repo:
    """An empty feature repository, once for each engine."""
    return Repo(tmp_path, settings)


@pytest.fixture
def local_repo(tmp_path: Path) -> Repo:
    """An empty feature repository, engine local."""
    return Repo(tmp_path, {"engine": "local"})


@pytest.fixture(scope="session")
def customer() -> Entity:
    """An entity with the integer join key `id`."""
    return Entity(name="customer", join_keys=["id"], value_type=ValueType.INT64)
