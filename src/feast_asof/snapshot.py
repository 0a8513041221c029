"""All reads of one retrieval see one state of every file, even if files are replaced meanwhile."""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import tenacity

from feast_asof.errors import SourceChangedError

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_OPEN_FILES = 256  # kept open; a process may usually open 1,024
ATTEMPTS = 6  # about three seconds with the pauses between them


@dataclass(frozen=True)
class Identity:
    """Identifies the state of a file, on every machine that mounts it."""

    size: int
    modified: int  # ns
    changed: int  # ns; a replacement may keep the modification time, but not this one. 0: not known

    @classmethod
    def of(cls, stat: os.stat_result) -> Self:
        """From the operating system's status."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def same_content(self, other: "Identity") -> bool:
        """Whether the content is unchanged; the file may have been renamed or unlinked."""
        return (self.size, self.modified) == (other.size, other.modified)


class Files(pafs.FileSystemHandler):  # type: ignore[misc]  # PyArrow has no types
    """A read-only file system that shows each file in the state of its first use.

    Local files stay open, so that a replaced one can still be read. Beyond MAX_OPEN_FILES, and in other processes,
    the identity is compared whenever a file is opened. Remote files are compared after each read.
    """

    def __init__(self, inner: pafs.FileSystem, known: dict[str, Identity] | None = None):
        self.inner = inner
        self.known = dict(known or {})
        self._held: dict[str, pa.OSFile] = {}
        self._lock = threading.Lock()
        self._local = isinstance(inner, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open files are not pickled."""
        return Files, (self.inner, self.known)

    def pin(self, paths: Iterable[str]) -> None:
        """Record the state of files that were just listed.

        Raises SourceChangedError if one was replaced or deleted while the others were opened: the states must be
        simultaneous.
        """
        paths = list(paths)
        if self._local:
            for path in paths:
                self.open_input_file(path)
        else:
            self.known |= self._now(paths)
        self.check_unchanged(paths)

    def check_unchanged(self, paths: Iterable[str]) -> None:
        """Raise SourceChangedError if the recorded state of one of these files is no longer the present one."""
        for path, identity in self._now(list(paths)).items():
            if identity != self.known[path]:
                raise SourceChangedError(_message(path))

    def check(self, paths: Iterable[str]) -> None:
        """Raise SourceChangedError if these files may have been read in another than the recorded state."""
        for path in dict.fromkeys(paths):
            held = self._held.get(path)
            try:
                same = (
                    self._now([path])[path] == self.known[path]
                    if held is None
                    else Identity.of(os.fstat(held.fileno())).same_content(self.known[path])
                )
            except OSError as error:  # deleted; on a network file system this concerns open files, too
                raise SourceChangedError(_message(path)) from error
            if not same:
                raise SourceChangedError(_message(path))

    def _now(self, paths: list[str]) -> dict[str, Identity]:
        """The present states. Raises SourceChangedError if a file was deleted."""
        if self._local:
            return {path: _local_identity(path) for path in paths}
        return {path: _identity(info) for path, info in zip(paths, self.inner.get_file_info(paths), strict=True)}

    def open_input_file(self, path: str) -> pa.NativeFile:
        """The file in its recorded state. Raises SourceChangedError."""
        if path in self._held:
            return self._held[path]
        try:
            file = pa.OSFile(path) if self._local else self.inner.open_input_file(path)
        except FileNotFoundError as error:  # only files that were listed are opened
            raise SourceChangedError(_message(path)) from error
        if not self._local:
            return file
        identity = Identity.of(os.fstat(file.fileno()))
        with self._lock:
            if self.known.setdefault(path, identity) != identity:
                raise SourceChangedError(_message(path))
            return self._held.setdefault(path, file) if len(self._held) < MAX_OPEN_FILES else file

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """As `open_input_file`."""
        return self.open_input_file(path)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """Passed on to the file system."""
        return list(self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """Passed on to the file system."""
        return list(self.inner.get_file_info(selector))

    def normalize_path(self, path: str) -> str:
        """Passed on to the file system."""
        return str(self.inner.normalize_path(path))

    def get_type_name(self) -> str:
        """The type of the file system."""
        return str(self.inner.type_name)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("a snapshot is read-only")

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _refuse
    move = open_append_stream = open_output_stream = _refuse


def _local_identity(path: str) -> Identity:
    try:
        return Identity.of(Path(path).stat())
    except OSError as error:
        raise SourceChangedError(_message(path)) from error


def _identity(info: pafs.FileInfo) -> Identity:
    if info.type == pafs.FileType.NotFound:
        raise SourceChangedError(_message(info.path))
    return Identity(info.size or 0, info.mtime_ns or 0, 0)


def _message(path: str) -> str:
    return (
        f"{path} was replaced or written while it was read, in each of {ATTEMPTS} attempts: wait until its writer has "
        "finished; writers should write to another file and rename it"
    )


class Snapshot:
    """The files of one retrieval, which several views may share."""

    def __init__(self) -> None:
        self._files: list[Files] = []
        self.opened: dict[tuple[int, str], ds.Dataset] = {}  # (file system, path) -> its source

    def files(self, inner: pafs.FileSystem) -> Files:
        """The pinned files of a file system."""
        for known in self._files:
            if known.inner == inner:
                return known
        self._files.append(Files(inner))
        return self._files[-1]

    def check_unchanged(self) -> None:
        """Raise SourceChangedError if a file has changed since it was opened.

        Call it when all sources are open: their states are then simultaneous, and later changes do not matter.
        """
        for files in self._files:
            files.check_unchanged(files.known)


def consistent(attempt: Callable[[Snapshot], T]) -> T:
    """The result of `attempt` over one state of all files; repeated if a file changed meanwhile.

    Raises SourceChangedError if files changed in each of ATTEMPTS attempts.
    """
    trials = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(SourceChangedError),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(0.1),
        before_sleep=lambda _: log.warning("a file changed while it was read; repeating the retrieval"),
        reraise=True,
    )
    return trials(lambda: attempt(Snapshot()))
