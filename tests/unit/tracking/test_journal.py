import http.server
import json
import resource
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from salescast.config import read
from salescast.errors import UserError
from salescast.tracking import journal
from salescast.tracking.journal import (
    EVENTS,
    SENT,
    TARGET,
    Journal,
    _unsent,
    exit_code,
    run_id,
    send,
    tracked,
)
from salescast.tracking.mlflow import check
from salescast.training.plan import Plan, Tracking

PlanOf = Callable[..., Plan]


class Handler(http.server.BaseHTTPRequestHandler):
    """Something that answers HTTP."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_server_that_answers_is_fine(server: str) -> None:
    check(server)


def test_a_server_with_a_certificate_of_its_own_authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import trustme

    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.socket = context.wrap_socket(found.socket, server_side=True)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="certificate verify failed"):
            check(f"https://localhost:{found.server_port}", attempts=1)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "ca.crt"))
        read.cache_clear()
        check(f"https://localhost:{found.server_port}")
        found.shutdown()
    read.cache_clear()


def test_a_server_that_does_not_answer_is_an_error_before_any_work(plan_of: PlanOf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 does not answer .*MLFLOW_TRACKING_URI=off"):
        check("http://127.0.0.1:9", attempts=1)


def test_a_file_store_needs_a_writable_folder(tmp_path: Path) -> None:
    check(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UserError, match="in a folder that cannot be written"):
        check("sqlite:////proc/1/new/mlflow.db")


def plan(plan_of: PlanOf, tmp_path: Path) -> Plan:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return plan_of(tracking=Tracking(uri, "tests", "run", tmp_path / "journal", artifacts=str(tmp_path / "artifacts")))


def test_switched_off_nothing_is_written(plan_of: PlanOf, tmp_path: Path) -> None:
    off = plan_of()
    with tracked(off.tracking, off.journal, off.params) as journal:
        assert journal is None
    assert (run_id(off.journal), exit_code(off.journal)) == (None, 0)


def test_everything_arrives_once(plan_of: PlanOf, tmp_path: Path) -> None:
    """A real store: parameters, metrics by step, files; a second start goes on with the same run."""
    from mlflow import MlflowClient

    training = plan(plan_of, tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("content")
    for start in range(2):
        with tracked(training.tracking, training.journal, training.params) as journal:
            assert journal is not None
            journal.metrics({"loss": 3.0 - start}, step=start)
            journal.artifacts(tmp_path / "files", "bundle")
        assert exit_code(training.journal) == 0
    assert training.tracking is not None
    client = MlflowClient(tracking_uri=training.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.run_id == run_id(training.journal)
    assert run.info.status == "FINISHED"
    assert run.data.params["data_digest"] == "demo"
    assert run.data.params["seed"] == "42"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "bundle")] == ["bundle/a.txt"]

    # The store is emptied: everything is sent to a new run.
    client.delete_run(run.info.run_id)
    (tmp_path / "mlflow.db").unlink()
    folder = training.journal
    assert folder is not None
    (folder / TARGET).write_text(
        (folder / TARGET).read_text().replace("mlflow.db", "new.db")
    )  # a fresh file, as SQLAlchemy keeps the old one open in this process
    send(folder)
    fresh = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/new.db")
    again = fresh.get_run(str(run_id(training.journal)))
    assert again.info.run_id != run.info.run_id
    assert again.data.metrics == {"loss": 2.0}


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"kind": "metr')
    assert [event["kind"] for _, event in _unsent(tmp_path)] == ["metrics"]
    Journal(tmp_path).metrics({"loss": 2.0}, 2)
    assert [event["step"] for _, event in _unsent(tmp_path)] == [1, 2]


def test_what_a_full_disk_did_not_take_is_written_when_there_is_space(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / EVENTS).stat().st_size + 9, hard))
    try:
        journal.metrics({"loss": 2.0}, 2)
        with pytest.raises(UserError, match="could not be written; free space and start the same plan again"):
            journal.end("FAILED")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.metrics({"loss": 3.0}, 3)
    found = [event for _, event in _unsent(tmp_path)]
    assert [event.get("step", event["kind"]) for event in found] == [1, 2, "end", 3]


def test_a_folder_that_takes_nothing_is_an_error_before_any_work(plan_of: PlanOf, tmp_path: Path) -> None:
    tracked = plan(plan_of, tmp_path)
    folder = tracked.journal
    assert folder is not None
    folder.parent.mkdir(parents=True)
    folder.write_text("a file in its place")
    with (
        pytest.raises(UserError, match=r"cannot write the journal .* free space"),
        journal.tracked(tracked.tracking, folder, tracked.params),
    ):
        pytest.fail("it began")


def test_a_name_in_a_damaged_store_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE some_table (a NOT NULL)")
        file.execute("INSERT INTO some_table VALUES (1)")
        file.execute("PRAGMA writable_schema = 1")
        file.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'some_table', CAST(x'e3ff' AS TEXT)), "
            "name = CAST(x'e3ff' AS TEXT), tbl_name = CAST(x'e3ff' AS TEXT), rootpage = 77"
        )
        file.commit()
    with pytest.raises(UserError, match="is damaged"):
        check(f"sqlite:///{path}")


def test_sending_goes_on_behind_what_was_sent(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 1.0}, 1)
    journal.metrics({"loss": 2.0}, 2)
    first, _ = _unsent(tmp_path)
    (tmp_path / SENT).write_text(json.dumps({"bytes": first[0]}))
    assert [event["step"] for _, event in _unsent(tmp_path)] == [2]


def test_a_folder_without_a_journal_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert journal.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: no tracking journal in {tmp_path}\n"


def test_a_sender_that_works_is_waited_for_unless_mlflow_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock is an hour after the one before, and the sender has used CPU time since."""
    quiet, clock, used = journal.Quiet, count(0.0, 3600.0), count(0.0)
    monkeypatch.setattr(journal, "Quiet", lambda: quiet(lambda: next(clock)))
    monkeypatch.setattr(journal, "cpu_seconds", lambda _: next(used))
    sender = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    journal._await(sender, tmp_path, patience=60)
    assert sender.returncode == 0
    (tmp_path / journal.AWAY).touch()
    sender = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    journal._await(sender, tmp_path, patience=60)
    assert sender.returncode == -signal.SIGTERM
