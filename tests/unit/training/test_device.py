"""Training, calibration and bundle on a device that is not the CPU, without the hardware: see pretend_device.py."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salescast.model import bundle
from salescast.training.main import run_plan
from salescast.training.plan import Plan

PROGRAM = Path(__file__).with_name("pretend_device.py")
PlanOf = Callable[..., Plan]


def trained_there(plan: Plan, path: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), str(plan.write(path)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def here(module_plan_of: PlanOf) -> str:
    """The digest of the bundle that a CPU trains. Without dropout, whose noise is another one there."""
    plan = module_plan_of(dropout=0.0)
    assert run_plan(plan) == 0
    return bundle.load(plan.fits[0].out).digest


@pytest.fixture(scope="module")
def there(module_plan_of: PlanOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, Any]]:
    """A plan that the device trained, and what was noted."""
    folder = tmp_path_factory.mktemp("there")
    plan = module_plan_of(folder, dropout=0.0)
    return plan, trained_there(plan, folder / "plan.json")


def test_another_device_trains_calibrates_and_forecasts_the_same(here: str, there: tuple[Plan, dict[str, Any]]) -> None:
    """No tensor of the host among those of the device: that fails there."""
    plan, found = there
    assert found["mixed"], "the device would not notice one"
    assert bundle.load(plan.fits[0].out).digest == here
    assert found["same"]


def test_no_step_waits_for_the_host(there: tuple[Plan, dict[str, Any]]) -> None:
    """An epoch brings the random places of its samples up and looks at the sums of its losses, whatever its steps."""
    _, found = there
    moved = {(note["what"], note["up"], note["down"]) for note in found["notes"]}
    assert all(note["steps"] >= 10 for note in found["notes"] if note["what"] == "epoch")
    assert moved == {("epoch", 2, 1), ("wmape", 0, 1), ("shrinkage", 1, 1), ("interval_factor", 0, 1)}


def test_a_training_on_another_device_resumes_bitwise(here: str, plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(dropout=0.0)
    trained_there(plan, tmp_path / "plan.json", "2")
    assert bundle.load(plan.fits[0].out).digest == here
