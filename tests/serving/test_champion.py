"""A server follows an alias of a real MLflow registry: no request fails, and no broken version is served."""

import errno
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient
from prometheus_client import REGISTRY

from feast_asof import replace
from salescast.config import Settings, read
from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.metadata import read_metadata
from salescast.runtime.atomic_files import replace_dir
from salescast.runtime.processes import free_port
from salescast.schema import MODEL_NAME
from salescast.serving import forecaster
from salescast.serving.served import Served
from salescast.tracking.champion import Follower, keep, split
from salescast.workdir import Workdir

from .conftest import PREDICT, READY, Running, World, answers, wait

MODEL = f"models:/{MODEL_NAME}@champion"
ONE = {"instances": [{"store_id": 1, "dept_id": 1}]}


class Registry:
    """An MLflow store in files, with one registered model."""

    def __init__(self, root: Path) -> None:
        self.uri = f"sqlite:///{root / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.experiment = self.client.create_experiment("test", (root / "artifacts").as_uri())
        self.client.create_registered_model(MODEL_NAME)

    def promote(self, folder: Path) -> None:
        """Register the bundle in `folder` as a new version and give it the champion alias."""
        run = self.client.create_run(self.experiment).info
        self.client.log_artifacts(run.run_id, str(folder), "bundle")
        version = self.client.create_model_version(MODEL_NAME, f"{run.artifact_uri}/bundle", run_id=run.run_id)
        self.client.set_registered_model_alias(MODEL_NAME, "champion", version.version)


def test_new_champions_are_served_and_broken_ones_are_not(
    world: World, tmp_path: Path, serve: Callable[..., AbstractContextManager[Running]]
) -> None:
    root = world.copy(tmp_path / "work")
    (root / "models").rename(tmp_path / "first")  # the only bundle is the registry's
    registry = Registry(tmp_path)
    registry.promote(tmp_path / "first")
    first, second = (bundle.load(folder).digest[:12] for folder in (tmp_path / "first", world.other_bundle))
    environment = {"SALESCAST_MODEL": MODEL, "MLFLOW_TRACKING_URI": registry.uri, "SALESCAST_MODEL_POLL_SECONDS": "0.2"}
    statuses: set[int] = set()
    versions: list[str] = []
    stop = threading.Event()
    with serve(root, workers=2, **environment) as server:

        def ask() -> None:
            while not stop.is_set():
                with server.client() as client:  # a new connection each time, so that both processes answer
                    answer = client.post(PREDICT, json=ONE)
                    statuses.add(answer.status_code)
                    versions.append(answer.json().get("model_version", ""))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            wait(lambda: len(versions) > 5, server)
            assert set(versions) == {first}
            registry.promote(world.other_bundle)
            wait(lambda: versions[-10:] == [second] * 10, server)
            broken = tmp_path / "broken"
            shutil.copytree(tmp_path / "first", broken)
            (broken / bundle.FINAL).write_bytes(b"cut off")
            registry.promote(broken)
            wait(lambda: "keeping the current model: bundle" in server.log.read_text(), server)
            registry.promote(tmp_path / "first")
            wait(lambda: versions[-10:] == [first] * 10, server)
        finally:
            stop.set()
            thread.join()
        assert statuses == {200}
        assert set(versions) == {first, second}
        server.process.terminate()
        assert server.process.wait() == 0
        assert not answers(server.url + READY)


