"""Digests of the code: a changed constant means a new fit, a changed comment does not."""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from salescast.config import settings
from salescast.data import dataset
from salescast.errors import UserError
from salescast.feature_store import repo, retrieval
from salescast.features.build import build_features
from salescast.model.bundle import is_finished
from salescast.runtime import code_digest
from salescast.runtime.code_digest import EXCLUDED, FEATURES, RETRIEVAL, SOURCE, TRAINING, closure, digest
from salescast.serving import batch
from salescast.training.main import run_plan
from salescast.training.plan import Plan
from salescast.workdir import Workdir

STAGES = {"features": FEATURES, "retrieval": RETRIEVAL, "training": TRAINING}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCE, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")))


def changed(source: Path, module: str, old: str, new: str) -> set[str]:
    """The stages whose digest changes after a change in a copy of the source."""
    path = source / f"{module}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    digest.cache_clear()
    return {stage for stage, roots in STAGES.items() if digest(roots, source) != digest(roots)}


@pytest.mark.parametrize(
    ("module", "old", "new", "stages"),
    [
        ("salescast/model/seasonal_inputs", "CANDIDATE_BOUND = ", "CANDIDATE_BOUND = 1 + ", {"training"}),
        ("salescast/training/calibration", "WIDEST = 4000", "WIDEST = 3000", {"training"}),
        ("salescast/features/planned", "USUAL = 13", "USUAL = 12", {"features"}),
        ("salescast/features/history", "import", "import sys\nimport", {"features", "training"}),
        ("feast_asof/asof", "import", "import sys\nimport", {"retrieval"}),
        ("salescast/training/calibration", "BATCH = 8192", "BATCH = 8192  # rows", set()),
        ("salescast/training/calibration", '"""How', '"""However', set()),
        ("salescast/cli/app", "INTERRUPTED: Final = 130", "INTERRUPTED: Final = 131", set()),
        ("salescast/serving/routes", "import", "import sys\nimport", set()),
        ("salescast/report/build", "import", "import sys\nimport", set()),
        ("salescast/errors", "UserError", "UserErrors", set()),
    ],
)
def test_a_change_is_seen_by_the_stages_that_import_it(
    module: str, old: str, new: str, stages: set[str], copied: Path
) -> None:
    assert changed(copied, module, old, new) == stages


def test_a_copy_of_the_same_source_has_the_same_digest(copied: Path) -> None:
    assert all(digest(roots, copied) == digest(roots) for roots in STAGES.values())


def test_packages_beside_an_installed_one_are_not_read(copied: Path) -> None:
    (copied / "polars").mkdir()
    (copied / "polars" / "__init__.py").write_text("this is not Python")
    digest.cache_clear()
    assert all(digest(roots, copied) == digest(roots) for roots in STAGES.values())


@pytest.mark.parametrize("library", ["torch", "numpy", "polars"])
def test_another_version_of_a_library_is_seen_everywhere(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage: digest(roots) for stage, roots in STAGES.items()}
    version = code_digest.version
    digest.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(code_digest, "version", lambda name: "0" if name == library else version(name))
        after = {stage: digest(roots) for stage, roots in STAGES.items()}
    digest.cache_clear()
    assert all(before[stage] != after[stage] for stage in STAGES)


def test_the_closure_follows_every_import() -> None:
    assert {"salescast.model.seasonal_inputs", "salescast.model.network", "salescast.training.samples"} <= closure(
        TRAINING
    )
    assert {name for name in closure(RETRIEVAL) if name.startswith("feast_asof.")} == {
        f"feast_asof.{path.stem}" for path in (SOURCE / "feast_asof").glob("[a-z]*.py")
    }
    assert not [name for name in closure(TRAINING) if name.startswith(EXCLUDED)]
    for name in EXCLUDED:
        path = SOURCE.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} is excluded and does not exist"
    for path in SOURCE.rglob("*.py"):  # relative imports would not be followed
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], path


def test_changed_code_means_a_new_fit(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(epochs=1)
    assert run_plan(plan) == 0
    fit = plan.fits[0]
    assert is_finished(fit.out, plan.digest(fit))
    monkeypatch.setattr(code_digest, "digest", lambda roots: "0" * 64)
    assert not is_finished(fit.out, plan.digest(fit))


def test_features_made_by_other_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workdir(tmp_path)
    dataset.generate(work.raw, 1, 2, 60, 1)
    build_features(work.raw, work.data)
    repo.feature_digests(work)
    before = retrieval.training_digest(work, "training_features")
    real = code_digest.digest
    with monkeypatch.context() as patch:
        patch.setattr(code_digest, "digest", lambda roots: "0" * 64 if roots == RETRIEVAL else real(roots))
        assert retrieval.training_digest(work, "training_features") != before
    with monkeypatch.context() as patch:
        declared = Path(shutil.copytree(settings().feature_repo, tmp_path / "declared"))
        (declared / "features.py").write_text((declared / "features.py").read_text() + "\n")
        patch.setattr(settings(), "feature_repo", declared)
        assert retrieval.training_digest(work, "training_features") != before
    monkeypatch.setattr(code_digest, "digest", lambda roots: "0" * 64 if roots == FEATURES else real(roots))
    with pytest.raises(UserError, match=r"made by other code or libraries .*; run `salescast features` again"):
        repo.feature_digests(work)
    with pytest.raises(UserError, match=r"other code .*; run `salescast features` again"):
        batch.upcoming(work)
    build_features(work.raw, work.data)
    repo.feature_digests(work)
