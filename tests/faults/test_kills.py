"""SIGKILL at random moments of each command, and two commands at once."""

import random
import subprocess
import time
from collections.abc import Callable

import pytest

from .conftest import COMMANDS, LONG, ROUNDS, Chain, kill, run, start

Happened = Callable[[str], None]
QUICK = ("features",)
TWICE = ["data import", "materialize", "train", "forecast", "register"]


@pytest.mark.fault(
    "SIGKILL of a command and its processes at a random moment", "earlier or new results, whole; the next run finishes"
)
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in COMMANDS])
def test_killed(name: str, chain: Chain, happened: Happened, draw: random.Random) -> None:
    chain.through(name)
    for _ in range(ROUNDS):
        chain.restore(chain.before(name))
        process = start(chain.arguments(name))
        time.sleep(draw.uniform(0.2, 0.95) * chain.seconds[name])
        late = process.poll() is not None
        kill(process)
        chain.intact(name)
        again = run(chain.arguments(name))
        assert again.returncode == 0, again.stderr
        chain.finished(name)
        happened("finished before the kill" if late else "killed, whole, finished by the next run")


@pytest.mark.long
@pytest.mark.fault(
    "SIGKILL of `salescast run` at a random moment", "earlier or new results, whole; the next run finishes"
)
def test_a_killed_run(chain: Chain, happened: Happened, draw: random.Random) -> None:
    """From nothing, so that MLflow's database, the registry and the online store are made while it is killed."""
    chain.restore(chain.root / "snapshots" / "nothing")
    arguments = ["run", "--sales", f"{chain.root}/next.csv", "--workdir", str(chain.work), "--json"]
    began = time.monotonic()
    assert run(arguments).returncode == 0
    seconds, wanted = time.monotonic() - began, chain.results()
    for _ in range(ROUNDS):
        chain.restore(chain.root / "snapshots" / "nothing")
        for _ in range(2):  # the second one goes on with what the first one left
            process = start(arguments)
            time.sleep(draw.uniform(0.1, 1.0) * seconds)
            kill(process)
        done = run(arguments)
        assert done.returncode == 0, done.stderr
        assert chain.results() == wanted
        happened("killed twice, finished by the next run")


@pytest.mark.fault("two commands in one workdir at once", "one does its work, the other is refused; nothing is mixed")
@pytest.mark.parametrize("name", ["features", *(TWICE * LONG)])
def test_two_at_once(name: str, chain: Chain, happened: Happened) -> None:
    chain.through(name)
    chain.restore(chain.before(name))
    both = [start(chain.arguments(name)) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes[0] == 0, said
    assert not any("Traceback" in text for text in said), said
    if codes[1]:
        refusal = said[0] if both[0].returncode else said[1]
        assert "another salescast command is at work" in refusal or "cannot write the dataset" in refusal, refusal
    chain.finished(name)
    happened("one refused" if codes[1] else "one after the other")


@pytest.mark.long
@pytest.mark.fault("the clock jumps by a day, twice a second", "the right result")
@pytest.mark.parametrize("name", ["features", "materialize", "retrieve", "train", "forecast"])
def test_the_clock_jumps(name: str, chain: Chain, happened: Happened, tmp_path_factory: pytest.TempPathFactory) -> None:
    """time.time of every process, also of those that the command starts, goes a day back and forth."""
    chain.through(name)
    folder = tmp_path_factory.mktemp("clock")
    (folder / "sitecustomize.py").write_text(
        "import time\n_real = time.time\n"
        "time.time = lambda: _real() + 86400 * (-1) ** int(2 * _real())\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    chain.restore(chain.before(name))
    done = run(chain.arguments(name), PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    chain.finished(name)
    happened("right result")


@pytest.mark.long
@pytest.mark.fault("an interrupt (SIGINT) at a random moment", "one line, exit code 130, the next run finishes")
@pytest.mark.parametrize("name", ["features", "train"])
def test_interrupted(name: str, chain: Chain, happened: Happened, draw: random.Random) -> None:
    import signal

    chain.through(name)
    chain.restore(chain.before(name))
    process: subprocess.Popen[str] = start(chain.arguments(name))
    time.sleep(draw.uniform(0.4, 0.8) * chain.seconds[name])
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    if process.returncode:
        assert process.returncode == 130, said
        assert "interrupted; finished work is kept" in said and "Traceback" not in said, said
    chain.intact(name)
    assert run(chain.arguments(name)).returncode == 0
    chain.finished(name)
    happened("one line" if process.returncode else "finished before it")
