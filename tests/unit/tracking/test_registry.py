"""The registry of a real MLflow store."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from polars.testing import assert_frame_equal

from salescast.config import read
from salescast.errors import UserError
from salescast.evaluation.lineage import Candidate, Evaluation, Fitted
from salescast.model import bundle
from salescast.model.bundle import Bundle
from salescast.model.metadata import read_metadata
from salescast.runtime import parquet
from salescast.schema import MODEL_NAME
from salescast.tracking import registry
from salescast.training.main import run_plan
from salescast.training.plan import Plan
from salescast.workdir import Workdir

EARLY, LATE = date(2024, 1, 5), date(2024, 4, 5)


def backtest(**errors: dict[date, float]) -> pl.DataFrame:
    """Two rows a cutoff and model, y = 100, forecast off by the error given."""
    rows = [
        (store, 1, cutoff, 1, cutoff, 100.0, 100.0 + error, 90.0, 110.0, model)
        for model, by_cutoff in errors.items()
        for cutoff, error in by_cutoff.items()
        for store in (1, 2)
    ]
    columns = ["store_id", "dept_id", "cutoff", "horizon", "week", "y", "yhat", "p10", "p90", "model"]
    return pl.DataFrame(rows, schema=columns, orient="row")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> Workdir:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    read.cache_clear()
    shutil.copyfile(store, tmp_path / "mlflow.db")
    return Workdir(tmp_path)


def run_of(work: Workdir) -> str:
    client = MlflowClient(tracking_uri=work.tracking_uri)
    found = client.get_experiment_by_name("test")
    number = found.experiment_id if found else client.create_experiment("test", str(work.artifacts))
    return str(client.create_run(number).info.run_id)


@pytest.fixture(scope="module")
def trained(module_plan_of: Callable[..., Plan]) -> Bundle:
    plan = module_plan_of(epochs=1)
    assert run_plan(plan) == 0
    return bundle.load(plan.fits[0].out)


@pytest.fixture
def put(work: Workdir, trained: Bundle) -> Callable[[float], Candidate]:
    """Puts another model into the workdir for each `factor`; returns what registers it."""

    def put(factor: float) -> Candidate:
        parts = trained.network.state_dict(), trained.scaler
        bundle.save(work.models, replace(trained.metadata, factors=(1.0, factor)), final=parts, best=parts)
        saved = read_metadata(work.models)
        return Candidate(Fitted.from_metadata(saved), Evaluation(saved.metadata.recipe, {}, f"backtest {factor}"))

    return put


GOOD, BAD = backtest(ours={EARLY: 2}, naive={EARLY: 5}), backtest(ours={EARLY: 3}, naive={EARLY: 5})
BEST = backtest(ours={EARLY: 1}, naive={EARLY: 5})


def holder(client: MlflowClient) -> int:
    return int(client.get_model_version_by_alias(registry.MODEL_NAME, registry.CHAMPION).version)


def test_versions_and_alias_in_the_registry(work: Workdir, put: Callable[[float], Candidate], tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=work.tracking_uri)
    one, run = put(1.1), run_of(work)
    for _ in range(2):
        first = registry.register(work, run, one, GOOD, "ours")
        assert (first.version, first.champion) == (1, True)
    assert len(client.search_model_versions(f"name='{MODEL_NAME}'")) == 1, "the same bundle is the same version"
    curve = client.get_metric_history(run, "backtest_by_horizon_wmape")
    assert [(point.step, point.value) for point in curve] == [(1, pytest.approx(0.02))], "each point once"
    files = {file.path for file in client.list_artifacts(run)}
    assert files >= {"backtests", "evaluation.json", "backtest_scores.csv", "backtest_scores_by_dept_id.csv"}

    worse = registry.register(work, run_of(work), put(1.2), BAD, "ours")
    assert (worse.version, worse.champion) == (2, False)
    assert holder(client) == 1

    best = registry.register(work, run_of(work), put(1.3), BEST, "ours")
    assert (best.version, best.champion) == (3, True)
    champion = client.get_model_version_by_alias(MODEL_NAME, registry.CHAMPION)
    assert champion.version == 3 and champion.tags["verdict"] == best.reason
    assert champion.description.startswith("Judged on ") and champion.description.endswith(best.reason)
    assert client.get_run(champion.run_id).data.metrics["backtest_wmape"] == pytest.approx(0.01)
    arrived = download_artifacts(artifact_uri=champion.source, dst_path=str(tmp_path / "got"))
    assert bundle.load(Path(arrived)).digest == bundle.load(work.models).digest == champion.tags["digest"]


def test_an_alias_that_a_person_moved_is_not_taken_back(work: Workdir, put: Callable[[float], Candidate]) -> None:
    client = MlflowClient(tracking_uri=work.tracking_uri)
    registry.register(work, run_of(work), put(1.1), GOOD, "ours")
    best, run = put(1.2), run_of(work)
    assert registry.register(work, run, best, BEST, "ours").champion
    client.set_registered_model_alias(MODEL_NAME, registry.CHAMPION, "1")
    again = registry.register(work, run, best, BEST, "ours")
    assert (again.version, again.champion, holder(client)) == (2, False, 1)
    assert again.reason == "it was champion before; now version 1 has the alias"


def test_another_backtest_does_not_replace_that_of_the_verdict(
    work: Workdir, put: Callable[[float], Candidate]
) -> None:
    first, run = put(1.1), run_of(work)
    registry.register(work, run, first, GOOD, "ours")
    registry.register(work, run, first, backtest(ours={LATE: 1}, naive={LATE: 5}), "ours")
    worse = registry.register(work, run_of(work), put(1.2), BAD, "ours")
    assert not worse.champion and "does not beat the champion with 2.00%" in worse.reason


def test_a_retry_is_not_compared_with_its_own_backtest(
    work: Workdir, put: Callable[[float], Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit that is repeated has the same run; its bundle may differ."""
    real = MlflowClient(tracking_uri=work.tracking_uri, registry_uri=work.tracking_uri)
    run = run_of(work)
    registry.register(work, run, put(1.1), GOOD, "ours")
    best = put(1.2)
    with monkeypatch.context() as patched:
        patched.setattr(registry, "mlflow_client", lambda _uri: Failing(real, "create_model_version", False))
        with pytest.raises(UserError, match="connection lost"):
            registry.register(work, run, best, BEST, "ours")
    again = registry.register(work, run, best, BEST, "ours")
    assert again.champion and "WMAPE 1.00% against 2.00%" in again.reason


