"""`make rehearse` as a test, if REHEARSE is set: it starts two dozen services and needs an idle machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "manifests"))
from cluster import kubectl

NEEDED = ("unshare", "ip", "setpriv", "nsenter")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_manifests_run_from_the_first_command_to_a_forecast() -> None:
    if "REHEARSE" not in os.environ:
        pytest.skip("the rehearsal runs with REHEARSE=1, or by `make rehearse`")
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if os.geteuid() != 0 or missing or kubectl() or not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        pytest.skip(
            f"the rehearsal needs root, a PostgreSQL server, kubectl, {', '.join(NEEDED)}; {kubectl()} {missing}"
        )
    command = [sys.executable, str(Path(__file__).with_name("rehearse.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
