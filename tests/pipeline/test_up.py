"""`salescast up`: everything answers at the addresses it prints, and nothing is left of it after Ctrl-C."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from salescast.cli import up
from salescast.errors import UserError
from salescast.runtime.processes import Service, free_port
from salescast.workdir import Workdir

from .conftest import SMALL, salescast

Finished = tuple[Path, subprocess.CompletedProcess[str]]
OPTIONS = ("--port", "--grpc-port", "--mlflow-port", "--feast-port")


@contextmanager
def started(workdir: Path, ports: list[int]) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The command with its addresses, once it has printed them."""
    options = [text for pair in zip(OPTIONS, map(str, ports), strict=True) for text in pair]
    command = [sys.executable, "-m", "salescast.cli.app", "up", "--workdir", str(workdir), "--json", *options]
    process = subprocess.Popen(command, env=os.environ | SMALL, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, text
            text += line
        yield process, json.loads(text)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_every_address_answers_and_ctrl_c_stops_everything(finished_run: Finished) -> None:
    ports = [free_port() for _ in OPTIONS]
    with started(finished_run[0], ports) as (process, addresses):
        assert set(addresses) == {"forecasts", "MLflow", "Feast", "report"}
        for name in ("forecasts", "MLflow", "Feast"):
            page = httpx.get(addresses[name], headers={"accept": "text/html"}, follow_redirects=True)
            assert page.status_code == 200 and "<html" in page.text.lower(), name
        assert Path(addresses["report"].removeprefix("file://")).is_file()
        body = {"instances": [{"store_id": 1, "dept_id": 2}]}
        url = httpx.URL(addresses["forecasts"]).copy_with(path="/v1/models/sales-forecast:predict")
        assert len(httpx.post(url, json=body).json()["predictions"][0]["forecast"]) == 8
        runs = httpx.post(f"{addresses['MLflow']}/api/2.0/mlflow/registered-models/search", json={})
        assert runs.status_code in {200, 405}
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert [member for member in family if member.is_running()] == []
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("0.0.0.0", port))


@pytest.mark.slow
@pytest.mark.parametrize(("option", "name"), [("--port", "forecasts"), ("--mlflow-port", "MLflow")])
def test_a_taken_port_is_named(finished_run: Finished, option: str, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = salescast("up", "--workdir", str(finished_run[0]), option, port)
    assert done.returncode == 1
    assert done.stderr == f"error: {name} port {port} cannot be used: Address already in use; choose another one\n"


def test_a_workdir_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run in .*models is missing; run `salescast run` first"):
        up.services(Workdir(tmp_path), up.Ports(1, 2, 3, 4))


def test_when_a_service_ends_the_others_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one starts a process of its own, as servers do, and ignores SIGTERM."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    spawns = f"import pathlib, subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {stubborn!r}])"
    first = f"{spawns}; pathlib.Path('pid').write_text(str(child.pid)); {stubborn}"
    second = "import pathlib, time\nwhile not pathlib.Path('pid').exists(): time.sleep(0.1)\nexit('no such table')"
    pages = [
        up.Page(
            "", Service(name, (sys.executable, "-c", code), "http://127.0.0.1:9", tmp_path / f"{name}.log", tmp_path)
        )
        for name, code in (("first", first), ("second", second))
    ]
    monkeypatch.setattr(up, "services", lambda *_: pages)
    monkeypatch.setattr(up, "STOP_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"second ended with code 1: no such table; see .*second\.log"):
        up.run(Workdir(tmp_path), up.Ports(1, 2, 3, 4), lambda _: pytest.fail("nothing was ready"))
    child = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
