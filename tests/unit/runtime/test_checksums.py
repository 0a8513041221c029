"""Lists of checksums: a set of files is complete and unchanged, or refused. Each file is read once in a process."""

import hashlib
import os
from pathlib import Path

import pytest

from salescast.runtime import checksums


def test_a_listed_set_is_complete_or_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(path.name.encode())
    listing = tmp_path / "list.json"
    assert checksums.verified(paths, listing) is None
    checksums.write(paths, listing)
    digests = checksums.verified(paths, listing)
    assert digests and set(digests) == {"a", "b"}
    paths[0].write_bytes(b"A")
    assert checksums.verified(paths, listing) is None
    assert checksums.verified(paths[1:], listing) == {"b": digests["b"]}
    checksums.write(paths[:1], listing)
    assert checksums.verified(paths, listing) is not None
    paths[1].unlink()
    assert checksums.verified(paths, listing) is None
    for content in ("", "[]", "{"):
        listing.write_text(content)
        assert checksums.verified(paths[:1], listing) is None


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed. Every file counts as old enough to be remembered."""
    monkeypatch.setattr(checksums, "TICK", -1e9)
    hashed: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    return hashed


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "folder" / "a"
    path.parent.mkdir()
    path.write_bytes(b"content")
    digests = {checksums.sha256(path) for _ in range(3)}
    path.parent.rename(moved := tmp_path / "moved")
    digests.add(checksums.sha256(moved / "a"))
    assert digests == {hashlib.sha256(b"content").hexdigest()}
    assert len(reads) == 1


@pytest.mark.parametrize("replaced", [False, True], ids=["in place", "replaced"])
def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, reads: list[str], replaced: bool) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    os.utime(path, (0, 0))
    checksums.sha256(path)
    changed = tmp_path / "b" if replaced else path
    earlier = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == earlier or changed.stat().st_ctime_ns == earlier:  # for a tick of the clock
        changed.write_bytes(b"CONTENT")
        os.utime(changed, (0, 0))
        changed.replace(path) if replaced else None
        changed = path
    assert checksums.sha256(path) == hashlib.sha256(b"CONTENT").hexdigest()
    assert len(reads) == 2


def test_a_file_changed_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next change may fall into the same tick of the file system's clock and leave no trace."""
    path = tmp_path / "a"
    monkeypatch.setattr(checksums, "_state", lambda _: (1, 1, 1, 2**62, 2**62))
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert checksums.sha256(path) == hashlib.sha256(content).hexdigest()
