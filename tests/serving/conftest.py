"""One small workdir with features, online rows and two bundles a session, and servers on it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import polars as pl
import pytest

from salescast.data import dataset
from salescast.data.names import FILE, Names
from salescast.feature_store import repo, retrieval
from salescast.model.config import TrainConfig
from salescast.pipeline import stages
from salescast.runtime.processes import free_port
from salescast.training.main import run_plan
from salescast.training.plan import Fit, Plan
from salescast.workdir import Workdir

STORES, DEPTS, WEEKS = 25, 20, 80
STORE_1 = "München Süd"  # the retailer's own id of store 1
READY = "/v2/models/sales-forecast/ready"
PREDICT = "/v1/models/sales-forecast:predict"
INFER = "/v2/models/sales-forecast/infer"


@dataclass(frozen=True)
class World:
    """A workdir of 500 series, and a second bundle of a week earlier."""

    root: Path
    other_bundle: Path

    def copy(self, root: Path) -> Path:
        """A copy of the workdir that a test may break."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("training", "fits", "*.log"), dirs_exist_ok=True)
        return root


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    work = Workdir(root)
    config = TrainConfig(epochs=1, hidden=(16, 8), batch_size=2048)
    dataset.generate(work.raw, STORES, DEPTS, WEEKS, 42)
    own = pl.when(pl.col("entity") == "store_id", pl.col("id") == 1)
    names = Names.read(work.raw).table
    names.with_columns(own.then(pl.lit(STORE_1)).otherwise("name").alias("name")).write_parquet(work.raw / FILE)
    stages.features_stage(work, work.raw, config.horizon)
    repo.apply(work)
    repo.materialize(work)
    training = retrieval.retrieve(work, config.feature_service)
    last = dataset.Dataset.read(work.data).last_week
    other = tmp_path_factory.mktemp("other") / "bundle"
    plan = Plan(
        training=training,
        data_digest=training.name,
        country="US",
        config=config,
        fits=(Fit("earlier", last - timedelta(weeks=1), other), Fit("final", last, work.models)),
        checkpoints=root / "fits",
    )
    assert run_plan(plan) == 0
    return World(root, other)


@dataclass(frozen=True)
class Running:
    """A server process and how to reach it."""

    process: subprocess.Popen[bytes]
    url: str
    grpc: str
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=None)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def wait(condition: Callable[[], bool], running: Running) -> None:
    """Wait as long as the server lives; pytest's own limit ends a wait that would never end."""
    while not condition():
        assert running.process.poll() is None, running.log.read_text()
        time.sleep(0.05)


@contextmanager
def start(root: Path, ready: bool = True, workers: int = 1, **environment: str) -> Iterator[Running]:
    port, grpc_port = free_port(), free_port()
    log = root / f"server-{port}.log"
    if "SALESCAST_MODEL" not in environment:
        environment.setdefault("SALESCAST_MODEL_DIR", str(root / "models"))
    code = (
        "import logging, sys, pathlib; from salescast.serving import supervisor; from salescast.workdir import Workdir;"
        "_, root, http, grpc, workers = sys.argv; logging.basicConfig();"
        "supervisor.main(Workdir(pathlib.Path(root)), None, int(http), int(grpc), int(workers))"
    )
    command = [sys.executable, "-c", code, str(root), str(port), str(grpc_port), str(workers)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment)
    running = Running(process, f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", log)
    path = READY if ready else "/v2/health/live"
    try:
        wait(lambda: answers(running.url + path), running)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Running]]:
    """`with serve(workdir, ready=True, workers=1, **environment) as running`: a new server process."""
    return start


@pytest.fixture(scope="session")
def running(world: World) -> Iterator[Running]:
    """One server on the session's workdir, for tests that do not change it."""
    with start(world.root) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client