def test_the_champion_is_compared_by_the_backtest_of_its_verdict(
    work: Workdir, put: Callable[[float], Candidate]
) -> None:
    """Its bundle was first registered from another run, with a backtest in which it lost."""
    registry.register(work, run_of(work), put(1.1), GOOD, "ours")
    second = put(1.2)
    assert not registry.register(work, run_of(work), second, BAD, "ours").champion
    assert registry.register(work, run_of(work), second, BEST, "ours").champion
    worse = registry.register(work, run_of(work), put(1.3), GOOD, "ours")
    assert not worse.champion and "does not beat the champion with 1.00%" in worse.reason


def test_a_damaged_backtest_of_the_champion_is_refused_until_it_is_sent_again(
    work: Workdir, put: Callable[[float], Candidate]
) -> None:
    first, run = put(1.1), run_of(work)
    registry.register(work, run, first, GOOD, "ours")
    (kept,) = work.artifacts.rglob(f"{registry.BACKTESTS}/*")
    parquet.write(backtest(ours={LATE: 9}), kept)
    best = put(1.2)
    with pytest.raises(UserError, match="is damaged or of another backtest"):
        registry.register(work, run_of(work), best, BEST, "ours")
    put(1.1)
    registry.register(work, run, first, GOOD, "ours")
    put(1.2)
    assert registry.register(work, run_of(work), best, BEST, "ours").champion


