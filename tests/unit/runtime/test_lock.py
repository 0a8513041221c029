"""One writer at a time in a workdir, however the writer ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from salescast.errors import UserError
from salescast.runtime.lock import locked

HOLD = (
    "import sys; from pathlib import Path; from salescast.runtime.lock import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"held\n"
    refusal = f"another salescast command is at work in {tmp_path}; wait for it"
    with pytest.raises(UserError, match=refusal), locked(tmp_path):
        pytest.fail("two writers")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal = r"cannot write to .*file/work: Not a directory; choose another --workdir"
    with pytest.raises(UserError, match=refusal), locked(tmp_path / "file" / "work"):
        pytest.fail("impossible")
