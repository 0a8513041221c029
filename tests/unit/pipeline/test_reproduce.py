"""The run record is sufficient to repeat the run, and `reproduce` does so."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from salescast.config import read
from salescast.data import dataset
from salescast.errors import UserError
from salescast.feature_store import repo, retrieval
from salescast.model.config import TrainConfig
from salescast.pipeline import reproduce, stages
from salescast.runtime.checksums import sha256
from salescast.tracking import journal
from salescast.tracking.run_record import Record
from salescast.training.main import run_plan
from salescast.training.plan import Fit, Plan, Tracking
from salescast.workdir import Workdir

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workdir, Plan]:
    """A workdir with a tracked run of one process."""
    work = Workdir(tmp_path_factory.mktemp("work"))
    config = TrainConfig(hidden=(8,), epochs=1, batch_size=256, horizon=4, holdout_weeks=6)
    meta = dataset.generate(work.raw, 3, 2, 80, 1)
    stages.features_stage(work, work.raw, config.horizon)
    repo.apply(work)
    training = retrieval.retrieve(work, config.feature_service)
    plan = Plan(
        training=training,
        data_digest=training.name,
        country="US",
        config=config,
        fits=(Fit("final", meta.last_week, work.models),),
        checkpoints=work.fits,
        tracking=Tracking(work.tracking_uri, "salescast", "run", work.fits / "journal", str(work.artifacts)),
        dataset_digest=meta.digest,
    )
    assert run_plan(plan) == 0
    return work, plan


def run_id(plan: Plan) -> str:
    found = journal.run_id(plan.journal)
    assert found
    return found


def test_the_record_contains_data_code_and_hardware(trained: tuple[Workdir, Plan]) -> None:
    work, plan = trained
    found, digest = reproduce.read_run(work, run_id(plan))
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert str(found.git_revision).removesuffix("+changes") == head.stdout.strip()
    assert found.constraints_digest == sha256(ROOT / "constraints.txt")
    assert found.dataset_digest == dataset.Dataset.read(work.raw).digest
    assert (found.data_digest, found.config, found.cutoff) == (plan.data_digest, plan.config, plan.fits[0].cutoff)
    assert found.config.seed == 42 and found.processes == 1 and found.hardware["cores"]
    assert digest == json.loads((work.models / "model_metadata.json").read_text())["digest"]
    from mlflow import MlflowClient

    tags = MlflowClient(tracking_uri=work.tracking_uri).get_run(run_id(plan)).data.tags
    assert tags["dataset_digest"] == found.dataset_digest and tags["hardware_machine"] == found.hardware["machine"]


def test_a_repeated_run_has_the_same_digests_and_does_not_change_the_workdir(trained: tuple[Workdir, Plan]) -> None:
    work, plan = trained
    before = {path: path.stat().st_mtime_ns for path in work.root.rglob("*.*") if "mlflow" not in path.name}
    found = reproduce.reproduce(work, run_id(plan), work.raw)
    assert found[-1].what == "bundle digest" and found[-1].same
    assert {row.what for row in found if not row.same} <= {"git revision"}  # files may be edited while tests run
    assert {path: path.stat().st_mtime_ns for path in work.root.rglob("*.*") if "mlflow" not in path.name} == before


def test_other_data_and_unknown_runs_are_refused(trained: tuple[Workdir, Plan], tmp_path: Path) -> None:
    work, plan = trained
    dataset.generate(tmp_path / "raw", 3, 2, 81, 1)
    with pytest.raises(UserError, match=r"was made from dataset .*raw holds .*; name the folder .* with --data"):
        reproduce.reproduce(work, run_id(plan), tmp_path / "raw")
    with pytest.raises(UserError, match=r"run '../x' has no readable record"):
        reproduce.reproduce(work, "../x", work.raw)


def test_differences_between_records_are_listed(trained: tuple[Workdir, Plan]) -> None:
    work, plan = trained
    recorded, digest = reproduce.read_run(work, run_id(plan))
    other = dataclasses.replace(recorded, python="3.1", hardware={"cores": 99})
    rows = reproduce.compare(recorded, other, (digest, "x"))
    assert {row.what for row in rows if not row.same} == {
        "python", "bundle digest", *(f"hardware: {name}" for name in recorded.hardware),
    }  # fmt: skip


def test_an_unreadable_record_is_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"cutoff": "2024-01-05"}'):
        (tmp_path / "record.json").write_text(content)
        with pytest.raises(UserError, match=r"the run's record record.json cannot be read"):
            Record.read(tmp_path / "record.json")


def test_in_an_image_the_revision_comes_from_its_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plan_of: Callable[..., Plan]
) -> None:
    (tmp_path / "constraints.txt").write_text("a==1\n")
    monkeypatch.setenv("SALESCAST_FEATURE_REPO", str(tmp_path / "feature_repo"))
    monkeypatch.setenv("SALESCAST_REVISION", "abc123")
    read.cache_clear()
    try:
        found = plan_of().record(4)
    finally:
        monkeypatch.undo()
        read.cache_clear()
    assert (found.git_revision, found.processes) == ("abc123", 4)
    assert found.constraints_digest == sha256(tmp_path / "constraints.txt")
    assert found.dataset_digest is None
