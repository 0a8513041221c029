"""The training program in one process; several processes and their faults: tests/faults."""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch

from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.metadata import METADATA
from salescast.training.checkpoint import Checkpoint, Checkpoints
from salescast.training.main import main, run_plan
from salescast.training.plan import Fit, Plan, Tracking
from salescast.training.samples import Batch, Samples

PlanOf = Callable[..., Plan]


def digest(plan: Plan) -> str:
    return bundle.load(plan.fits[-1].out).digest


class Stopped(BaseException):
    """Stands for a kill."""


def interrupted(plan: Plan, number: int, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    """Train until checkpoint `number` is written, then die; returns what is left."""
    original = Checkpoints.save

    def save(self: Checkpoints, at: int, checkpoint: Checkpoint) -> None:
        original(self, at, checkpoint)
        if at == number:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(Stopped):
            run_plan(plan)
    return Checkpoints(plan.checkpoints / "final", plan.digest(plan.fits[-1]))


@pytest.fixture(scope="module")
def quiet(module_plan_of: PlanOf) -> Plan:
    """A finished plan, undisturbed."""
    plan = module_plan_of()
    assert run_plan(plan) == 0
    return plan


@pytest.mark.parametrize("number", [1, 3, 7])  # 7: the first of the full phase
def test_a_resumed_fit_ends_bitwise_like_an_undisturbed_one(
    number: int, quiet: Plan, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    left = interrupted(plan, number, monkeypatch)
    assert left.latest() == number
    torch.manual_seed(12345)  # what the generators held before must not matter
    assert run_plan(plan) == 0
    assert digest(plan) == digest(quiet)
    assert left.latest() is None, "a finished fit needs no checkpoints"


def test_a_checkpoint_cut_short_falls_back_to_the_one_before(
    quiet: Plan, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of()
    left = interrupted(plan, 3, monkeypatch)
    content = left.path(3).read_bytes()
    left.path(3).write_bytes(content[: len(content) // 2])
    assert left.latest() == 2
    assert "is cut short or damaged; trying the one before" in caplog.text
    assert run_plan(plan) == 0
    assert digest(plan) == digest(quiet)


def test_a_checkpoint_of_an_earlier_version_is_discarded(
    quiet: Plan, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Intact and of this fit, but with another layout: a plain dictionary, or without a field of today."""
    plan = plan_of()
    left = interrupted(plan, 2, monkeypatch)
    for number, state in ((1, {"phase": "search", "epoch": 1}), (2, {"checkpoint": left.load(2)})):
        if number == 2:
            del state["checkpoint"].trainer.__dict__["average_steps"]
        buffer = io.BytesIO()
        torch.save({"digest": left.digest, **state}, buffer)
        left.path(number).write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    assert left.latest() is None
    assert caplog.text.count("was written by another version and is not used") == 2
    assert run_plan(plan) == 0
    assert digest(plan) == digest(quiet)


def test_another_fits_checkpoint_is_refused_with_a_reason(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = interrupted(plan_of(), 3, monkeypatch)
    other = Checkpoints(left.folder, plan_of(learning_rate=0.1).digest(plan_of().fits[0]))
    assert other.latest() is None
    assert "belongs to other data or settings" in caplog.text
    assert run_plan(plan_of(learning_rate=0.1)) == 0
    assert not list(left.folder.glob("*.pt"))


def test_finished_fits_are_not_repeated(quiet: Plan, caplog: pytest.LogCaptureFixture) -> None:
    before = (quiet.fits[0].out / METADATA).stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert run_plan(quiet) == 0
    assert "final is finished already" in caplog.text
    assert (quiet.fits[0].out / METADATA).stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_bundle_and_another_seed_another(
    quiet: Plan, plan_of: PlanOf, tmp_path: Path
) -> None:
    same, other = plan_of(tmp_path / "same"), plan_of(tmp_path / "other", seed=43)
    run_plan(same)
    run_plan(other)
    assert digest(same) == digest(quiet) != digest(other)


def test_too_little_history_to_hold_out_means_all_epochs_and_no_calibration(
    plan_of: PlanOf, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(holdout_weeks=62)
    run_plan(plan)
    loaded = bundle.load(plan.fits[0].out)
    assert "too little history to hold 62 weeks out" in caplog.text
    assert loaded.metadata.factors == (1.0, 1.0)
    assert loaded.metadata.metrics["epochs"] == 6
    assert loaded.metadata.metrics["val_wmape"] is None


def test_what_a_user_can_cause_is_one_line_and_exit_code_1(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(arguments: list[str], code: int) -> str:
        assert main(arguments) == code
        return capsys.readouterr().err

    assert lines([], 2).startswith("usage: ")
    missing = lines([str(tmp_path / "no.json")], 1)
    assert missing.startswith("error: cannot read the training plan")
    assert missing.count("\n") == 1
    empty = plan_of(min_history=1000).write(tmp_path / "plan.json")
    assert "no sales to learn from up to 2024-04-26; choose a later cutoff" in lines([str(empty)], 1)
    # Under torchrun the reason goes to where torchrun looks for it.
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "reason.json"))
    assert "error:" not in lines([str(empty)], 1)
    assert json.loads((tmp_path / "reason.json").read_text())["message"]["message"].startswith("no sales")


def test_a_training_that_diverges_says_so(plan_of: PlanOf) -> None:
    with pytest.raises(UserError, match=r"training diverged: .* steps of epoch .* lower the learning rate"):
        run_plan(plan_of(learning_rate=1e38))


def test_a_step_without_a_finite_gradient_changes_nothing(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, moments and their step counts after every step; the second one has a NaN."""
    whole, step = Samples.epoch, torch.optim.AdamW.step
    seen: list[list[torch.Tensor]] = []

    def spoiled(self: Samples, *arguments: int) -> Iterator[Batch]:
        for number, batch in enumerate(whole(self, *arguments)):
            yield replace(batch, weight=batch.weight * float("nan")) if number == 1 else batch

    def watched(self: torch.optim.AdamW) -> None:
        step(self)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        seen.append([t.detach().clone() for t in (*weights, *(v for w in weights for v in self.state[w].values()))])

    monkeypatch.setattr(Samples, "epoch", spoiled)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    assert run_plan(plan_of(epochs=1, holdout_weeks=62)) == 0  # too many to hold out: one phase
    assert f"1 of {len(seen)} steps had no finite gradient and were skipped" in caplog.text
    assert all(map(torch.equal, seen[0], seen[1]))
    assert not any(torch.equal(before, after) for before, after in zip(seen[1], seen[2], strict=True) if after.any())


def test_a_plan_survives_its_file(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(tracking=Tracking("sqlite:///x.db", "experiment", "run", tmp_path / "journal"))
    assert Plan.read(plan.write(tmp_path / "plan.json")) == plan


def test_the_digest_of_a_fit_names_data_settings_and_cutoff(plan_of: PlanOf) -> None:
    fit = Fit("a", date(2024, 4, 26), Path("a"))
    base = plan_of().digest(fit)
    assert plan_of().digest(Fit("b", fit.cutoff, Path("b"))) == base, "not its name or place"
    assert plan_of(seed=1).digest(fit) != base
    assert plan_of().digest(Fit("a", date(2024, 4, 19), Path("a"))) != base
