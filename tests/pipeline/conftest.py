"""One small run of the whole pipeline from the command line, shared by the tests of its results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The sales of the tests are years old, so their features are served only because that is allowed here.
SMALL = {
    "NUM_EPOCHS": "8", "BATCH_SIZE": "256", "OMP_NUM_THREADS": "1", "SALESCAST_MAX_FEATURE_AGE_DAYS": "inf",
}  # fmt: skip


def salescast(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SALESCAST_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-m", "salescast.cli.app", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=clean | SMALL | environment,
    )


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo dataset of 4 stores x 3 departments x 100 weeks."""
    from salescast.data import dataset

    out = tmp_path_factory.mktemp("demo") / "raw"
    dataset.generate(out, stores=4, depts=3, weeks=100, seed=1)
    return out


@pytest.fixture(scope="session")
def sales_csv(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sales as a retailer's CSV file."""
    import polars as pl

    out = tmp_path_factory.mktemp("csv") / "sales.csv"
    columns = {"store_id": "Store", "dept_id": "Dept", "week": "Date", "weekly_sales": "Weekly_Sales"}
    pl.read_parquet(raw / "sales.parquet").rename(columns).write_csv(out)
    return out


@pytest.fixture(scope="session")
def finished_run(
    sales_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The workdir of a finished `salescast run` on that file, and the output of the command."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    done = salescast("run", "--sales", str(sales_csv), "--workdir", str(workdir), "--json")
    assert done.returncode == 0, done.stderr
    return workdir, done
