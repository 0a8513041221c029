"""Training as real processes under torchrun, and what may happen to them."""

import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch

from salescast import schema
from salescast.features.training_set import write_training_set
from salescast.model import bundle
from salescast.training.plan import Plan

PlanOf = Callable[..., Plan]
LONG = {"epochs": 12, "patience": 12, "batch_size": 16}  # 24 epochs: long enough to be hit in the middle


NODE = """
import os, sys
from pathlib import Path
from salescast.training import main
from salescast.training.plan import Plan

sys.exit(main.run_plan(Plan.read(Path(sys.argv[1])) if os.environ["RANK"] == "0" else None))
"""


def start(plan: Plan, *, processes: int = 2, restarts: int = 0, program: str | None = None) -> "subprocess.Popen[str]":
    """torchrun in a process group of its own."""
    path = plan.write(plan.checkpoints.parent / "plan.json")
    target = [program] if program else ["-m", "salescast.training.main"]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
    ]
    return subprocess.Popen(
        [sys.executable, *torchrun, *target, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def ranks(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    found = [p for p in psutil.Process(process.pid).children() if "salescast.training.main" in " ".join(p.cmdline())]
    assert len(found) == 2
    return found


def output(process: "subprocess.Popen[str]", code: int = 0) -> str:
    text, _ = process.communicate()
    assert process.returncode == code, text
    return text


def digest(plan: Plan) -> str:
    return bundle.load(plan.fits[-1].out).digest


def wait_for_checkpoint(process: "subprocess.Popen[str]", plan: Plan, number: int) -> None:
    """Return when checkpoint `number` or a later one was written and the training still runs."""
    folder = plan.checkpoints / plan.fits[-1].name
    while not any(int(path.stem[-5:]) >= number for path in folder.glob("checkpoint-*.pt")):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.01)
    assert process.poll() is None


@pytest.mark.slow
@pytest.mark.fault("SIGKILL of one rank, or of the whole training", "ends bitwise where an undisturbed training does")
def test_kills_end_bitwise_where_an_undisturbed_run_ends(plan_of: PlanOf, tmp_path: Path) -> None:
    quiet, killed, restarted = (plan_of(tmp_path / name, **LONG) for name in ("quiet", "rank", "job"))
    output(start(quiet))

    process = start(killed, restarts=1)
    wait_for_checkpoint(process, killed, 3)
    ranks(process)[1].kill()
    assert "continues after epoch" in output(process)
    assert digest(killed) == digest(quiet)

    process = start(restarted)
    wait_for_checkpoint(process, restarted, 14)  # in the full phase
    for killed_process in (*ranks(process), process):
        killed_process.kill()
    process.wait()
    assert not (restarted.fits[-1].out).exists()
    assert re.search(r"continues after epoch \d+ of phase full", output(start(restarted)))
    assert digest(restarted) == digest(quiet)
    assert not list((restarted.checkpoints / "final").glob("*.pt"))


@pytest.mark.slow
def test_two_nodes_find_each_other_by_a_trainjobs_variables(plan_of: PlanOf, tmp_path: Path) -> None:
    """Two agents with the PET_* variables that Kubeflow Trainer sets, and a plan that only the first node has read."""
    plan, together = plan_of(tmp_path / "nodes"), plan_of(tmp_path / "together")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = tmp_path / "node.py"
    script.write_text(NODE)
    path = plan.write(tmp_path / "plan.json")
    nodes = []
    for rank in ("0", "1"):
        variables = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": rank, "OMP_NUM_THREADS": "1"}
        address = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
        command = [sys.executable, "-m", "torch.distributed.run", str(script), str(path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        nodes.append(subprocess.Popen(command, text=True, env=os.environ | variables | address, **pipes))
    for node in nodes:
        output(node)
    output(start(together))
    assert digest(plan) == digest(together)


@pytest.mark.slow
@pytest.mark.fault("a batch of one rank is not a number", "that step is skipped on every rank")
def test_a_nan_in_one_ranks_batch_costs_that_step_on_every_rank(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "nan", epochs=3)
    text = output(start(plan, program=str(Path(__file__).with_name("nan_on_rank_1.py"))))
    assert "1 of 9 steps had no finite gradient and were skipped" in text
    weights = bundle.load(plan.fits[-1].out).network.state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.slow
def test_a_rank_without_series_keeps_step_and_changes_nothing(
    plan_of: PlanOf, training_frame: pl.DataFrame, tmp_path: Path
) -> None:
    """One series on two ranks: the second has none, and the result is that of one process."""
    single = training_frame.filter((pl.col("store_id") == 1) & (pl.col("dept_id") == 1))
    (tmp_path / "one").mkdir()
    write_training_set(single.to_arrow(), tmp_path / "one" / "part-00000.parquet")
    two, one = (plan_of(tmp_path / name, training=tmp_path / "one", dropout=0.0) for name in ("two", "single"))
    output(start(two))
    output(start(one, processes=1))
    upcoming = single.filter(pl.col(schema.LABEL).is_null())
    forecasts = [bundle.load(plan.fits[-1].out).predict(upcoming).quantiles for plan in (two, one)]
    assert abs(forecasts[0] / forecasts[1] - 1).max() < 1e-4


@pytest.mark.fault("the disk is full during a training", "only checkpoints are lost, or one clear line")
def test_a_full_disk_costs_checkpoints_but_not_the_training(plan_of: PlanOf, tmp_path: Path) -> None:
    """Files may not grow beyond what a bundle needs: checkpoints, which are larger, fail as on a full disk."""
    plan = plan_of(tmp_path, epochs=2)
    quiet = plan_of(tmp_path / "quiet", epochs=2)
    text, code = limited(plan, 40_000)
    assert code == 0, text
    assert "was not written" in text
    assert "training continues" in text
    assert limited(quiet, -1)[1] == 0
    assert digest(plan) == digest(quiet)

    text, code = limited(plan_of(tmp_path, epochs=3), 4_000)  # other settings: the bundle would be replaced
    assert code == 1
    assert f"cannot write the bundle {plan.fits[-1].out}" in text
    assert digest(plan) == digest(quiet), "the earlier bundle is untouched"


def limited(plan: Plan, size: int) -> tuple[str, int]:
    """Train in one process whose files may have `size` bytes (-1: any)."""
    path = plan.write(plan.checkpoints.parent / "plan.json")
    done = subprocess.run(
        [sys.executable, "-m", "salescast.training.main", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1)),
    )  # fmt: skip
    return done.stdout, done.returncode