def test_a_champion_whose_version_names_no_file_is_compared(work: Workdir, put: Callable[[float], Candidate]) -> None:
    """Such versions have a digest as their tag, and one file in their run."""
    client = MlflowClient(tracking_uri=work.tracking_uri)
    run = run_of(work)
    registry.register(work, run, put(1.1), GOOD, "ours")
    (kept,) = work.artifacts.rglob(f"{registry.BACKTESTS}/*")
    kept.rename(kept.parents[1] / "backtest.parquet")
    client.set_model_version_tag(MODEL_NAME, "1", "backtest", kept.stem)
    assert not registry.register(work, run_of(work), put(1.2), BAD, "ours").champion


def test_a_bundle_that_mlflow_lost_or_damaged_is_uploaded_again(
    work: Workdir, put: Callable[[float], Candidate]
) -> None:
    judged, run = put(1.1), run_of(work)
    registry.register(work, run, judged, GOOD, "ours")
    (kept,) = work.artifacts.rglob(f"{registry.BUNDLES}/*/{bundle.FINAL}")
    kept.write_bytes(b"cut off")
    assert registry.register(work, run, judged, GOOD, "ours").version == 1
    assert bundle.load(kept.parent).digest == judged.final.digest


def test_what_arrives_must_be_what_was_judged(work: Workdir, put: Callable[[float], Candidate]) -> None:
    judged = put(1.1)
    put(1.2)  # the folder has another bundle by now
    with pytest.raises(UserError, match=f"where bundle {judged.final.digest[:12]} of .*models should be"):
        registry.register(work, run_of(work), judged, GOOD, "ours")
    client = MlflowClient(tracking_uri=work.tracking_uri)
    assert client.search_model_versions(f"name='{MODEL_NAME}'") == []


class Failing:
    """A client that loses the connection at its first call of a method: the request, or the answer to it."""

    def __init__(self, client: MlflowClient, method: str, done: bool) -> None:
        self.client, self.method, self.done = client, method, done

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name == self.method and not self.done:
                raise MlflowException("connection lost")
            result = getattr(self.client, name)(*arguments, **named)
            if name == self.method:
                raise MlflowException("connection lost")
            return result

        return call


@pytest.mark.fault(
    "MLflow lost in a registration, before or after a call", "one clear line; the same command does the rest"
)
@pytest.mark.parametrize("done", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize(
    "method",
    [
        "log_artifacts",
        "log_artifact",
        "log_batch",
        "log_text",
        "create_model_version",
        "set_registered_model_alias",
        "set_model_version_tag",
    ],
)
def test_mlflow_lost_at_any_step_is_made_up_for(
    work: Workdir, put: Callable[[float], Candidate], monkeypatch: pytest.MonkeyPatch, method: str, done: bool
) -> None:
    """What stands in MLflow in the end is what an undisturbed registration leaves, and nothing is there twice."""
    real = MlflowClient(tracking_uri=work.tracking_uri, registry_uri=work.tracking_uri)
    judged, run = put(1.1), run_of(work)
    with monkeypatch.context() as patched:
        patched.setattr(registry, "mlflow_client", lambda _uri: Failing(real, method, done))
        with pytest.raises(UserError, match="connection lost"):
            registry.register(work, run, judged, GOOD, "ours")
    again = registry.register(work, run, judged, GOOD, "ours")
    assert (again.version, again.champion) == (1, True), again.reason
    (version,) = real.search_model_versions(f"name='{MODEL_NAME}'")
    assert holder(real) == int(version.version) == 1
    assert version.tags["promoted"] == "yes" and version.tags["digest"] == judged.final.digest
    assert_frame_equal(registry._champion_backtest(real, version), GOOD.filter(pl.col("model") == "ours"))
    metrics = real.get_run(run).data.metrics
    assert {len(real.get_metric_history(run, name)) for name in metrics} == {1}
    assert [file.path for file in real.list_artifacts(run, registry.BUNDLES)] == [
        f"{registry.BUNDLES}/{judged.final.digest[:16]}"
    ]
