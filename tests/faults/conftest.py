"""A small pipeline that is taken from one week's data to the next, command by command, at one place on the disk.

`FAULT_ROUNDS` (default 1) is how often each fault is tried; `make faults` sets it, and adds what takes long.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

from salescast.data import dataset
from salescast.feature_store import repo, retrieval
from salescast.model.config import TrainConfig
from salescast.pipeline import stages
from salescast.training.main import run_plan
from salescast.training.plan import Fit, Plan
from salescast.workdir import Workdir

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
LONG = ROUNDS > 1
ENVIRONMENT = {"NUM_EPOCHS": "1", "BATCH_SIZE": "512", "OMP_NUM_THREADS": "1", "SALESCAST_NPROC": "1"}
# What a command makes, besides what it needs; in the order in which new data go through.
COMMANDS: dict[str, list[str]] = {
    "data import": ["data", "import", "--sales", "{root}/next.csv", "--out", "{work}/data/raw"],
    "data generate": ["data", "generate", "--stores", "4", "--depts", "3", "--weeks", "70", "--seed", "9",
                      "--out", "{root}/generated"],
    "features": ["features", "--workdir", "{work}"],
    "apply": ["apply", "--workdir", "{work}"],
    "materialize": ["materialize", "--workdir", "{work}"],
    "retrieve": ["retrieve", "--workdir", "{work}"],
    "train": ["train", "--workdir", "{work}"],
    "backtest": ["backtest", "--workdir", "{work}"],
    "register": ["register", "--workdir", "{work}"],
    "forecast": ["forecast", "--all", "--workdir", "{work}", "--model-dir", "{work}/models"],
    "report": ["report", "--workdir", "{work}"],
    "monitor": ["monitor", "--workdir", "{work}", "--max-wmape", "9", "--max-bias", "9", "--min-coverage", "0"],
}  # fmt: skip


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    environment = clean() | environment
    return subprocess.run(command(arguments), capture_output=True, text=True, check=False, env=environment)


def start(arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
    """The same in a session of its own, not waited for."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command(arguments), text=True, start_new_session=True, env=clean() | environment, **pipes)


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "salescast.cli.app", *arguments]


def clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("SALESCAST_", "MLFLOW_"))} | ENVIRONMENT


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the command and every process it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def clear_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong. Fails for a traceback."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@dataclass
class Chain:
    """Snapshots of one workdir before and after each command, restored to the same place."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.root / "work"

    def arguments(self, name: str) -> list[str]:
        return [part.format(root=self.root, work=self.work) for part in COMMANDS[name]]

    def before(self, name: str) -> Path:
        return self.root / "snapshots" / f"before {name}"

    def after(self, name: str) -> Path:
        return self.root / "snapshots" / f"after {name}"

    def restore(self, snapshot: Path) -> None:
        for folder in (self.work, self.root / "generated"):
            shutil.rmtree(folder, ignore_errors=True)
            if (snapshot / folder.name).exists():
                shutil.copytree(snapshot / folder.name, folder, dirs_exist_ok=True)

    def keep(self, snapshot: Path) -> None:
        for folder in (self.work, self.root / "generated"):
            if folder.exists():
                shutil.copytree(folder, snapshot / folder.name)

    def through(self, last: str) -> None:
        """Run undisturbed up to and including `last`, as far as that has not been done, and keep the snapshots."""
        for name in list(COMMANDS)[: list(COMMANDS).index(last) + 1]:
            if self.after(name).exists():
                continue
            done = [earlier for earlier in COMMANDS if self.after(earlier).exists()]
            self.restore(self.after(done[-1]) if done else self.root / "snapshots" / "start")
            self.keep(self.before(name))
            began = time.monotonic()
            result = run(self.arguments(name))
            assert result.returncode == 0, (name, result.stderr)
            self.seconds[name] = time.monotonic() - began
            self.keep(self.after(name))

    def results(self, snapshot: Path | None = None) -> dict[str, str]:
        """Digests of everything a person or a later command relies on; equal ones mean equal results."""
        root = snapshot or self.root
        found = {}
        for path in sorted([*root.glob("work/**/*.parquet"), *root.glob("generated/*.parquet")]):
            if ".partial" not in str(path) and "mlartifacts" not in path.parts:
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob("work/**/model_metadata.json")):
            if "mlartifacts" not in path.parts and ".partial" not in str(path):
                found[str(path.relative_to(root))] = json.loads(path.read_text())["digest"]
        store = root / "work" / "feature_repo" / "online_store.db"
        if store.exists():
            with closing(sqlite3.connect(store)) as file:
                for (table,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    rows = sorted(file.execute(f'SELECT entity_key, event_ts, features FROM "{table}"').fetchall())
                    found[table] = hashlib.sha256(repr(rows).encode()).hexdigest()
        return found

    def intact(self, name: str) -> None:
        """Every result is the whole earlier or the whole new one."""
        old, new, now = (self.results(path) for path in (self.before(name), self.after(name), None))
        for key, digest in old.items():
            assert now.get(key) in (digest, new.get(key)), f"{key} after {name}: neither the old nor the new one"
        for key, digest in now.items():
            assert digest in (old.get(key), new.get(key)), f"{key} after {name}: something else"

    def finished(self, name: str) -> None:
        """The results are those of an undisturbed command."""
        assert self.results() == self.results(self.after(name)), name


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A workdir with a model of 69 weeks, and the sales of 70 weeks as a file."""
    root = tmp_path_factory.mktemp("chain")
    found = Chain(root)
    work = Workdir(found.work)
    dataset.generate(root / "all", 4, 3, 70, 1)
    names = {"store_id": "Store", "dept_id": "Dept", "week": "Date", "weekly_sales": "Weekly_Sales"}
    sales = pl.read_parquet(root / "all" / "sales.parquet").rename(names)
    sales.write_csv(root / "next.csv")
    sales.filter(pl.col("Date") < sales["Date"].max()).write_csv(root / "first.csv")
    config = TrainConfig(epochs=1)
    from salescast.data import ingest
    from salescast.serving import batch

    meta = ingest.import_sales(root / "first.csv", None, None, work.raw).dataset
    stages.features_stage(work, work.raw, config.horizon)
    repo.apply(work)
    repo.materialize(work)
    training = retrieval.retrieve(work, config.feature_service)
    fits = (Fit("final", meta.last_week, work.models),)
    assert run_plan(Plan(training, training.name, "US", config, fits, work.fits / "checkpoints")) == 0
    batch.write_all(work, work.forecasts, work.models)
    found.keep(root / "snapshots" / "start")
    return found


@pytest.fixture
def happened(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """`happened("clear error")` after each try, for the table."""
    return lambda outcome: record_property("happened", outcome)


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Random moments and places, other ones in every session; the seed is shown when a test fails."""
    seed = int(os.environ.get("FAULT_SEED", time.time_ns() % 10**9))
    print(f"FAULT_SEED={seed}")  # noqa: T201
    yield random.Random(f"{seed} {request.node.name}")
