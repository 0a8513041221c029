"""The built wheel, installed away from the repository."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
STAGES: Final = (
    ("data", "generate", "--out", "demo", "--stores", "2", "--depts", "2", "--weeks", "70"),
    ("features", "--data", "demo"),
    ("apply",),
    ("materialize",),
)
DESCRIBE: Final = """
import salescast
from salescast.config import settings
from salescast.tracking import run_record
for found in (salescast.__file__, settings().feature_repo, run_record.git_revision(), run_record.constraints_digest()):
    print(found)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which a wheel of this source was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("src", "feature_repo"):  # a copy: the build writes beside the source
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.db")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    shutil.rmtree(source)  # a path back into it must not work
    return target


@pytest.fixture
def environment(installed: Path) -> dict[str, str]:
    """Python finds the installed wheel before any editable installation."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SALESCAST_", "MLFLOW_"))}
    return clean | {"PYTHONPATH": str(installed)}


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
