"""Secrets stay in the environment: not in output, logs, files, MLflow, errors or the arguments of processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from salescast.runtime import processes

from .conftest import SMALL, salescast

NAMES = (
    "MLFLOW_TRACKING_PASSWORD", "FEAST_DB_PASSWORD", "PGPASSWORD", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY",
)  # fmt: skip
SECRETS = {name: f"s3cret.{name.lower()}.f00d" for name in NAMES}


def leaked(text: str) -> list[str]:
    return [name for name, value in SECRETS.items() if value in text]


def files_with_secrets(root: Path) -> list[Path]:
    marks = [value.encode() for value in SECRETS.values()]
    return [path for path in root.rglob("*") if path.is_file() and any(mark in path.read_bytes() for mark in marks)]


@contextmanager
def arguments_watched() -> Iterator[set[str]]:
    """The arguments of every process of this machine that hold a secret."""
    found: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue  # ended meanwhile
                found.update([text] * bool(leaked(text)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


@contextmanager
def mlflow_with_password(folder: Path) -> Iterator[str]:
    """A real MLflow server that asks for a password."""
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = trainer\n"
        f"admin_password = {SECRETS['MLFLOW_TRACKING_PASSWORD']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = {"app-name": "basic-auth", "port": port, "workers": "1"}
    options |= {
        "backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "artifacts-destination": str(folder / "artifacts"),
    }
    command = (sys.executable, "-m", "mlflow", "server", *(f"--{name}={value}" for name, value in options.items()))
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
    server = processes.Server(
        processes.Service(
            "MLflow", command, f"http://127.0.0.1:{port}/health", folder / "mlflow.log", environment=secrets
        )
    )
    try:
        while not server.ready():
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.process.pid, 9)
        server.process.wait()


@pytest.mark.long
def test_a_run_with_secrets_in_its_environment_leaks_none(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Everything is logged to a real server that asks for a password; then again with a wrong password."""
    work = tmp_path / "work"
    shutil.copytree(finished_run[0], work)
    (tmp_path / "server").mkdir()
    with mlflow_with_password(tmp_path / "server") as uri:
        environment = {**SMALL, **SECRETS, "MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "trainer"}
        with arguments_watched() as seen:
            for command in (["train"], ["register"]):
                done = salescast("--verbose", *command, "--workdir", str(work), **environment)
                assert done.returncode == 0, done.stderr
                assert leaked(done.stdout + done.stderr) == []
        assert not seen
        wrong = environment | {"MLFLOW_TRACKING_PASSWORD": SECRETS["PGPASSWORD"]}
        refused = salescast("register", "--workdir", str(work), **wrong)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused.stderr
        assert leaked(refused.stdout + refused.stderr) == []
        from mlflow import MlflowClient

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", "trainer")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS["MLFLOW_TRACKING_PASSWORD"])
            client = MlflowClient(tracking_uri=uri)
            runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert runs, "the run was logged there"
        assert leaked(json.dumps([run.to_dictionary() for run in runs], default=str)) == []
    assert files_with_secrets(work) == []
    assert files_with_secrets(tmp_path / "server" / "artifacts") == []
    assert files_with_secrets(tmp_path / "server") == [tmp_path / "server" / "auth.ini"], (
        "the only file that should have it"
    )


@pytest.mark.parametrize("command", [["train"], ["report"]])
def test_an_address_with_a_password_in_it_is_refused_without_being_shown(command: list[str], tmp_path: Path) -> None:
    secret = SECRETS["PGPASSWORD"]
    done = salescast(*command, cwd=tmp_path, MLFLOW_TRACKING_URI=f"https://me:{secret}@mlflow.example")
    assert done.returncode == 1
    assert secret not in done.stdout + done.stderr
    assert "must not contain a password; use MLFLOW_TRACKING_USERNAME and _PASSWORD instead" in done.stderr


def test_the_searches_find_a_secret(tmp_path: Path) -> None:
    """Otherwise the tests above could not fail."""
    secret = SECRETS["PGPASSWORD"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text(f"x{secret}x")
    assert files_with_secrets(tmp_path) == [tmp_path / "deep" / "file"]
    with arguments_watched() as seen:
        sleeper = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", secret])
        while not seen:
            time.sleep(0.05)
        sleeper.kill()
        sleeper.wait()
    assert seen
