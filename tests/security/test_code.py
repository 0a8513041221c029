"""No pickle is loaded: nowhere in the source, and not from a manipulated bundle or checkpoint."""

import ast
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.metadata import METADATA
from salescast.training.checkpoint import Best, Checkpoint, Checkpoints, TrainerState
from salescast.training.main import run_plan
from salescast.training.plan import Plan

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "feature_repo", "manifests", "benchmarks")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
# Modules and calls that run code while they read; UnpicklingError is only caught.
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
ALLOWED_NAMES = {"UnpicklingError"}
FORBIDDEN_CALLS = {"eval", "exec", "read_pickle", "unsafe_load", "full_load", "load_model"}


def violations(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            yield from (alias.name for alias in node.names if alias.name not in ALLOWED_NAMES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            last = called.rpartition(".")[2]
            if called in ("eval", "exec") or (last in FORBIDDEN_CALLS and last not in ("eval", "exec")):
                yield called
            elif called == "torch.load" and given.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            elif called == "yaml.load" or given.get("allow_pickle") == "True":
                yield called


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_source_loads_code(path: Path) -> None:
    assert list(violations(path.read_text())) == []


def test_notebooks_load_no_code() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines = ["".join(cell["source"]) for cell in cells]
        assert not [line for text in lines if not text.startswith(("%", "!")) for line in violations(text)], path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text)",
        "eval(text)",
        "mlflow.pyfunc.load_model(uri)",
    ],
)
def test_loading_code_is_detected(source: str) -> None:
    assert list(violations(source))


class Evil:
    """Unpickling it creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def folder(module_plan_of: Callable[..., Plan]) -> Path:
    plan = module_plan_of(epochs=1)
    assert run_plan(plan) == 0
    return plan.fits[0].out


def payload(marker: Path, legacy: bool, **values: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"evil": Evil(marker), **values}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bundle_with_code_is_refused_and_the_code_does_not_run(folder: Path, tmp_path: Path, legacy: bool) -> None:
    evil, marker = tmp_path / "bundle", tmp_path / "ran"
    shutil.copytree(folder, evil)
    content = payload(marker, legacy)
    (evil / bundle.FINAL).write_bytes(content)
    described = json.loads((evil / METADATA).read_text())
    del described["checksum"]  # the earliest bundles have none
    described["files"][bundle.FINAL] = hashlib.sha256(content).hexdigest()  # whoever can write one file writes both
    (evil / METADATA).write_text(json.dumps(described))
    with pytest.raises(
        UserError, match=r"bundle .* cannot be used: UnpicklingError: .*; run `salescast train`"
    ) as refused:
        bundle.load(evil)
    assert "\n" not in str(refused.value)
    assert not marker.exists()


def test_the_payload_runs_if_it_is_unpickled(tmp_path: Path) -> None:
    """So the test above can fail."""
    torch.load(io.BytesIO(payload(tmp_path / "ran", legacy=False)), weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_checkpoint_with_code_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, "fit")
    best = Best(1, 0.1, 0.2, {})
    checkpoints.save(1, Checkpoint("holdout", 1, best, None, TrainerState({}, {}, 0, {}, {})))
    content = payload(tmp_path / "ran", legacy=False, digest="fit")
    checkpoints.path(2).write_bytes(content + hashlib.sha256(content).digest())
    assert checkpoints.latest() == 1
    assert "checkpoint-00002.pt was written by another version and is not used; trying the one before" in caplog.text
    assert not (tmp_path / "ran").exists()
