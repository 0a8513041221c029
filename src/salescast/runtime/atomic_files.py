"""Atomic files and folders: they appear complete or not at all."""

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from feast_asof import replace

PARTIAL: Final = ".partial"  # suffix of files and folders that are being written
STALE: Final = 86_400.0  # seconds after which they count as abandoned


def sweep(root: Path) -> None:
    """Clean up after killed writers under `root`.

    Folders that they moved aside are put back; unfinished files and folders are removed once they are STALE.
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


def _temporary_name(path: Path) -> Path:
    """A temporary name beside `path`. Unlike `tempfile`, the caller creates it, with the permissions of the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; at a clean exit the file is synced and replaces `path`.

    After an error the temporary file is removed and `path` is unchanged.
    """
    temporary = _temporary_name(path)
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
    """Yield a temporary folder; at a clean exit it is synced and replaces `path` in one step.

    On a file system that cannot swap folders, the earlier one is moved aside first. A kill between the two renames
    then leaves no `path` until the next writer or `sweep` puts the earlier folder back.
    """
    temporary = _temporary_name(path)
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
