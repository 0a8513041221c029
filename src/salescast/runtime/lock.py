"""The lock of a workdir: one writer at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salescast.errors import UserError
from salescast.runtime.atomic_files import sweep


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the workdir's lock, and clean up after writers that were killed.

    The kernel releases the lock when the process ends, in whatever way.
    Raises UserError when another process holds it, or the folder cannot be created or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror}; choose another --workdir") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another salescast command is at work in {root}; wait for it or choose another --workdir"
            ) from None
        sweep(root)
        yield
    finally:
        os.close(handle)
