"""Point-in-time retrieval: feast_asof compared with Feast's own stores, on the same files and entity frames.

The data are demo data of several sizes (`salescast data generate`), with the two published feature views.

    python benchmarks/retrieval.py                      # 65,520, 1M and 10M rows, and 1M/10M/100M to files on disk
    python benchmarks/retrieval.py --rows 65520 1000000 --files
    python benchmarks/retrieval.py --write              # also write docs/bench/retrieval.md

Every measurement runs in its own process: seconds are the minimum of three runs of
get_historical_features(...).to_arrow(), memory is the peak of its largest process.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from salescast import schema
from salescast.data import dataset
from salescast.feature_store.repo import feast_fields
from salescast.features.build import build_features

WEEKS, DEPTS = 104, 14
TTL = ", TTL 60 days"  # suffix of an engine's name; the views of the pipeline have no TTL
M = 1_000_000
LIMIT = {
    "dask": 65_520,
    "feast ray": 65_520,
    "duckdb": M,
    f"duckdb{TTL}": M,
    f"local{TTL}": M,
}  # rows beyond which the engine fails or takes too long
REPEAT = {"feast ray": 1}
ENGINES = ["kernel", "local", "ray", "duckdb", f"local{TTL}", f"duckdb{TTL}", "dask", "feast ray"]


def generate(folder: Path, rows: int) -> None:
    """Demo data with at least that many rows: the two published feature views, and entities three days later."""
    raw = folder / "raw"
    dataset.generate(raw, stores=-(-rows // (WEEKS * DEPTS)), depts=DEPTS, weeks=WEEKS)
    build_features(raw, folder, views=(schema.SALES_VIEW, schema.STORE_VIEW))
    time = (pl.col("week").cast(schema.TIMESTAMP_TYPE) + pl.duration(days=3)).alias(schema.TIMESTAMP)
    entities = pl.scan_parquet(raw / dataset.SALES).select(*schema.KEYS, time)
    entities.sink_parquet(folder / "entities.parquet", row_group_size=1 << 20)
    shutil.rmtree(raw)


def feature_store(folder: Path, offline: dict[str, Any], ttl: timedelta | None) -> Any:
    """A feature store over the generated files, with its registry in a temporary folder."""
    from feast import Entity, FeatureService, FeatureStore, FeatureView, FileSource, RepoConfig, ValueType

    scratch = tempfile.mkdtemp()
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=f"{scratch}/registry.db",
        online_store={"type": "sqlite", "path": f"{scratch}/online.db"},
        offline_store=offline,
        entity_key_serialization_version=3,
    )
    keys = [Entity(name=key, join_keys=[key], value_type=ValueType.INT32) for key in ("store_id", "dept_id")]
    views = [
        FeatureView(
            name=name,
            entities=keys,
            ttl=ttl,
            schema=feast_fields(schema.KEY_TYPES | fields),
            source=FileSource(path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp"),
        )
        for name, fields in (
            (schema.SALES_VIEW, schema.SALES_FEATURES),
            (schema.STORE_VIEW, schema.STORE_FEATURES),
        )
    ]
    store = FeatureStore(config=config)
    store.apply([*keys, *views, FeatureService(name="training", features=views)])
    return store


@contextmanager
def cluster() -> Iterator[str]:
    """Two Ray workers of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 3 * 10**9})
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=3 * 10**9)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


