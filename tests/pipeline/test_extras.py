"""Without the packages of the extras: `run` goes through, and what needs one of them says so in one line.

The packages are hidden from Python here. `test_wheel` installs the wheel without them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Final

import pytest

from salescast.pipeline.finished import FinishedRun
from salescast.runtime.extras import MissingExtraError
from salescast.training import launch
from salescast.workdir import Workdir

from .conftest import salescast

HIDDEN: Final = (
    "fastapi_swagger", "grpc", "kserve", "kubeflow", "lightgbm", "matplotlib", "mlflow", "psycopg", "psycopg_pool",
    "ray", "statsforecast",
)  # fmt: skip
# Runs in every Python process before anything else.
HIDE: Final = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in {hidden} else find(name, *rest)
"""
# (command, environment, what needs the package, its name, the extra); commands get --workdir.
MISSING: Final[list[tuple[list[str], dict[str, str], str, str, str]]] = [
    (["serve"], {}, "serving", "KServe", "serve"),
    (["up"], {}, "serving", "KServe", "serve"),
    (["register"], {}, "tracking", "MLflow", "tracking"),
    (["reproduce", "0"], {}, "tracking", "MLflow", "tracking"),
    (["run"], {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, "tracking", "MLflow", "tracking"),
    (["backtest", "--with", "lightgbm"], {}, "a reference model", "LightGBM", "bench"),
    (["materialize"], {"SALESCAST_FEATURE_STORE_YAML": "ray.yaml"}, "a feature store with `engine: ray`", "Ray", "ray"),
    (
        ["materialize"], {"SALESCAST_FEATURE_STORE_YAML": "postgres.yaml"}, "a feature store in PostgreSQL", "psycopg",
        "postgres",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which no process finds the packages."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDE.format(hidden=HIDDEN))
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]), "CI": "true"}


@pytest.fixture(scope="module")
def lean_run(sales_csv: Path, tmp_path_factory: pytest.TempPathFactory, without: dict[str, str]) -> Path:
    """The workdir of a finished run, with feature stores in PostgreSQL and on Ray beside its own."""
    work = tmp_path_factory.mktemp("lean") / "work"
    done = salescast("run", "--sales", str(sales_csv), "--workdir", str(work), "--json", **without)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    store = (work / "feature_repo" / "feature_store.yaml").read_text()
    registry = store.replace("sqlite:///registry.db", "postgresql+psycopg://user@nowhere/feast")
    (work / "feature_repo" / "postgres.yaml").write_text(registry)
    (work / "feature_repo" / "ray.yaml").write_text(store.replace("engine: local", "engine: ray"))
    return work


@pytest.mark.slow
def test_a_run_has_all_results_but_those_of_the_missing_packages(lean_run: Path) -> None:
    summary = json.loads((lean_run / "run.json").read_text())
    assert summary["version"] is None and summary["paths"]["mlflow"] == "off" and summary["answers"] == []
    assert summary["reason"] == (
        "tracking needs MLflow, which is not installed. Install it with: pip install 'salescast[tracking]'"
    )
    assert summary["warning"].startswith(
        "serving needs KServe, which is not installed. Install it with: pip install 'salescast[serve]'; all results are"
    )
    assert (lean_run / "report.html").stat().st_size > 100_000 and not (lean_run / "mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "environment", "use", "package", "extra"), MISSING, ids=[f"{one[0][0]}-{one[4]}" for one in MISSING]
)
def test_a_missing_extra_is_named_in_one_line(
    command: list[str],
    environment: dict[str, str],
    use: str,
    package: str,
    extra: str,
    lean_run: Path,
    without: dict[str, str],
) -> None:
    done = salescast(*command, "--workdir", str(lean_run), **without, **environment)
    install = f"Install it with: pip install 'salescast[{extra}]'"
    line = f"error: {use} needs {package}, which is not installed. {install}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.mark.slow
def test_the_champion_needs_mlflow_and_a_bundle_folder_does_not(lean_run: Path, without: dict[str, str]) -> None:
    series = ["forecast", "--store", "1", "--dept", "1", "--workdir", str(lean_run)]
    refused = salescast(*series, **without)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    assert "pip install 'salescast[tracking]', or ask for a bundle by name: --model-dir" in refused.stderr
    done = salescast(*series, "--model-dir", str(lean_run / "models"), "--json", **without)
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 8


@pytest.mark.slow
def test_python_raises_the_same_line(lean_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kserve", "kubeflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"^serving needs KServe, .*: pip install 'salescast\[serve\]'$"):
        FinishedRun(Workdir(lean_run)).serve().__enter__()
    with pytest.raises(MissingExtraError, match=r"^starting a training job needs .*'salescast\[kubeflow\]'$"):
        launch.submit(None, lean_run)
