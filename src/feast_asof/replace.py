"""Folders and files that take the place of others: in one step where the system can, else so that nothing is lost."""

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2
ASIDE = ".old"  # ends the name of a folder that was moved aside


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot (some network ones)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def aside(target: Path) -> Path:
    """Where the earlier folder waits while another one takes its place in two steps."""
    return target.with_name(f".{target.name}{ASIDE}")


def heal(target: Path) -> None:
    """Put back a folder that a killed writer moved aside and did not replace."""
    old = aside(target)
    if old.is_dir() and not target.exists():
        with suppress(FileNotFoundError):  # somebody else put it back
            old.rename(target)


def put(new: Path, target: Path) -> None:
    """Let `new`, beside `target`, take its place. An earlier folder there is removed.

    On an error `target` is what it was; after a kill it is that or the new one, if need be by `heal`.
    """
    if not (new.is_dir() and target.is_dir()):
        new.replace(target)
    elif exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
    else:
        _put_in_two_steps(new, target)


def _put_in_two_steps(new: Path, target: Path) -> None:
    old = aside(target)
    while True:
        shutil.rmtree(old, ignore_errors=True)  # superseded by what is at `target`
        target.rename(old)
        try:
            new.rename(target)
        except OSError as error:
            heal(target)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else: somebody took the gap for a kill, and healed
                raise
        else:
            shutil.rmtree(old, ignore_errors=True)
            return


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
