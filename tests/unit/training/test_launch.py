import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from salescast.errors import UserError
from salescast.model import bundle
from salescast.training import launch
from salescast.training.main import run_plan
from salescast.training.plan import Plan, Tracking

PlanOf = Callable[..., Plan]


@pytest.mark.slow
def test_a_local_launch_trains_and_leaves_the_process_as_it_was(plan_of: PlanOf, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    plan = plan_of(epochs=2)
    launch.train(plan, tmp_path / "plan.json", processes=2)
    assert bundle.load(plan.fits[0].out).metadata.config == plan.config
    assert Plan.read(tmp_path / "plan.json") == plan
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failed_launch_gives_the_reason_of_the_process_that_failed(plan_of: PlanOf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training failed: no sales to learn from up to 2024-04-26"):
        launch.train(plan_of(min_history=1000), tmp_path / "plan.json", processes=1, restarts=0)


def test_no_work_begins_without_the_tracking_server(plan_of: PlanOf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not answer"):
        tracked = plan_of(tracking=Tracking("http://127.0.0.1:9", "tests", "run", tmp_path / "journal"))
        launch.train(tracked, tmp_path / "plan.json", processes=1)
    assert not (tmp_path / "plan.json").exists()


def test_under_torchrun_this_process_is_rank_0(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    plan = plan_of(epochs=1)
    launch.train(plan, tmp_path / "plan.json", processes=7)
    assert bundle.is_finished(plan.fits[0].out, plan.digest(plan.fits[0]))
    with pytest.raises(SystemExit) as stopped:
        launch.run(str(tmp_path / "plan.json"), processes=7)
    assert stopped.value.code == 0


@dataclass
class Cluster:
    """Stands for the Kubernetes API: takes a job and keeps it."""

    backend: object = None
    jobs: list[dict[str, Any]] = field(default_factory=list)

    def get_runtime(self, name: str) -> str:
        return name

    def train(self, **job: Any) -> str:
        self.jobs.append(job)
        return "job-1"


def test_on_kubernetes_a_job_gets_the_plan_and_the_nodes(plan_of: PlanOf, tmp_path: Path) -> None:
    cluster = Cluster()
    path = plan_of().write(tmp_path / "plan.json")
    assert launch.submit(cluster, path, nodes=3, processes=2) == "job-1"  # type: ignore[arg-type]
    (job,) = cluster.jobs
    trainer = job["trainer"]
    assert job["runtime"] == "torch-distributed"
    assert (trainer.num_nodes, trainer.packages_to_install) == (3, None)
    assert trainer.func_args == {"job": {"plan": str(path), "processes": 2}}


def test_what_a_job_runs_is_the_training_program(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called as both backends call it: with the dictionary, and with the dictionary's content."""
    monkeypatch.setenv("RANK", "0")
    path = plan_of(epochs=1).write(tmp_path / "plan.json")
    job = {"plan": str(path), "processes": 1}
    assert run_plan(Plan.read(path)) == 0
    for arguments in (job, {"job": job}):
        with pytest.raises(SystemExit) as stopped:
            launch.train_job(arguments)
        assert stopped.value.code == 0