@pytest.mark.fault(
    "a disk error while a new champion arrives", "the current one is kept; the next look brings the new one"
)
def test_a_transient_disk_error_is_retried(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    read.cache_clear()
    try:
        follower = Follower(MODEL, tmp_path / "served", Workdir(tmp_path / "work"))
        registry.promote(world.root / "models")
        follower.fetch()
        registry.promote(world.other_bundle)
        served, new = (bundle.load(folder).digest for folder in (tmp_path / "served" / "bundle", world.other_bundle))
        with monkeypatch.context() as broken:
            broken.setattr(replace, "sync", Mock(side_effect=OSError(errno.EIO, "disk error")))
            with pytest.raises(UserError, match="disk error"):
                follower.fetch()
        assert bundle.load(tmp_path / "served" / "bundle").digest == served
        follower.fetch()
        assert bundle.load(tmp_path / "served" / "bundle").digest == new
    finally:
        read.cache_clear()


def test_only_what_was_registered_is_fetched(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a version replaced in MLflow's store by those of another bundle."""
    registry = Registry(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    read.cache_clear()
    try:
        registry.promote(world.root / "models")
        registry.client.set_model_version_tag(MODEL_NAME, "1", "digest", bundle.load(world.other_bundle).digest)
        with pytest.raises(UserError, match="is not the one that was registered"):
            keep(Workdir(tmp_path / "work"))
        registry.client.set_model_version_tag(MODEL_NAME, "1", "digest", bundle.load(world.root / "models").digest)
        assert bundle.load(keep(Workdir(tmp_path / "work"))).digest == bundle.load(world.root / "models").digest
    finally:
        read.cache_clear()


@pytest.mark.fault(
    "MLflow away when a server starts", "the champion that the workdir keeps is served; without it, one clear line"
)
def test_without_an_answer_the_kept_champion_is_served(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, work = Registry(tmp_path), Workdir(tmp_path / "work")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    read.cache_clear()
    try:
        registry.promote(world.root / "models")
        kept = bundle.load(keep(work)).digest
        (tmp_path / "mlflow.db").write_bytes(b"no database")
        assert bundle.load(keep(work)).digest == kept
        follower = Follower(MODEL, tmp_path / "served", work)
        follower.fetch_or_copy()
        assert bundle.load(follower.bundle).digest == kept
        (work.champion / "bundle" / bundle.FINAL).write_bytes(b"cut off")
        with pytest.raises(UserError, match="does not give"):
            Follower(MODEL, tmp_path / "elsewhere", work).fetch_or_copy()
    finally:
        read.cache_clear()


@pytest.mark.fault(
    "MLflow away, and the workdir keeps a version of another alias", "one clear line; it is not served as champion"
)
def test_a_kept_version_of_another_alias_is_not_served(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, work, candidate = Registry(tmp_path), Workdir(tmp_path / "work"), f"models:/{MODEL_NAME}@candidate"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    read.cache_clear()
    try:
        registry.promote(world.other_bundle)
        registry.client.set_registered_model_alias(MODEL_NAME, "candidate", "1")
        registry.promote(world.root / "models")
        keep(work, candidate)
        (tmp_path / "mlflow.db").write_bytes(b"no database")
        for folder in (work.champion, tmp_path / "served"):
            with pytest.raises(UserError, match=f"does not give {MODEL}"):
                Follower(MODEL, folder, work).fetch_or_copy()
        assert bundle.load(keep(work, candidate)).digest == bundle.load(world.other_bundle).digest
    finally:
        read.cache_clear()


@pytest.mark.fault("an unexpected error while a new bundle is loaded", "logged and counted; the next look loads it")
def test_no_exception_ends_the_watch_of_the_folder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This includes a transient read error: the folder is unchanged, and is read again."""
    shutil.copytree(world.root / "models", tmp_path / "models")
    real, errors = forecaster.open_served, [UserError("transient"), ZeroDivisionError("unexpected"), MemoryError()]

    def flaky(*arguments: Any) -> Served:
        if read_metadata(tmp_path / "models").digest == new and errors:
            raise errors.pop(0)
        return real(*arguments)

    new = bundle.load(world.other_bundle).digest
    monkeypatch.setattr(forecaster, "open_served", flaky)
    polling = Settings(model_poll_seconds=0.05)
    before = REGISTRY.get_sample_value("salescast_bundle_reloads_total", {"outcome": "refused"}) or 0.0
    serving = forecaster.Forecaster(tmp_path / "models", world.root / "feature_repo", polling)
    with replace_dir(tmp_path / "models") as temporary:
        shutil.copytree(world.other_bundle, temporary, dirs_exist_ok=True)
    while serving.served.model.digest != new:
        time.sleep(0.05)
    assert REGISTRY.get_sample_value("salescast_bundle_reloads_total", {"outcome": "refused"}) == before + 3
    refused = [record for record in caplog.records if "new bundle refused" in record.getMessage()]
    assert [bool(record.exc_info) for record in refused] == [False, True, True], "a traceback for unexpected errors"


@pytest.mark.parametrize("name", ["models:/sales-forecast", "models:/sales-forecast/3", "sales-forecast@champion", ""])
def test_any_other_model_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"a model is named like models:/sales-forecast@champion, got '"):
        split(name)


def test_without_a_registry_or_a_champion_the_server_does_not_start(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    read.cache_clear()
    try:
        with pytest.raises(UserError, match="is in a registry and MLFLOW_TRACKING_URI is off"):
            Follower(MODEL, tmp_path / "served", Workdir(world.root))
    finally:
        read.cache_clear()
    registry = Registry(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    command = [sys.executable, "-m", "salescast.cli.app", "serve", "--workdir", str(world.root), "--model", MODEL]
    ports = ["--port", str(free_port()), "--grpc-port", str(free_port())]
    done = subprocess.run([*command, *ports], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"has no {MODEL_NAME}@champion" in done.stderr and "--model-dir" in done.stderr
    steps, error = done.stderr.splitlines()
    assert steps.endswith(f"fetching {MODEL} ...") and error.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
