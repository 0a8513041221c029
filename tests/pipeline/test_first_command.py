"""`salescast run` succeeds even if its last step, the server check, cannot be done; the server logs its steps."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from salescast.cli import output
from salescast.pipeline.run import RunSummary
from salescast.workdir import Workdir

from .conftest import SMALL

Finished = tuple[Path, subprocess.CompletedProcess[str]]
# Runs in every Python process before anything else.
BEFORE = """
import os, signal, sys
if "serve" in sys.orig_argv:
    {fault}
"""
# The check is given forecasts that are a dollar higher than those on disk.
OTHER = (
    "import types, polars as pl; read = smoke_test.parquet.read; smoke_test.parquet = types.SimpleNamespace("
    "read=lambda *given: read(*given).with_columns(pl.col('forecast') + 1))"
)


@dataclass(frozen=True)
class Run:
    """The result of a run that started without a summary and a report."""

    work: Workdir
    done: subprocess.CompletedProcess[str]

    @property
    def summary(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.work.root / "run.json").read_text())
        return found


@pytest.fixture
def run_again(finished_run: Finished, sales_csv: Path, tmp_path: Path) -> Callable[[str, str], Run]:
    """Runs the command in a copy of the finished workdir, with a line for the server and one for the command itself."""

    def run(fault: str, setting: str) -> Run:
        work = Workdir(tmp_path / "work")
        shutil.copytree(finished_run[0], work.root)
        for path in (work.root / "run.json", work.report, work.root / "server.log"):
            path.unlink()
        (tmp_path / "sitecustomize.py").write_text(BEFORE.format(fault=fault))
        code = (
            "import sys; from salescast.cli import app; from salescast.runtime import processes; "
            f"from salescast.serving import smoke_test; {setting}; app.main()"
        )
        arguments = ["run", "--sales", str(sales_csv), "--workdir", str(work.root), "--json"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SALESCAST_", "MLFLOW_"))}
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=clean | SMALL | {"PYTHONPATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return Run(work, done)

    return run


@pytest.mark.slow
@pytest.mark.fault(
    "the forecast server of `salescast run` hangs or ends at its start",
    "summary and report are there, exit code 0, a warning with the log and the next command",
)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSTOP)", "did not become ready: no sign of life for 1 s"),
        pytest.param(
            "print('no space left', flush=True); os._exit(3)",
            "ended with code 3: no space left",
            marks=pytest.mark.long,
        ),
    ],
    ids=["hangs", "ends"],
)
def test_a_server_that_never_becomes_ready_is_a_warning(
    fault: str, reason: str, run_again: Callable[[str, str], Run]
) -> None:
    run = run_again(fault, "processes.QUIET = processes.STOP = 1.0")
    assert run.done.returncode == 0, run.done.stderr
    assert run.work.report.stat().st_size > 100_000
    log = run.work.root / "server.log"
    assert log.read_text().startswith("starting the forecast server\n")
    (line,) = [line for line in run.done.stderr.splitlines() if line.startswith("warning: ")]
    assert f"the forecast server {reason}" in line
    assert str(log) in line and f"salescast serve --workdir {run.work.root}" in line
    assert run.summary == json.loads(run.done.stdout)
    assert run.summary["answers"] == [] and run.summary["version"] == 1 and f"warning: {run.summary['warning']}" == line


@pytest.mark.long
@pytest.mark.fault(
    "the forecast server of `salescast run` starts slowly", "it is waited for, which is shown; exit code 0"
)
def test_a_slow_server_is_waited_for(run_again: Callable[[str, str], Run]) -> None:
    run = run_again("import time; time.sleep(70)", "pass")
    assert run.done.returncode == 0, run.done.stderr
    shown = r"^waiting for the forecast server, \d+ s: starting the forecast server \.\.\.$"
    assert re.search(shown, run.done.stderr, re.MULTILINE)
    assert run.summary["answers"] and run.summary["warning"] is None


@pytest.mark.slow
@pytest.mark.fault(
    "the forecast server answers other than the offline forecast", "one clear line; summary and report are there"
)
def test_answers_that_differ_are_an_error_with_summary_and_report(run_again: Callable[[str, str], Run]) -> None:
    run = run_again("pass", OTHER)
    assert run.done.returncode == 1
    assert "is not the offline forecast; materialize again" in run.done.stderr
    assert "Traceback" not in run.done.stderr and run.work.report.stat().st_size > 100_000
    assert run.summary["scores"] and run.summary["answers"] == []


@pytest.mark.slow
def test_a_summary_without_answers_is_shown(finished_run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(finished_run[1].stdout) | {"answers": [], "warning": "the forecast server is [away]"}
    output.summary(RunSummary(**values), Workdir(finished_run[0]), as_json=False)
    said = capsys.readouterr()
    assert "champion" in said.out and "answer" not in said.out
    assert said.err == "warning: the forecast server is [away]\n"


@pytest.mark.slow
def test_the_servers_log_has_its_steps(finished_run: Finished) -> None:
    lines = (finished_run[0] / "server.log").read_text().splitlines()
    steps = ("starting the forecast server", "loading libraries", "loading the model in", "listening on port")
    assert [step for line in lines for step in steps if step in line] == list(steps)


def test_a_server_says_what_it_does_before_it_loads_libraries(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    code = (
        "import sys; from salescast.cli import app; from salescast.serving import supervisor;"
        "heavy = {'kserve', 'torch', 'feast', 'mlflow', 'httpx'};"
        "supervisor.announce = lambda text: sys.exit(f'{text}: {sorted(heavy & set(sys.modules))}'); app.main()"
    )
    options = ["--workdir", str(tmp_path), "--model-dir", str(tmp_path / "models"), "--port", "1", "--grpc-port", "1"]
    done = subprocess.run([sys.executable, "-c", code, "serve", *options], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1:] == ["loading libraries: []"], done.stderr
