"""One state of every file for all reads of one retrieval, also of files that somebody replaces meanwhile."""

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

HELD = 256  # files that stay open: well within the 1,024 that a process usually may open
TRIES = 6  # with the pauses between them about three seconds


@dataclass(frozen=True)
class Identity:
    """What tells one state of a file from another, on every machine that sees it."""

    size: int
    modified: int  # ns
    changed: int  # ns; a replacement may keep the time of modification, but not this one. 0: not known

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """From the operating system."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def same_content(self, other: "Identity") -> bool:
        """Whether nobody wrote to the file; its name may have gone to another one."""
        return (self.size, self.modified) == (other.size, other.modified)


class Files(pafs.FileSystemHandler):  # type: ignore[misc]  # PyArrow has no types
    """A file system that knows each file in one state only: that of its first use.

    Local files stay open, so that one that is replaced can be read to its end. Where they are too many, or pickled
    for another process, each opening is compared with the first. Files elsewhere are compared after each read.
    """

    def __init__(self, inner: pafs.FileSystem, known: dict[str, Identity] | None = None):
        self.inner = inner
        self.known = dict(known or {})
        self._held: dict[str, pa.OSFile] = {}
        self._lock = threading.Lock()
        self._local = isinstance(inner, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open files do not travel."""
        return Files, (self.inner, self.known)

    def pin(self, paths: Iterable[str]) -> None:
        """Note the state of files that were just listed. Raises SourceChangedError unless it was theirs at one moment.

        Between the opening of the first and that of the last one may be replaced.
        """
        paths = list(paths)
        if self._local:
            for path in paths:
                self.open_input_file(path)
        else:
            found = self.inner.get_file_info(paths)
            self.known |= {path: _identity(info) for path, info in zip(paths, found, strict=True)}
        for path in paths:
            if self._now(path) != self.known[path]:
                raise SourceChangedError(_message(path))

    def check(self, paths: Iterable[str]) -> None:
        """Raise SourceChangedError if something else than the noted state of these files may have been read."""
        for path in dict.fromkeys(paths):
            held = self._held.get(path)
            try:
                same = (
                    self._now(path) == self.known[path]
                    if held is None
                    else Identity.of(os.fstat(held.fileno())).same_content(self.known[path])
                )
            except OSError as error:  # deleted; on a network file system also under an open file
                raise SourceChangedError(_message(path)) from error
            if not same:
                raise SourceChangedError(_message(path))

    def _now(self, path: str) -> Identity:
        return Identity.of(Path(path).stat()) if self._local else _identity(self.inner.get_file_info(path))

    def open_input_file(self, path: str) -> pa.NativeFile:
        """The file in its noted state. Raises SourceChangedError."""
        if not self._local:
            return self.inner.open_input_file(path)
        if path in self._held:
            return self._held[path]
        try:
            file = pa.OSFile(path)
        except FileNotFoundError as error:
            raise SourceChangedError(_message(path)) from error
        identity = Identity.of(os.fstat(file.fileno()))
        with self._lock:
            if self.known.setdefault(path, identity) != identity:
                raise SourceChangedError(_message(path))
            return self._held.setdefault(path, file) if len(self._held) < HELD else file

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """As `open_input_file`."""
        return self.open_input_file(path)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """As the file system has it."""
        return list(self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """As the file system has it."""
        return list(self.inner.get_file_info(selector))

    def normalize_path(self, path: str) -> str:
        """As the file system has it."""
        return str(self.inner.normalize_path(path))

    def get_type_name(self) -> str:
        """Of the file system."""
        return str(self.inner.type_name)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("a snapshot is only read")

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _refuse
    move = open_append_stream = open_output_stream = _refuse


def _identity(info: pafs.FileInfo) -> Identity:
    return Identity(info.size or 0, info.mtime_ns or 0, 0)


def _message(path: str) -> str:
    return (
        f"{path} was replaced or written while it was read, again and again: wait until its writer has finished, "
        "and let writers write beside it and rename"
    )


class Snapshot:
    """The files of one retrieval; also of several views of one file."""

    def __init__(self) -> None:
        self._files: list[Files] = []
        self.opened: dict[tuple[int, str], ds.Dataset] = {}  # (file system, path) -> its source

    def files(self, inner: pafs.FileSystem) -> Files:
        """The files of a file system."""
        for known in self._files:
            if known.inner == inner:
                return known
        self._files.append(Files(inner))
        return self._files[-1]


def consistent(attempt: Callable[[Snapshot], T]) -> T:
    """The result of `attempt` with one state of all files; run anew where that was lost.

    Raises SourceChangedError when it is lost every time.
    """
    trials = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(SourceChangedError),
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_exponential(0.1),
        before_sleep=lambda _: log.warning("a file changed while it was read; starting again"),
        reraise=True,
    )
    return trials(lambda: attempt(Snapshot()))