class Peak(threading.Thread):
    """The largest resident memory of this process or a descendant, without raylets, which hold shared objects."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.start()

    def run(self) -> None:
        import psutil

        this = psutil.Process()
        while True:
            for process in [this, *this.children(recursive=True)]:
                try:
                    if process.name() not in ("raylet", "gcs_server"):
                        self.most = max(self.most, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.05)


def runner(engine: str, folder: Path, address: str) -> Callable[[], Any]:
    """The call that is timed."""
    engine, ttl, _ = engine.partition(TTL)
    if engine == "kernel":
        return bare(folder)
    asof = "feast_asof.store.AsofOfflineStore"
    offline: dict[str, Any] = {
        "local": {"type": asof},
        "ray": {"type": asof, "engine": "ray", "ray_address": address, "storage_path": str(folder / "stage")},
        "files": {"type": asof, "engine": "ray", "ray_address": address, "storage_path": str(folder / "stage")},
        "feast ray": {"type": "ray", "storage_path": str(folder / "feast-ray"), "ray_address": address},
    }.get(engine, {"type": engine})
    store = feature_store(folder, offline, timedelta(days=60) if ttl else None)
    service = store.get_feature_service("training")
    if engine == "files":
        return lambda: store.get_historical_features(str(folder / "entities.parquet"), service).to_remote_storage()
    frame = pq.read_table(folder / "entities.parquet").to_pandas()
    return lambda: store.get_historical_features(frame, service).to_arrow()


def bare(folder: Path) -> Callable[[], Any]:
    """The same join without Feast, as a lower bound of the time."""
    from feast_asof import entity_frame, local_engine
    from feast_asof.engine import EngineSettings
    from feast_asof.join import Feature, View

    def view(name: str, columns: list[str]) -> View:
        features = tuple(Feature(column, column, None) for column in columns)
        keys = (("store_id", "store_id"), ("dept_id", "dept_id"))
        return View(name, str(folder / f"{name}.parquet"), None, keys, schema.TIMESTAMP, None, features, 0, False)

    sales, static = list(schema.SALES_FEATURES), list(schema.STORE_FEATURES)
    views = [view(schema.SALES_VIEW, sales), view(schema.STORE_VIEW, static)]
    frame = entity_frame.read(pq.read_table(folder / "entities.parquet"))
    return lambda: local_engine.Historical(EngineSettings(), frame, views, [*sales, *static]).table()


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """Seconds (minimum) and peak memory of one engine, in this process."""
    peak = Peak()
    entities = pq.read_metadata(folder / "entities.parquet").num_rows
    with cluster() if engine in ("ray", "files", "feast ray") else nullcontext("") as address:
        call = runner(engine, folder, address)
        seconds = []
        for _ in range(1 if engine == "files" else REPEAT.get(engine, 3)):
            begin = time.perf_counter()
            result = call()
            seconds.append(time.perf_counter() - begin)
            count = sum(pq.read_metadata(part).num_rows for part in result) if engine == "files" else result.num_rows
            if engine == "files":
                shutil.rmtree(Path(result[0]).parent)
            del result
    return {
        "engine": engine,
        "rows": entities,
        "seconds": min(seconds),
        "peak_mib": peak.most >> 20,
        "complete": count == entities,
    }


def spawn(engine: str, folder: Path, rows: int) -> dict[str, Any]:
    """Measure in a new process; a failure, or more than an hour, is a result, too."""
    command = [sys.executable, __file__, "--measure", engine, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    except subprocess.TimeoutExpired:
        return {"engine": engine, "rows": rows, "failed": "more than an hour"}
    if done.returncode:
        return {"engine": engine, "rows": rows, "failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:100]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def table(results: list[dict[str, Any]]) -> str:
    """The results as one Markdown table."""
    lines = ["| rows | engine | seconds | peak MiB of a process | rows/s |", "|---:|---|---:|---:|---:|"]
    names = {
        "kernel": "bare join, no Feast",
        "local": "feast_asof local",
        f"local{TTL}": f"feast_asof local{TTL}",
        "ray": "feast_asof ray",
        "files": "feast_asof ray, to files",
    }
    for r in results:
        name = names.get(r["engine"], f"Feast {r['engine'].removeprefix('feast ')}")
        if "failed" in r or not r["complete"]:
            lines.append(f"| {r['rows']:,} | {name} | failed: {r.get('failed', 'wrong number of rows')} | | |")
        else:
            rate = r["rows"] / r["seconds"]
            lines.append(f"| {r['rows']:,} | {name} | {r['seconds']:.2f} | {r['peak_mib']:,} | {rate:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[65_520, 1_000_000, 10_000_000])
    parser.add_argument("--files", type=int, nargs="*", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--engines", nargs="*", default=ENGINES)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "feast-asof-bench")
    parser.add_argument("--write", action="store_true", help="also write docs/bench/retrieval.md")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        engine, folder = given.measure
        print(json.dumps(measure(engine, Path(folder))))
        return
    plan = [(e, n) for n in given.rows for e in given.engines if n <= LIMIT.get(e, n)] + [
        ("files", n) for n in given.files
    ]
    results = []
    for engine, rows in plan:
        folder = given.data / str(rows)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            generate(folder, rows)
            (folder / "done").touch()
        results.append(spawn(engine, folder, rows))
        print(results[-1], file=sys.stderr)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end"
    report = f"{datetime.now(UTC):%Y-%m-%d}, {machine}\n\n{table(results)}\n"
    print(report)
    if given.write:
        target = Path(__file__).parents[1] / "docs" / "bench" / "retrieval.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"# Point-in-time retrieval\n\n{report}")


if __name__ == "__main__":
    main()
