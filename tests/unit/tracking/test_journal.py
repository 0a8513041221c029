import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from salescast.errors import UserError
from salescast.tracking import journal
from salescast.tracking.journal import (
    JOURNAL,
    SENT,
    UNSENT,
    Journal,
    Sent,
    Uploader,
    exit_code,
    main,
    run_id,
    tracked,
)
from salescast.training.plan import Plan, Tracking

PlanOf = Callable[..., Plan]


@pytest.fixture
def tracking(tmp_path: Path, store: Path) -> Tracking:
    shutil.copyfile(store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return Tracking(uri, "tests", "run", tmp_path / "journal", artifacts=str(tmp_path / "artifacts"), patience=0)


def steps(journal: Journal) -> list[int]:
    return [point.step for event in journal.events for point in event.metrics]


def test_switched_off_nothing_is_written(plan_of: PlanOf) -> None:
    off = plan_of()
    with tracked(off.tracking, off.journal, off.params) as journal:
        assert journal is None
    assert (run_id(off.journal), exit_code(off.journal)) == (None, 0)


def test_everything_arrives_once(tracking: Tracking, tmp_path: Path, store: Path) -> None:
    """A real store: parameters, metrics by step, files; a second start continues the same run."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("content")
    folder = tracking.journal
    for start in range(2):
        with tracked(tracking, folder, {"seed": 42}) as journal:
            assert journal is not None
            journal.metrics({"loss": 3.0 - start, "unknown": float("nan")}, step=start)
            journal.artifacts(tmp_path / "files", "bundle")
        assert exit_code(folder) == 0
    client = MlflowClient(tracking_uri=tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.run_id == run_id(folder)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "42"}
    assert run.data.metrics.keys() == {"loss"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "bundle")] == ["bundle/a.txt"]

    # The store is emptied (a new file: SQLAlchemy keeps the old one open): everything is sent to a new run.
    shutil.copyfile(store, tmp_path / "new.db")
    path = folder / JOURNAL
    path.write_text(path.read_text().replace("mlflow.db", "new.db"))
    assert main([str(folder)]) == 0
    again = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/new.db").get_run(str(run_id(folder)))
    assert again.info.run_id != run.info.run_id
    assert again.data.metrics == {"loss": 2.0}


class Failing:
    """A client that loses every `period`-th request, or the answer to it."""

    def __init__(self, client: MlflowClient, period: int, done: bool) -> None:
        self.client, self.period, self.done, self.calls = client, period, done, count(1)

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            lost = next(self.calls) % self.period == 0
            if lost and not self.done:
                raise MlflowException("connection lost")
            result = getattr(self.client, name)(*arguments, **named)
            if lost:
                raise MlflowException("connection lost")
            return result

        return call


@pytest.mark.parametrize("done", [False, True], ids=["request lost", "answer lost"])
def test_what_is_lost_on_the_way_is_sent_again_and_kept_once(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    client = MlflowClient(tracking_uri=tracking.uri)
    failing = Failing(client, 3, done)
    monkeypatch.setattr(journal, "mlflow_client", lambda _: failing)
    begun = Journal(tracking.journal, tracking, [])
    for step in range(5):
        begun.metrics({"loss": 1.0 / (step + 1)}, step)
    begun.end("FINISHED")
    failures = 0
    for _ in range(20):
        try:
            Uploader(Journal.read(tracking.journal)).upload()
        except UserError:
            failures += 1
    assert failures >= 3
    run = client.get_run(str(run_id(tracking.journal)))
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1.0 / (step + 1)) for step in range(5)]
    assert run.info.status == "FINISHED"


def test_brief_requests_are_the_trainings_only(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same process registers the model afterwards, and waits for MLflow as long as MLflow's own settings say."""
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    with tracked(tracking, tracking.journal, {}):
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert not {"MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"} & os.environ.keys()


def test_a_failed_training_ends_its_run(tracking: Tracking) -> None:
    with pytest.raises(ValueError, match="broken"), tracked(tracking, tracking.journal, {}):
        raise ValueError("broken")
    client = MlflowClient(tracking_uri=tracking.uri)
    assert client.get_run(str(run_id(tracking.journal))).info.status == "FAILED"


def test_an_event_that_a_full_disk_did_not_take_is_written_with_the_next(tracking: Tracking, tmp_path: Path) -> None:
    begun = Journal(tmp_path, tracking, [])
    begun.metrics({"loss": 1.0}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / JOURNAL).stat().st_size + 9, hard))
    try:
        begun.metrics({"loss": 2.0}, 2)
        with pytest.raises(UserError, match=r"cannot write the journal .*; free space and start the same plan again"):
            begun.end("FAILED")
        assert steps(Journal.read(tmp_path)) == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    begun.metrics({"loss": 3.0}, 3)
    assert steps(Journal.read(tmp_path)) == [1, 2, 3]


def test_an_event_that_takes_the_place_of_a_lost_one_is_sent(tracking: Tracking, tmp_path: Path) -> None:
    """A start sent three events, and a full disk kept the last two from the file before it was killed."""
    Journal(tmp_path, tracking, []).metrics({"loss": 1.0}, 1)
    run = MlflowClient(tracking_uri=tracking.uri).create_run("0").info.run_id
    (tmp_path / SENT).write_text(json.dumps({"run_id": run, "events": 3}))
    restarted = Journal.read(tmp_path)
    uploader = Uploader(restarted)
    restarted.metrics({"loss": 2.0}, 2)
    uploader.upload()
    assert MlflowClient(tracking_uri=tracking.uri).get_run(run).data.metrics == {"loss": 2.0}
    assert Sent.read(tmp_path) == Sent(run, 2)


def test_a_folder_that_takes_nothing_is_an_error_before_any_work(tracking: Tracking) -> None:
    tracking.journal.write_text("a file in its place")
    with (
        pytest.raises(UserError, match=r"cannot write the journal .* free space"),
        tracked(tracking, tracking.journal, {}),
    ):
        pytest.fail("it began")


def test_only_the_first_start_needs_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Tracking("http://127.0.0.1:9", "tests", "run", tmp_path, patience=0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="does not answer"), tracked(away, tmp_path, {}):
        pytest.fail("it began")
    Journal(tmp_path, away, []).write()
    with tracked(away, tmp_path, {}) as restarted:
        assert restarted is not None
    assert exit_code(tmp_path) == UNSENT


def test_a_folder_without_a_journal_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: no tracking journal in {tmp_path}; ")


def test_a_slow_upload_is_waited_for_unless_mlflow_is_away(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is an hour after the one before."""
    clock = count(0.0, 3600.0)
    monkeypatch.setattr(journal.time, "monotonic", lambda: next(clock))
    looked, end = threading.Event(), threading.Event()

    class Slow(Uploader):
        def upload(self) -> None:
            end.wait()

        def join(self, timeout: float | None = None) -> None:
            if looked.is_set():
                end.set()
            looked.set()
            super().join(timeout)

    slow = Slow(Journal(tracking.journal, tracking, []))
    slow.start()
    slow.finish(60)
    assert not slow.is_alive()

    class Away(Uploader):
        def upload(self) -> None:
            raise UserError("MLflow is away") from OSError(errno.ECONNREFUSED, "refused")

    away = Away(Journal(tracking.journal, tracking, []))
    away.start()
    away.finish(60)
    assert away.is_alive()
