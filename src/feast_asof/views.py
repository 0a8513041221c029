"""Translate Feast's objects to plain values: which columns of which files are joined on which keys."""

from datetime import timedelta
from typing import Any

import pyarrow as pa
from feast import FeatureView, FileSource, RepoConfig
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.types import Bytes, from_feast_to_pyarrow_type
from feast.utils import _parse_feature_ref

from feast_asof.errors import AsofError
from feast_asof.join import Feature, View


def location(config: RepoConfig, source: DataSource) -> tuple[str, Any]:
    """Path and filesystem (None: local) of a FileSource. Raises AsofError for any other source or format."""
    if not isinstance(source, FileSource):
        raise AsofError(f"data source {source.name!r} is a {type(source).__name__}; this store reads FileSource only")
    if not (source.file_format is None or isinstance(source.file_format, ParquetFormat)):
        raise AsofError(
            f"data source {source.name!r} has format {type(source.file_format).__name__}; this store reads Parquet only"
        )
    path = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    filesystem, path = FileSource.create_filesystem_and_path(
        path, source.s3_endpoint_override, source.resolve_credentials()
    )
    return str(path), filesystem


def declared(dtype: Any) -> pa.DataType | None:
    """Arrow type of a Feast type; None where Feast defines none."""
    if dtype == Bytes:
        return pa.binary()
    try:
        return from_feast_to_pyarrow_type(dtype)
    except ValueError:
        return None


def _microseconds(ttl: timedelta | None) -> int:
    return ttl // timedelta(microseconds=1) if ttl else 0


def _column_name(view: FeatureView, feature: str, full: bool) -> str:
    return f"{view.projection.name_alias or view.name}__{feature}" if full else feature


def resolve_views(
    config: RepoConfig, feature_views: list[FeatureView], refs: list[str], *, full: bool, known_at: bool
) -> tuple[list[View], list[str]]:
    """The views to join, and the names of the feature columns in the order requested.

    Feast evaluates references to on-demand feature views. Raises AsofError for sources other than Parquet files.
    """
    wanted: dict[str, list[str]] = {}
    order: list[str] = []
    by_name = {view.projection.name_to_use(): view for view in feature_views}
    for ref in refs:
        name, version, feature = _parse_feature_ref(ref)
        name = name if version is None else f"{name}@v{version}"
        if name in by_name and feature not in wanted.setdefault(name, []):
            wanted[name].append(feature)
            order.append(_column_name(by_name[name], feature, full))
    return [_view(config, by_name[name], features, full, known_at) for name, features in wanted.items()], order


def _view(config: RepoConfig, view: FeatureView, features: list[str], full: bool, known_at: bool) -> View:
    if view.batch_source is None:
        raise AsofError(f"feature view {view.name!r} has no batch source to read history from")
    path, filesystem = location(config, view.batch_source)
    in_file = {name: column for column, name in view.batch_source.field_mapping.items()}
    aliases = view.projection.join_key_map
    types = {field.name: field.dtype for field in (*view.features, *view.projection.features)}
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    created = view.batch_source.created_timestamp_column
    timestamp = view.batch_source.timestamp_field
    if not timestamp:
        raise AsofError(f"the source of feature view {view.name!r} names no timestamp_field")
    return View(
        name=view.projection.name_to_use(),
        path=path,
        filesystem=filesystem,
        keys=tuple((in_file.get(key, key), aliases.get(key, key)) for key in keys),
        timestamp=in_file.get(timestamp, timestamp),
        created=in_file.get(created, created) or None,
        features=tuple(
            Feature(in_file.get(name, name), _column_name(view, name, full), declared(types[name])) for name in features
        ),
        ttl=_microseconds(view.ttl),
        known_at=known_at,
    )
