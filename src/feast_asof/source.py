"""Parquet files and folders: opening, pruning row groups by their statistics, reading single columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from feast_asof import replace
from feast_asof.errors import AsofError, SourceChangedError, SourceNotFoundError
from feast_asof.snapshot import Files, Snapshot

Bounds = Mapping[str, tuple[Any, Any]]  # column -> (least, greatest) value that can match, None = no bound


@dataclass(frozen=True)
class Source:
    """Rows of one Parquet file or folder, in file order."""

    what: str  # for messages: "the source of feature view 'x'"
    path: str
    dataset: ds.Dataset

    @classmethod
    def open(cls, what: str, path: str, filesystem: Any, snapshot: Snapshot) -> Self:
        """List its files, pin their state for the whole snapshot, and read the schema.

        Raises SourceNotFoundError if there is no such path, SourceChangedError if files appear or vanish meanwhile,
        AsofError if it is not readable as Parquet.
        """
        inner, where = resolved(path, filesystem)
        files = snapshot.files(inner)
        if isinstance(inner, pafs.LocalFileSystem):
            replace.heal(Path(where))
        if (id(files), where) not in snapshot.opened:
            snapshot.opened[id(files), where] = cls._open(what, path, where, files)
        return cls(what, path, snapshot.opened[id(files), where])

    @staticmethod
    def _open(what: str, path: str, where: str, files: Files) -> ds.Dataset:
        try:
            dataset = ds.dataset(where, format="parquet", filesystem=pafs.PyFileSystem(files), partitioning="hive")
            if not dataset.files:
                raise SourceNotFoundError(f"{what}: the folder {path} holds no Parquet files")
            files.pin(dataset.files)
        except (SourceChangedError, SourceNotFoundError):
            raise
        except FileNotFoundError as error:
            raise SourceNotFoundError(f"{what}: no Parquet file or folder at {path}") from error
        except (pa.ArrowInvalid, OSError) as error:
            files.check(files.known)
            raise AsofError(f"{what}: {path} is not readable as Parquet: {error}") from error
        return dataset

    @property
    def files(self) -> Files:
        """The file system that pins the state of its files."""
        handler: Files = self.dataset.filesystem.handler
        return handler

    @property
    def schema(self) -> pa.Schema:
        """Names and types of its columns."""
        return self.dataset.schema

    def type_of(self, column: str) -> pa.DataType:
        """Type of a column. Raises AsofError, which lists the columns of the file, if there is none of that name."""
        schema = self.dataset.schema
        if not schema.get_all_field_indices(column):
            raise AsofError(f"{self.what}: {self.path} has no column {column!r}; it has {', '.join(schema.names)}")
        return schema.field(column).type

    def fragments(self, bounds: Bounds) -> list[ds.ParquetFileFragment]:
        """The files, restricted to the row groups whose statistics allow values within `bounds`."""
        terms = [
            term
            for column, (least, greatest) in bounds.items()
            for term in (
                pc.field(column) >= least if least is not None else None,
                pc.field(column) <= greatest if greatest is not None else None,
            )
            if term is not None
        ]
        try:
            if not terms:
                return list(self.dataset.get_fragments())
            wanted = reduce(and_, terms)
            cut = [fragment.subset(wanted) for fragment in self.dataset.get_fragments(wanted)]
            return [fragment for fragment in cut if fragment.row_groups]
        except SourceChangedError:
            raise
        except (pa.ArrowInvalid, OSError) as error:
            self.files.check(self.dataset.files)
            raise AsofError(f"{self.what}: {self.path} is not readable as Parquet: {error}") from error

    def within(self, bounds: Bounds) -> Self:
        """The same source without the row groups that are outside `bounds`."""
        return self.restricted_to(self.fragments(bounds))

    def restricted_to(self, fragments: list[ds.ParquetFileFragment]) -> Self:
        """The same source with only these fragments."""
        dataset = ds.FileSystemDataset(fragments, self.dataset.schema, self.dataset.format, self.dataset.filesystem)
        return type(self)(self.what, self.path, dataset)

    def rows(self) -> int:
        """Number of rows, from the metadata."""
        return sum(group.num_rows for fragment in self.fragments({}) for group in fragment.row_groups)

    def read(self, columns: list[str]) -> pa.Table:
        """All rows of some columns.

        Raises AsofError if the file is damaged or lacks a column, SourceChangedError if it has changed.
        """
        for column in columns:
            self.type_of(column)
        try:
            table = self.dataset.to_table(columns=columns)
        except SourceChangedError:
            raise
        except (pa.ArrowInvalid, OSError) as error:
            self.files.check(self.dataset.files)
            raise AsofError(f"{self.what}: {self.path} is damaged: {error}") from error
        self.files.check(self.dataset.files)
        return table

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, see `read`."""
        return self.read([name]).column(0)


def resolved(path: str, filesystem: pafs.FileSystem | None) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path there."""
    if filesystem is not None:
        return filesystem, path
    if "://" in path and not Path(path).exists():
        from_uri: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(path)
        return from_uri
    return pafs.LocalFileSystem(), path


def bound(value: int | None, dtype: pa.DataType, up: bool, unit: str) -> pa.Scalar | None:
    """An instant (int, "us" or "ns" since 1970) in a column's type for `Source.within`; None if that is not possible.

    Rounds up or down to the column's unit as `up` says, so that no row within the bounds is lost.
    """
    if value is None:
        return None
    nanos = value * (1000 if unit == "us" else 1)
    if pa.types.is_date32(dtype):
        step = 86_400 * 10**9
    elif pa.types.is_timestamp(dtype):
        step = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[dtype.unit]
    else:
        return None
    count = -(-nanos // step) if up else nanos // step
    if not -(2**63) <= count < 2**63:
        return None
    return pa.scalar(count, pa.int64() if dtype != pa.date32() else pa.int32()).cast(dtype)
