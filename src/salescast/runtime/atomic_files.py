"""Files and folders that appear whole or not at all."""

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from feast_asof import replace

PARTIAL: Final = ".partial"  # ends the name of what is being written
STALE: Final = 86_400.0  # seconds after which nobody writes it any more


def sweep(root: Path) -> None:
    """Clear up after killed writers under `root`: put back what they moved aside, remove what they left unfinished.

    The latter when it is so old that nobody can still be writing it.
    """
    for path in root.rglob(f".*{replace.ASIDE}"):
        target = path.with_name(path.name.removesuffix(replace.ASIDE)[1:])
        replace.heal(target)
    for path in root.rglob(f".*{PARTIAL}"):
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime < STALE:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _beside(path: Path) -> Path:
    """A new name for what will take the place of `path`; made without it, it gets the rights that the umask leaves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; at a clean exit it is synced and takes the place of `path`.

    On an error nothing of the attempt remains and an earlier `path` is untouched.
    """
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        replace.sync(temporary)
        replace.put(temporary, path)
        replace.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; at a clean exit it takes the place of `path`, in one step.

    Where the file system cannot swap folders, the earlier one is moved aside first: a kill between the two renames
    then leaves no `path`, until the next writer or `sweep` puts it back.
    """
    temporary = _beside(path)
    replace.heal(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            replace.sync(file)
        replace.put(temporary, path)
        replace.sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
