"""The notebooks run from the first cell to the last, one after the other, on small data; they define nothing."""

import ast
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from salescast.data import dataset
from salescast.tracking.mlflow import tracking_uri
from salescast.workdir import Workdir

from .conftest import SMALL

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code(notebook: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def run_in_order(notebooks: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> Workdir:
    work = Workdir(root)
    dataset.generate(work.raw, stores=4, depts=3, weeks=100, seed=1)
    for name in [name for name in os.environ if name.startswith(("SALESCAST_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name, value in {**SMALL, "SALESCAST_WORKDIR": str(work.root), "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, value)
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        patient = {"timeout": None, "startup_timeout": 1800}  # a kernel that dies is noticed
        NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}}, **patient).execute()
    return work


@pytest.mark.slow
def test_the_first_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = run_in_order(NOTEBOOKS[:1], tmp_path / "shared", monkeypatch)
    assert (work.data / "sales_features.parquet").exists()


@pytest.mark.long
def test_the_notebooks_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = run_in_order(NOTEBOOKS, tmp_path / "shared", monkeypatch)
    assert work.report.exists() and work.forecasts.exists() and work.backtest.exists()
    assert tracking_uri(work).endswith("mlflow.db")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_clean(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for source in code(path):
        assert [node for node in ast.walk(ast.parse(source)) if isinstance(node, definitions)] == []
    assert code(path)[0].startswith('WHERE = "laptop"')
    assert any("salescast" in source for source in code(path))


def test_there_are_three() -> None:
    assert [path.name for path in NOTEBOOKS] == ["01-feast-features.ipynb", "02-training.ipynb", "03-inference.ipynb"]
