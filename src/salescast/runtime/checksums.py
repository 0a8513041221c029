"""SHA-256 checksums of files, and JSON lists of them that tell whether a set of files is complete and unchanged."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from salescast.runtime.atomic_files import replace_file

FEATURES: Final = "features.json"  # name of the list for the feature files, in their folder
CODE: Final = "code"  # key in a list: the digest of the code that made the files
# Two writes within one tick of the file system's clock leave the same times. Remember no file that was just changed.
TICK: Final = 0.1  # seconds

_State = tuple[int, int, int, int, int]
_known: dict[_State, str] = {}


def sha256(path: Path) -> str:
    """The digest of a file's bytes. Raises OSError.

    A file is read once in a process, and again after any change: device, inode, size and times identify its content.
    """
    before = _state(path)
    if before in _known:
        return _known[before]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    changed_at = max(before[3:]) / 1e9
    if _state(path) == before and time.time() - changed_at > TICK:
        _known[before] = digest
    return digest


def _state(path: Path) -> _State:
    stat: os.stat_result = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def write(paths: Sequence[Path], listing: Path, code: str | None = None) -> None:
    """Add the digests of files, and of the `code` that made them, to the list `listing`; keep its other entries.

    Call it last: the list marks the files as complete.
    """
    entries = {path.name: sha256(path) for path in paths} | ({CODE: code} if code else {})
    with replace_file(listing) as temporary:
        temporary.write_text(json.dumps(_read(listing) | entries, indent=1))


def verified(paths: Sequence[Path], listing: Path) -> dict[str, str] | None:
    """The files' digests by name; None when a file is missing or differs from its entry in `listing`."""
    digests = {path.name: sha256(path) for path in paths if path.is_file()}
    return digests if len(digests) == len(paths) and digests.items() <= _read(listing).items() else None


def code_of(listing: Path) -> str | None:
    """The digest of the code that made the files of `listing`; None when the list has none."""
    return _read(listing).get(CODE)


def _read(listing: Path) -> dict[str, str]:
    """The entries; {} when there is no readable list, so that no file passes."""
    try:
        entries = json.loads(listing.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
