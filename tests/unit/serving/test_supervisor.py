"""The supervisor starts a process again if it had become ready, and gives up if it had not."""

import signal
from pathlib import Path

import psutil
import pytest

from salescast.errors import UserError
from salescast.runtime import processes
from salescast.serving import supervisor

READY = "import os, pathlib, sys; place = pathlib.Path(sys.argv[-1]); (place / f'{os.getpid()}.ready').touch(); "


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "child"


@pytest.mark.fault("a server process ends during its start, however slow", "the command ends with its exit code")
def test_a_process_that_ends_before_it_is_ready_is_not_started_again(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EARLY of the former rule, which went by seconds since the start, makes every start a slow one."""
    monkeypatch.setattr(supervisor, "EARLY", 0.0, raising=False)
    (tmp_path / "child.py").write_text("import os; open('starts', 'a').write('x'); os._exit(3)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="ended with code 3 before it was ready"):
        supervisor.supervise([[module]], tmp_path)
    assert (tmp_path / "starts").read_text() == "x"


def test_one_that_was_ready_is_started_again_and_the_others_end_with_the_supervisor(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start becomes ready and fails; the second fails before that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.py").write_text(
        f"{READY}print(os.getpid(), file=open('other', 'w'), flush=True)\nimport signal\nsignal.pause()"
    )
    (tmp_path / "child.py").write_text(
        "import time, pathlib\nother = pathlib.Path('other')\n"
        "while not (other.exists() and other.read_text()): time.sleep(0.05)\n"
        f"if not pathlib.Path('again').exists():\n    pathlib.Path('again').touch(); {READY}os._exit(5)\n"
        "exit(6)"
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="ended with code 6 before it was ready"):
        supervisor.supervise([["other"], [module]], tmp_path)
    assert not psutil.pid_exists(int((tmp_path / "other").read_text()))
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.glob("*.ready")) == [processes.ready_file(tmp_path, int((tmp_path / "other").read_text()))]
