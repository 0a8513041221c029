"""Feast's interface: `type: feast_asof.store.AsofOfflineStore` in feature_store.yaml."""

import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import compute_non_entity_date_range

from feast_asof import entity_frame, local_engine, views, write
from feast_asof.engine import Engine, EngineSettings, Work
from feast_asof.errors import AsofError
from feast_asof.job import AsofRetrievalJob, local_path
from feast_asof.join import View
from feast_asof.pull import Columns
from feast_asof.snapshot import consistent
from feast_asof.views import resolve_views


class AsofOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """The `offline_store` section of feature_store.yaml."""

    type: Literal["feast_asof.store.AsofOfflineStore"] = "feast_asof.store.AsofOfflineStore"
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    """Engine ray: `ray://host:10001`; absent: RAY_ADDRESS (set inside a RayJob), else a Ray of this machine."""
    storage_path: str | None = None
    """Folder that all workers share: staged partitions (engine ray) and exports; relative to the repository."""


class AsofOfflineStore(OfflineStore):  # type: ignore[misc]
    """Point-in-time joins over Parquet files, in this process (engine local) or on a Ray cluster (engine ray)."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> AsofRetrievalJob:
        """Join the features valid at each row of the entity frame; see docs/feast-asof.md for the exact rules.

        Args:
            config: Feast's configuration.
            feature_views: views the references point to, with their projections.
            feature_refs: "view:feature", in the order of the result's columns.
            entity_df: pandas, Polars or Arrow frame, a path to Parquet, or None to take the entities of the sources
                between `start_date` and `end_date`.
            registry: knows the on-demand feature views.
            project: Feast project.
            full_feature_names: name columns view__feature.
            filter_by_created_timestamp: leave out rows created after the entity timestamp.
            start_date: earliest event timestamp, only without entity frame.
            end_date: latest event timestamp, only without entity frame.

        Raises:
            AsofError: missing columns, types that cannot be compared, unreadable or missing files.
        """
        views, order = resolve_views(
            config, feature_views, feature_refs, full=full_feature_names, known_at=filter_by_created_timestamp
        )
        if entity_df is None:
            start, end = compute_non_entity_date_range(feature_views, start_date=start_date, end_date=end_date)
            frame = _entities_between(views, start, end)
        else:
            frame = entity_frame.read(entity_df)
        entity_frame.check(frame.schema, frame.timestamp, views)
        return _job(
            config,
            _engine(config).historical_join(_settings(config), frame, views, order),
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=partial(_time_range, frame, feature_refs),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> AsofRetrievalJob:
        """The newest row of every entity with start_date <= timestamp <= end_date (naive dates are UTC).

        Columns are those named, in this order: join keys, features, timestamp, created timestamp.
        Raises AsofError for missing files or columns.
        """
        columns = (join_key_columns, feature_name_columns)
        pull = _pull(config, data_source, columns, timestamp_field, created_timestamp_column)
        return _job(config, _engine(config).plain_read(_settings(config), pull, start_date, end_date, True))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> AsofRetrievalJob:
        """All rows with start_date <= timestamp <= end_date (None: no bound), in the columns of `pull_latest...`."""
        columns = (join_key_columns, feature_name_columns)
        pull = _pull(config, data_source, columns, timestamp_field, created_timestamp_column)
        return _job(config, _engine(config).plain_read(_settings(config), pull, start_date, end_date, False))

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to the Parquet file of a feature view, or add a file if its source is a folder.

        Raises AsofError if the columns are not exactly those of the source or a value does not convert.
        """
        path, filesystem = views.location(config, feature_view.batch_source)
        if filesystem is not None:
            raise AsofError(
                f"cannot write to {feature_view.batch_source.path}: this store writes to mounted folders only"
            )
        write.append(table, Path(path), feature_view.name)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,  # noqa: ARG004  Feast's interface
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004  Feast's interface
    ) -> None:
        """Add logged features (a table, or a folder of Parquet) to the folder of a FileLoggingDestination."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise AsofError(f"cannot log to {type(destination).__name__}: give a FileLoggingDestination")
        table = data if isinstance(data, pa.Table) else pq.read_table(data)
        folder = local_path(config.repo_path, destination.path)
        write.add_files(table, folder, uuid.uuid4().hex, destination.partition_by or [])


def _entities_between(views: list[View], start: datetime, end: datetime) -> entity_frame.EntityFrame:
    """The entities of the sources between two times. Raises AsofError for a source that cannot be used."""
    for view in views:
        consistent(partial(entity_frame.check_source, view))
    return local_engine.entities_between(views, start, end)


def _time_range(frame: entity_frame.EntityFrame, feature_refs: list[str]) -> RetrievalMetadata:
    """What Feast tells of a retrieval: its features, its keys, and its first and last time."""
    first, last = frame.time_range()
    return RetrievalMetadata(feature_refs, [c for c in frame.schema.names if c != frame.timestamp], first, last)


def _settings(config: RepoConfig) -> EngineSettings:
    store = config.offline_store
    storage = local_path(config.repo_path, store.storage_path) if store.storage_path else None
    return EngineSettings(store.ray_address, storage)


def _engine(config: RepoConfig) -> Engine:
    if config.offline_store.engine == "local":
        return local_engine
    from feast_asof import ray_engine  # needs Ray

    return ray_engine


def _job(config: RepoConfig, work: Work, **kwargs: Any) -> AsofRetrievalJob:
    return AsofRetrievalJob(work, repo_path=config.repo_path, storage_path=_settings(config).storage, **kwargs)


def _pull(
    config: RepoConfig, source: DataSource, columns: tuple[list[str], list[str]], timestamp: str, created: str | None
) -> Columns:
    path, filesystem = views.location(config, source)
    keys, features = columns
    names = [*keys, *features, timestamp, *([created] if created else [])] if features else None
    constant = None if keys else (DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL)
    return Columns(path, filesystem, keys, names, timestamp, created, constant)
