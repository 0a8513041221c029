"""A bundle is matched with a backtest of its own recipe only."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from salescast.errors import UserError
from salescast.evaluation import lineage
from salescast.model import bundle
from salescast.model.bundle import Bundle
from salescast.model.metadata import METADATA, Metadata
from salescast.training.main import run_plan
from salescast.training.plan import Fit, Plan
from salescast.workdir import Workdir

REMEDY = r"run `salescast train` and `salescast backtest`"


@pytest.fixture(scope="module")
def trained(module_plan_of: Callable[..., Plan]) -> tuple[Bundle, Plan]:
    plan = module_plan_of(epochs=1)
    assert run_plan(plan) == 0
    return bundle.load(plan.fits[0].out), plan


@pytest.fixture
def work(trained: tuple[Bundle, Plan], tmp_path: Path) -> Workdir:
    """A final bundle, and a backtest by a fit of the same recipe four weeks earlier."""
    model, plan = trained
    work = Workdir(tmp_path)
    cutoff = model.metadata.cutoff - timedelta(weeks=4)
    earlier = replace(model.metadata, cutoff=cutoff, fit_digest=plan.digest(Fit("", cutoff, tmp_path)))
    pl.DataFrame({"y": [1.0]}).write_parquet(work.backtest)
    save(model, earlier, work.fits / "cutoff")
    save(model, model.metadata, work.models)
    lineage.write_evaluation(work, {cutoff: work.fits / "cutoff"})
    return work


def save(model: Bundle, metadata: Metadata, folder: Path) -> None:
    parts = model.network.state_dict(), model.scaler
    bundle.save(folder, metadata, final=parts, best=parts)


def test_a_bundle_of_the_tested_recipe_is_the_candidate(work: Workdir, trained: tuple[Bundle, Plan]) -> None:
    candidate = lineage.candidate(work)
    assert candidate.final.digest == bundle.load(work.models).digest
    assert candidate.final.cutoff == trained[0].metadata.cutoff
    assert [fitted.digest for fitted in candidate.evaluation.tested.values()] == [
        bundle.load(work.fits / "cutoff").digest
    ]


def test_a_bundle_of_another_recipe_is_refused(work: Workdir, trained: tuple[Bundle, Plan]) -> None:
    model, _ = trained
    metadata = model.metadata
    for other, reason in (
        (replace(metadata, data_digest="newer"), r"\(data: newer, demo\)"),
        (replace(metadata, country="DE"), r"\(country: DE, US\)"),
        (replace(metadata, config=replace(metadata.config, epochs=7, seed=1)), r"\(epochs: 7, 1; seed: 1, 42\)"),
        (replace(metadata, fit_digest="of other code"), "was made by other code than this"),
    ):
        save(model, other, work.models)
        with pytest.raises(UserError, match=rf"{reason}.*{REMEDY}"):
            lineage.candidate(work)


def test_a_backtest_of_other_code_is_refused(work: Workdir, trained: tuple[Bundle, Plan]) -> None:
    model, _ = trained
    cutoff = model.metadata.cutoff - timedelta(weeks=4)
    save(model, replace(model.metadata, cutoff=cutoff, fit_digest="of other code"), work.fits / "cutoff")
    lineage.write_evaluation(work, {cutoff: work.fits / "cutoff"})
    with pytest.raises(UserError, match=rf"the fit up to {cutoff} was made by other code.*{REMEDY}"):
        lineage.candidate(work)


def test_missing_and_damaged_files_are_named(work: Workdir) -> None:
    def refused(path: Path, content: bytes | None, reason: str) -> None:
        original = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            lineage.candidate(work)
        path.write_bytes(original)

    refused(work.backtest, None, "no backtest in .*; run `salescast backtest`")
    refused(work.backtest, b"another", "damaged or of another backtest; run `salescast backtest` again")
    refused(work.evaluation, None, "no backtest in .*; run `salescast backtest`")
    for content in (b"", b"{", b"[]", json.dumps({"recipe": {}}).encode(), b"\xff"):
        refused(work.evaluation, content, r"evaluation.json is damaged .*; run `salescast backtest` again")
    refused(work.models / bundle.FINAL, b"cut off", "is not complete")
    refused(work.models / METADATA, None, "no model bundle")
    assert lineage.candidate(work).evaluation.tested
