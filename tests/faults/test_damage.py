"""Files cut off, bits flipped: an error that names the file, or the right result, never a wrong one."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from salescast import schema
from salescast.data import dataset
from salescast.errors import UserError
from salescast.feature_store import repo, retrieval
from salescast.feature_store.databases import StoreDownError, open_database, read_options
from salescast.feature_store.online import OnlineReader
from salescast.features.build import build_features
from salescast.model import bundle
from salescast.model.metadata import METADATA
from salescast.runtime import parquet
from salescast.serving import batch
from salescast.tracking.mlflow import check
from salescast.training.checkpoint import Best, Checkpoint, Checkpoints, TrainerState
from salescast.workdir import Workdir

from .conftest import ROUNDS, Chain, clear_error, run

Happened = Callable[[str], None]
TRIES = 12 * ROUNDS


def damage(path: Path, draw: random.Random) -> None:
    """A flipped bit, a cut, or a stretch of zeros, somewhere."""
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content))
    match draw.choice(("flip", "flip", "cut", "zeros")):
        case "flip":
            content[at] ^= 1 << draw.randrange(8)
        case "cut":
            del content[at:]
        case _:
            content[at : at + 512] = bytes(len(content[at : at + 512]))
    path.write_bytes(content)


def tried(path: Path, use: Callable[[], object], draw: random.Random, happened: Happened, tries: int = TRIES) -> None:
    """Damage the file and use it, again and again: the error names the trouble in one line, or the result is right."""
    whole = path.read_bytes()
    right = use()
    for _ in range(tries):
        path.write_bytes(whole)
        damage(path, draw)
        same = path.read_bytes() == whole
        try:
            found = use()
        except (UserError, StoreDownError) as error:
            assert str(error) and "\n" not in str(error)
            happened("clear error")
        else:
            assert found == right, "a wrong result"
            happened("nothing was changed" if same else "right result")
    path.write_bytes(whole)


@pytest.fixture
def work(chain: Chain) -> Workdir:
    chain.restore(chain.root / "snapshots" / "start")
    return Workdir(chain.work)


PARQUET = "Parquet files cut off, bits flipped, zeros written"
RIGHT = "an error that names the file, or the right result"


@pytest.mark.fault(PARQUET, RIGHT)
@pytest.mark.parametrize("name", [dataset.SALES, dataset.STORES, dataset.META])
def test_the_dataset(name: str, work: Workdir, draw: random.Random, happened: Happened) -> None:
    def use() -> object:
        build_features(work.raw, work.root / "again")
        return {view: (work.root / "again" / f"{view}.parquet").read_bytes() for view in repo.VIEWS}

    tried(work.raw / name, use, draw, happened, tries=3 * ROUNDS)


@pytest.mark.fault(PARQUET, RIGHT)
@pytest.mark.parametrize("view", repo.VIEWS)
def test_the_feature_tables(view: str, work: Workdir, draw: random.Random, happened: Happened) -> None:
    tried(work.data / f"{view}.parquet", lambda: repo.feature_digests(work), draw, happened)


@pytest.mark.fault(PARQUET, RIGHT)
def test_the_upcoming_week(work: Workdir, draw: random.Random, happened: Happened) -> None:
    tried(work.data / schema.UPCOMING, lambda: batch.forecast_all(work, work.models).rows(), draw, happened)


@pytest.mark.fault(PARQUET, "made again by itself")
def test_the_training_set(work: Workdir, draw: random.Random, happened: Happened) -> None:
    part = next(work.training.glob("*/part-*.parquet"))
    tried(part, lambda: _retrieved(work), draw, happened, tries=ROUNDS)


def _retrieved(work: Workdir) -> bytes:
    return next(retrieval.retrieve(work, schema.TRAINING_SERVICE_SEASONAL).glob("part-*")).read_bytes()


@pytest.mark.fault(PARQUET, RIGHT)
def test_the_forecasts(work: Workdir, draw: random.Random, happened: Happened) -> None:
    columns = pl.read_parquet(work.forecasts).columns

    def use() -> object:
        found = parquet.read(work.forecasts, "make them again")
        if found.columns != columns:  # a bit of a name: whoever asks for the column gets an error
            raise UserError("a column is missing")
        return found.rows()

    tried(work.forecasts, use, draw, happened, tries=4 * TRIES)


@pytest.mark.fault("a bundle cut off, bits flipped, zeros written", RIGHT)
@pytest.mark.parametrize("name", [bundle.FINAL, bundle.BEST, bundle.SCALERS, METADATA])
def test_the_bundle(name: str, work: Workdir, draw: random.Random, happened: Happened) -> None:
    rows = batch.upcoming(work)

    def use() -> object:
        return bundle.load(work.models).predict(rows).quantiles.tolist()

    tried(work.models / name, use, draw, happened)


@pytest.mark.fault("a checkpoint cut off, bits flipped, zeros written", "the checkpoint before it is used")
def test_the_checkpoint(tmp_path: Path, draw: random.Random, happened: Happened) -> None:
    import torch

    kept = Checkpoints(tmp_path, "digest")
    for number in (1, 2):
        best = Best(number, 0.1, 0.2, {"weights": torch.arange(1000.0) * number})
        kept.save(number, Checkpoint("holdout", number, best, None, TrainerState({}, {}, 0, {}, {})))
    whole = kept.path(2).read_bytes()
    for _ in range(TRIES):
        kept.path(2).write_bytes(whole)
        damage(kept.path(2), draw)
        if kept.path(2).read_bytes() == whole:
            continue
        assert kept.latest() == 1
        happened("the one before is used")


SQLITE = "SQLite files cut off, bits flipped, zeros written"


@pytest.mark.fault(SQLITE, "an error, or the right features")
def test_the_online_store(work: Workdir, draw: random.Random, happened: Happened) -> None:
    from salescast.serving.served import service_views

    project, options = read_options(work.feature_repo / "feature_store.yaml")
    reader = OnlineReader(
        open_database(options, work.feature_repo), project, service_views(schema.TRAINING_SERVICE_SEASONAL)
    )
    pairs = [(store, dept) for store in range(1, 5) for dept in range(1, 4)]

    def use() -> object:
        rows = reader.read(pairs)
        if (rows.position < 0).any():  # the server refuses these and names them
            raise UserError("a series is unknown or incomplete")
        return bundle.load(work.models).predict(rows.columns).quantiles.tolist()

    tried(work.feature_repo / options["path"], use, draw, happened, tries=3 * TRIES)


@pytest.mark.fault(SQLITE, RIGHT)
def test_the_registry(work: Workdir, draw: random.Random, happened: Happened) -> None:
    """Feast's registry: what it says is used by the point-in-time join."""
    shutil.rmtree(work.training)

    def use() -> object:
        shutil.rmtree(work.training, ignore_errors=True)
        return _retrieved(work)

    tried(work.feature_repo / "registry.db", use, draw, happened, tries=2 * ROUNDS)


