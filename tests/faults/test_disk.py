"""A disk that is full or cannot be written: a small tmpfs, mounted by root; other users skip this."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import COMMANDS, LONG, ROUNDS, Chain, clear_error, run

Happened = Callable[[str], None]
OTHERS = {"backtest", "register", "monitor"}  # these write what the others do
WRITERS = [name for name in COMMANDS if name not in OTHERS]
WORDS = ("space", "full", "cannot write", "damaged", "not take")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def disk(chain: Chain) -> Iterator[Path]:
    """The chain's workdir on a file system of its own."""
    shutil.rmtree(chain.work, ignore_errors=True)
    chain.work.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", chain.work], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    yield chain.work
    subprocess.run(["umount", "--lazy", chain.work], check=True)


def fill(chain: Chain, name: str) -> None:
    for path in (chain.before(name) / "work").iterdir():
        if path.is_dir():
            shutil.copytree(path, chain.work / path.name)
        else:
            shutil.copy2(path, chain.work / path.name)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def arguments(chain: Chain, name: str) -> list[str]:
    return [part.replace(f"{chain.root}/generated", f"{chain.work}/generated") for part in chain.arguments(name)]


def used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.mark.fault("the disk is full", "one clear line; earlier results whole; the next run with space finishes")
@pytest.mark.parametrize("name", ["features", *([n for n in WRITERS if n != "features"] * LONG)])
def test_full(name: str, chain: Chain, disk: Path, happened: Happened, draw: random.Random) -> None:
    chain.through(name)
    for _ in range(max(1, ROUNDS // 3)):
        for entry in disk.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        fill(chain, name)
        free = draw.choice((0, 4096, 16384, 65536))
        remount(disk, f"size={used(disk) + free}")
        done = run(arguments(chain, name))
        if done.returncode:
            assert any(
                word in clear_error(done) for word in ("space", "full", "cannot write", "damaged", "not take")
            ), done.stderr
            chain_intact(chain, name)
        happened("clear error" if done.returncode else "it was enough")
        remount(disk, "size=64m")
        again = run(arguments(chain, name))
        assert again.returncode == 0, again.stderr


@pytest.mark.fault("the workdir is read-only", "one clear line; nothing is changed")
@pytest.mark.parametrize("name", ["features", *([n for n in WRITERS if n != "features"] * LONG)])
def test_read_only(name: str, chain: Chain, disk: Path, happened: Happened) -> None:
    chain.through(name)
    fill(chain, name)
    remount(disk, "ro")
    try:
        done = run(arguments(chain, name))
    finally:
        remount(disk, "rw")
    clear_error(done)
    chain_intact(chain, name)
    happened("clear error")


def chain_intact(chain: Chain, name: str) -> None:
    """Nothing of the workdir is lost or half-written; `generated` lies within it here."""
    now = {key: value for key, value in chain.results().items() if "generated" not in key}
    old, new = chain.results(chain.before(name)), chain.results(chain.after(name))
    for key, value in old.items():
        if "generated" not in key:
            assert now.get(key) in (value, new.get(key)), key
