"""The built wheel, installed away from the repository: with what it depends on, and, in less time, without."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

from .conftest import SMALL

ROOT: Final = Path(__file__).parents[2]
CONSTRAINTS: Final = ROOT / "constraints.txt"
PIP: Final = ("-m", "pip", "--quiet", "--disable-pip-version-check")
GENERATE: Final = ("data", "generate", "--out", "demo", "--stores", "2", "--depts", "2", "--weeks", "110")
STAGES: Final = (GENERATE, ("features", "--data", "demo"), ("apply",), ("materialize",))
DESCRIBE: Final = """
import salescast
from salescast.config import settings
from salescast.tracking import run_record
for found in (salescast.__file__, settings().feature_repo, run_record.git_revision(), run_record.constraints_digest()):
    print(found)
"""
# A retailer's file, made of demo data.
EXPORT: Final = """
import polars as pl
names = {"store_id": "Store", "dept_id": "Dept", "week": "Date", "weekly_sales": "Weekly_Sales"}
pl.read_parquet("demo/sales.parquet").rename(names).write_csv("sales.csv")
"""
# Commands that need an extra, and the only line that they write without it.
MISSING: Final[dict[tuple[str, ...], str]] = {
    ("serve", "--model-dir", "shared/models"): "serving needs KServe, {missing}[serve]'",
    ("up", "--model-dir", "shared/models"): "serving needs KServe, {missing}[serve]'",
    ("register",): "tracking needs MLflow, {missing}[tracking]'",
    ("backtest", "--with", "mstl"): "a reference model needs StatsForecast, {missing}[bench]'",
}


def clean() -> dict[str, str]:
    """The environment without settings of the program, and without other folders with packages."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("SALESCAST_", "MLFLOW_", "PYTHON"))
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("src", "feature_repo"):  # a copy: the build writes beside the source
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.db")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([sys.executable, *PIP, *build], check=True)
    shutil.rmtree(source)  # a path back into it must not work
    (built,) = folder.glob("*.whl")
    return built


# --- with its dependencies ---


class Installation:
    """The wheel in a virtual environment of its own, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path, extras: str = "") -> None:
        self.folder, self.bin = folder / "work", folder / "venv" / "bin"
        self.folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        self._pip("install", "--constraint", str(CONSTRAINTS), "torch")  # first and alone, as in Makefile
        self._pip("install", "--constraint", str(CONSTRAINTS), f"{wheel}{extras}")
        self._pip("check")

    def _pip(self, *arguments: str) -> None:
        subprocess.run([self.bin / "python", *PIP, *arguments], env=clean(), check=True)

    def python(self, code: str) -> str:
        return self._run("python", "-c", code).stdout

    def salescast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("salescast", *arguments)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / program, *arguments], cwd=self.folder, env=clean() | SMALL | {"CI": "true"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture
def lean(tmp_path: Path, wheel: Path) -> Installation:
    return Installation(tmp_path, wheel)


@pytest.fixture
def complete(tmp_path: Path, wheel: Path) -> Installation:
    return Installation(tmp_path, wheel, "[all]")


@pytest.mark.long
def test_a_wheel_without_extras_runs_the_pipeline_on_a_file(lean: Installation) -> None:
    assert lean.salescast(*GENERATE).returncode == 0
    lean.python(EXPORT)
    done = lean.salescast("run", "--sales", "sales.csv", "--json")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    summary = json.loads(done.stdout)
    assert summary["version"] is None and "pip install 'salescast[tracking]'" in summary["reason"]
    assert summary["answers"] == [] and "pip install 'salescast[serve]'" in summary["warning"]
    assert (lean.folder / "shared" / "report.html").stat().st_size > 100_000
    forecast = ("forecast", "--all", "--out", "forecasts.xlsx", "--model-dir", "shared/models")
    assert lean.salescast(*forecast).returncode == 0 and (lean.folder / "forecasts.xlsx").is_file()
    missing = "which is not installed. Install it with: pip install 'salescast"
    for command, line in MISSING.items():
        done = lean.salescast(*command)
        assert (done.returncode, done.stdout) == (1, ""), command
        assert done.stderr == f"error: {line.format(missing=missing)}\n", command
    without = "kserve", "mlflow", "ray", "psycopg", "kubeflow", "matplotlib", "lightgbm"
    assert lean.python(f"import importlib.util as u; print(any(map(u.find_spec, {without})))") == "False\n"


@pytest.mark.long
def test_a_wheel_with_all_extras_registers_a_model_and_asks_a_server(complete: Installation) -> None:
    assert complete.salescast(*GENERATE).returncode == 0
    complete.python(EXPORT)
    done = complete.salescast("run", "--sales", "sales.csv", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["version"] == 1 and summary["warning"] is None and len(summary["answers"]) == 3
    compared = complete.salescast("backtest", "--with", "lightgbm,mstl", "--json")
    assert compared.returncode == 0, compared.stderr
    assert {"salescast", "lightgbm", "mstl"} <= {row["model"] for row in json.loads(compared.stdout)}


# --- without: the packages of this environment ---


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel was installed, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    install = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, *PIP, *install], check=True)
    return target


@pytest.fixture
def environment(installed: Path) -> dict[str, str]:
    """Python finds the installed wheel before any editable installation."""
    return clean() | {"PYTHONPATH": str(installed)}


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    script = installed / "bin" / "salescast"
    for stage in STAGES:
        done = subprocess.run(
            [sys.executable, script, *stage], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (stage, done.stdout, done.stderr)
    assert (tmp_path / "shared" / "feature_repo" / "online_store.db").is_file()


@pytest.mark.slow
def test_an_installed_wheel_finds_its_own_files_and_claims_no_repository(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    package, feature_repo, revision, constraints = done.stdout.splitlines()
    assert Path(package).parent == installed / "salescast"
    assert Path(feature_repo).is_relative_to(installed)
    assert (revision, constraints) == ("None", "None")


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    packages = [ROOT / "src" / "salescast", ROOT / "src" / "feast_asof"]
    expected = {path.relative_to(ROOT / "src") for package in packages for path in package.rglob("*") if path.is_file()}
    expected |= {
        Path("salescast/feature_store/feature_repo") / path.name
        for path in (ROOT / "feature_repo").iterdir()
        if path.suffix in (".py", ".yaml")
    }
    files = {path for path in expected if "__pycache__" not in path.parts}
    assert {path for path in files if not (installed / path).is_file()} == set()
    for name in ("salescast/py.typed", "feast_asof/py.typed", "salescast/report/templates", "salescast/cli/app.py"):
        assert (installed / name).exists(), name


def test_the_command_is_the_main_function_of_the_command_line() -> None:
    from importlib.metadata import EntryPoint

    from salescast.cli import app

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("salescast", scripts["salescast"], "console_scripts").load() is app.main
