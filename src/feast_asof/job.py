"""Feast's retrieval job: evaluated lazily, returned to the caller or written to files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import FileSource, OnDemandFeatureView
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage

from feast_asof import replace, write
from feast_asof.engine import Finish, Work
from feast_asof.errors import AsofError


class AsofRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A result that is computed anew by every call that returns or writes it."""

    def __init__(
        self,
        work: Work,
        *,
        repo_path: Path | None,
        storage_path: Path | None = None,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: Callable[[], RetrievalMetadata] | None = None,
    ):
        self._work = work
        self._repo_path = repo_path
        self._storage_path = storage_path
        self._full_feature_names = full_feature_names
        self._on_demand = on_demand_feature_views or []
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """Whether feature columns are named view__feature."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Transformations that Feast applies to the joined table."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Features, keys and time range of a historical retrieval; None for a plain read of a source."""
        return self._metadata() if self._metadata else None

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002  Feast's interface
        return self._work.table()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002  Feast's interface
        return to_pandas(self._work.table())

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """The result as pandas. Integer columns with nulls are `Int64` and the like, without a detour through float."""
        return to_pandas(self.to_arrow(validation_reference=validation_reference, timeout=timeout))

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,  # noqa: ARG002  Feast's interface
    ) -> None:
        """Write the result to a saved dataset: one file if its path ends in .parquet, else a folder of ordered parts.

        Raises SavedDatasetLocationAlreadyExists unless `allow_overwrite`, AsofError if the storage is no local path.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise AsofError(f"cannot persist to {type(storage).__name__}: give a SavedDatasetFileStorage")
        target = local_path(self._repo_path, storage.file_options.uri)
        replace.heal(target)
        if target.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(target))
        if target.suffix == ".parquet":
            with write.scratch(target.parent) as folder:
                write.merge(self._work.parts(folder / "parts", self._finish()), target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            write.remove_stale(target.parent, rf"\.{re.escape(target.name)}\.{write.HEX}", write.DAY)
            self._work.parts(target, self._finish())

    def supports_remote_storage_export(self) -> bool:
        """True where `storage_path` is configured."""
        return self._storage_path is not None

    def to_remote_storage(self) -> list[str]:
        """Write the result as ordered Parquet files to a new folder below `storage_path` and return their paths.

        The caller removes the folder. A later export removes folders that were not read or written for a week.
        """
        if self._storage_path is None:
            raise AsofError(
                "to_remote_storage needs offline_store.storage_path in feature_store.yaml: set it to a shared folder"
            )
        parts = self._work.parts(write.export(self._storage_path), self._finish())
        return [str(path) for path in parts]

    def _finish(self) -> Finish | None:
        if not self._on_demand:
            return None
        return OnDemand(self._full_feature_names, self._on_demand, self.metadata)


class _Part(RetrievalJob):  # type: ignore[misc]
    """A finished table as a job, so that Feast's `to_arrow` applies the on-demand feature views to it."""

    def __init__(self, table: pa.Table, views: "OnDemand"):
        self._table, self._views = table, views

    @property
    def full_feature_names(self) -> bool:
        return self._views.full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._views.views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._views.metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002  Feast's interface
        return self._table


class OnDemand:
    """Applies on-demand feature views to a part of the result."""

    def __init__(self, full_feature_names: bool, views: list[OnDemandFeatureView], metadata: RetrievalMetadata | None):
        self.full_feature_names, self.views, self.metadata = full_feature_names, views, metadata

    def __call__(self, table: pa.Table) -> pa.Table:
        return _Part(table, self).to_arrow()


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Arrow to pandas. Only integer columns with nulls get nullable extension types."""
    exact = [name for name in table.column_names if table[name].null_count and pa.types.is_integer(table[name].type)]
    frame: pd.DataFrame = table.drop_columns(exact).to_pandas()
    for name in exact:
        frame.insert(table.column_names.index(name), name, table[name].to_pandas(types_mapper=_nullable))
    return frame


def _nullable(dtype: pa.DataType) -> Any:
    return pd.api.types.pandas_dtype(str(dtype).replace("uint", "UInt").replace("int", "Int"))  # int32 -> Int32


def local_path(repo_path: Path | None, uri: str) -> Path:
    """A local path; a relative one is below the feature repository. Raises AsofError for s3:// and the like."""
    if "://" in uri and not uri.startswith("file://"):
        raise AsofError(f"cannot write to {uri}: this store writes to mounted folders only, give a path")
    return Path(FileSource.get_uri_for_file_path(repo_path, uri.removeprefix("file://")))
