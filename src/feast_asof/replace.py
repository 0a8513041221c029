"""Replace folders and files: in one step if the system can do that, otherwise in two without losing anything."""

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of Linux's renameat2
ASIDE = ".old"  # suffix of a folder that was moved aside


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False if the system or the (network) file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return (
        rename is not None and rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    )


def aside(target: Path) -> Path:
    """Where the earlier folder is kept during a replacement in two steps."""
    return target.with_name(f".{target.name}{ASIDE}")


def heal(target: Path) -> None:
    """Restore a folder that a killed writer moved aside and did not replace."""
    old = aside(target)
    if old.is_dir() and not target.exists():
        with suppress(FileNotFoundError):  # another process restored it
            old.rename(target)


def put(new: Path, target: Path) -> None:
    """Move `new`, in the same folder, to `target`. An earlier folder there is removed.

    After an error `target` is as before. After a kill it is the earlier or the new one; `heal` may be needed.
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
        shutil.rmtree(old, ignore_errors=True)  # older than `target`
        target.rename(old)
        try:
            new.rename(target)
        except OSError as error:
            heal(target)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process restored it in between
                raise
        else:
            shutil.rmtree(old, ignore_errors=True)
            return


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
