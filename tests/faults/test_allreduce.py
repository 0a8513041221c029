"""Gradients averaged in shared memory, by real processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


def run(tmp_path: Path, world: int, what: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    program = [str(Path(__file__).with_name("allreduce_ranks.py")), str(tmp_path), what]
    done = subprocess.run([*command, *program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_gets_the_same_bits_and_they_are_the_mean(tmp_path: Path, world: int) -> None:
    run(tmp_path, world, "works")
    given, averaged = zip(
        *(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)), strict=True
    )
    for vectors, means in zip(zip(*given, strict=True), zip(*averaged, strict=True), strict=True):
        assert not torch.equal(vectors[0], vectors[1])
        assert all(torch.equal(mean, means[0]) for mean in means)
        assert (means[0] - torch.stack(vectors).double().mean(dim=0)).abs().max() < 1e-6


def test_without_shared_memory_every_rank_falls_back_to_the_network(tmp_path: Path) -> None:
    log = run(tmp_path, 2, "refused")
    assert log.count("no shared memory for gradients; using the loopback network, which is slower") == 1


def test_the_end_of_a_rank_is_noticed_at_once(tmp_path: Path) -> None:
    run(tmp_path, 3, "dies")
    assert (tmp_path / "0.txt").read_text() == "another rank of this training has ended"
    assert (tmp_path / "1.txt").exists()