@pytest.mark.fault(SQLITE, "an error before any training, or MLflow goes on with it")
def test_the_tracking_store(chain: Chain, draw: random.Random, happened: Happened, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    path = tmp_path / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").create_experiment("x")
    tried(path, lambda: check(f"sqlite:///{path}"), draw, happened)


@pytest.mark.long
@pytest.mark.fault("a damaged file met by a command", "one clear line, exit code 1; mended, the same command succeeds")
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("features", "data/raw/sales.parquet"),
        ("apply", "data/sales_features.parquet"),
        ("materialize", "data/seasonal_features.parquet"),
        ("materialize", "feature_repo/registry.db"),
        ("materialize", "feature_repo/online_store.db"),
        ("retrieve", "data/features.json"),
        ("retrieve", "feature_repo/registry.db"),
        ("train", "mlflow.db"),
        ("register", "backtest.parquet"),
        ("register", "evaluation.json"),
        ("register", "models/model_final.pt"),
        ("register", "mlflow.db"),
        ("forecast", "models/model_final.pt"),
        ("report", "backtest.parquet"),
        ("report", "data/raw/stores.parquet"),
        ("monitor", "forecasts/*.parquet"),
        ("monitor", "mlflow.db"),
    ],
)
def test_a_command_on_a_damaged_file(name: str, path: str, chain: Chain, happened: Happened) -> None:
    chain.through(name)
    chain.restore(chain.before(name))
    found = sorted(chain.work.glob(path))
    if not found:  # MLflow's file is made by the first command that tracks
        chain.restore(chain.after(name))
        found = sorted(chain.work.glob(path))
    whole = found[0].read_bytes()
    found[0].write_bytes(whole[: len(whole) // 2] + bytes(100))
    clear_error(run(chain.arguments(name)))
    happened("clear error")
    found[0].write_bytes(whole)
    assert run(chain.arguments(name)).returncode == 0


def test_damage_is_damage(tmp_path: Path, draw: random.Random) -> None:
    path = tmp_path / "file"
    changed = 0
    for _ in range(50):
        path.write_bytes(json.dumps(list(range(300))).encode())
        damage(path, draw)
        changed += path.read_bytes() != json.dumps(list(range(300))).encode()
    assert changed > 45
