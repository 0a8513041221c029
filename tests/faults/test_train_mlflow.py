"""MLflow stopped in the middle of a training: a real server, real processes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from salescast.model import bundle
from salescast.runtime import processes
from salescast.tracking import journal
from salescast.training.plan import Plan, Tracking


@contextmanager
def mlflow(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command = (sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store)
    server = processes.Server(
        processes.Service("MLflow", command, f"http://127.0.0.1:{port}/health", folder / "mlflow.log")
    )
    try:
        while not server.ready():
            time.sleep(0.1)
        yield server.process
    finally:
        stop(server.process)


def stop(server: "subprocess.Popen[bytes]") -> None:
    if server.poll() is None:
        os.killpg(server.pid, 9)
        server.wait()


@pytest.mark.long
@pytest.mark.fault("MLflow lost in the middle of a training", "the bundle as ever; everything is sent when it is back")
def test_mlflow_lost_in_the_middle_is_caught_up_later(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    plan = plan_of(tracking=Tracking(uri, "tests", "run", tmp_path / "journal", patience=10), patience=6)
    folder = plan.journal
    assert folder is not None
    path = str(plan.write(tmp_path / "plan.json"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}

    with mlflow(tmp_path, port) as server:
        training = subprocess.Popen(
            [sys.executable, "-m", "salescast.training.main", path],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        while journal.run_id(folder) is None:  # the upload has begun
            assert training.poll() is None, training.stdout and training.stdout.read()
            time.sleep(0.05)
        stop(server)
        text, _ = training.communicate()
    assert training.returncode == journal.UNSENT, text
    assert "the journal is kept and sent later" in text
    assert f"python -m salescast.tracking.journal {folder}" in text
    assert bundle.load(plan.fits[0].out), "the training itself is not touched"

    late = [sys.executable, "-m", "salescast.tracking.journal", str(folder)]
    refused = subprocess.run(late, capture_output=True, text=True, env=environment, check=False)
    assert refused.returncode == 1
    assert f"request to MLflow at {uri} failed" in refused.stderr
    with mlflow(tmp_path, port):
        subprocess.run(late, check=True, env=environment)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        run = client.get_run(str(journal.run_id(plan.journal)))
        epochs = client.get_metric_history(run.info.run_id, "final/holdout/val_wmape")
        assert [metric.step for metric in epochs] == list(range(1, 7))
        assert run.info.status == "FINISHED"
        files = {file.path for file in client.list_artifacts(run.info.run_id, "bundle")}
        assert f"bundle/{bundle.FINAL}" in files
    assert journal.exit_code(plan.journal) == 0
