"""A Feast online store with one row per entity and view (see `databases`), in SQLite or PostgreSQL.

    online_store:
      type: salescast.feature_store.online_store.RowOnlineStore
      path: online_store.db          # SQLite, relative to the feature repo
      # host, port, database, user, password, sslmode, db_schema: PostgreSQL, as Feast's own store has them

A write replaces the row of an entity unless the stored one is newer: the newest event time wins, then the newest
created time, then the last write. Feature types: numbers, strings, booleans and lists of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from feast.entity import Entity
from feast.feature_view import FeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from pydantic import StrictStr

from salescast.data.names import Names
from salescast.feature_store import own_ids
from salescast.feature_store.databases import (
    CREATE,
    DROP,
    Database,
    Row,
    entity_key,
    open_database,
    select,
    table_name,
    with_checksum,
)

MICROSECONDS = 1_000_000


class RowOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast is untyped
    type: StrictStr = "salescast.feature_store.online_store.RowOnlineStore"
    path: StrictStr | None = None
    host: StrictStr | None = None
    port: int = 5432
    database: StrictStr | None = None
    db_schema: StrictStr = "public"
    user: StrictStr | None = None
    password: StrictStr | None = None
    sslmode: StrictStr | None = None


class RowOnlineStore(OnlineStore):  # type: ignore[misc]
    _database: Database | None = None
    _held: dict[str, list[Row]] | None = None  # rows by table that `replacing` writes at its end

    def _open(self, config: RepoConfig) -> Database:
        if self._database is None:
            self._database = open_database(config.online_store.model_dump(), Path(config.repo_path or "."))
        return self._database

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        keyed = [(_key(key), _micros(time), created and _micros(created), _json(v)) for key, v, time, created in data]
        rows = [(key, time, created, with_checksum(key, time, json)) for key, time, created, json in keyed]
        name = table_name(config.project, table.name)
        if self._held is not None and name in self._held:
            self._held[name] += rows
        else:
            self._open(config).write(name, rows)
        if progress:
            progress(len(data))

    @contextmanager
    def replacing(self, config: RepoConfig, views: Sequence[str], names: Names) -> Iterator[None]:
        """Collect what is written to `views` in the block; at its end, replace all their rows in one transaction.

        The own ids in `names` are replaced with them.

        Readers see the rows from before or those from after. An error in the block leaves the store as it was.
        """
        self._held = {table_name(config.project, view): [] for view in views}
        self._held[own_ids.table(config.project)] = own_ids.rows(names)
        try:
            yield
            self._open(config).replace(self._held)
        finally:
            self._held = None

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        keys = [_key(key) for key in entity_keys]
        rows = select(self._open(config), [table_name(config.project, table.name)], keys)
        stored = {key: (time, orjson.loads(features)) for _, key, time, features in rows}
        types = {feature.name: feature.dtype.to_value_type() for feature in table.features}
        records = [stored[key][1] for key in keys if key in stored]
        columns = {
            name: iter(python_values_to_proto_values([_nan(record.get(name)) for record in records], types[name]))
            for name in (requested_features or types)
        }
        return [
            (_datetime(stored[key][0]), {name: next(values) for name, values in columns.items()})
            if key in stored
            else (None, None)
            for key in keys
        ]

    def update(  # the signature is Feast's
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],  # noqa: ARG002
        entities_to_keep: Sequence[Entity],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        database = self._open(config)
        for table in (
            *(table_name(config.project, view.name) for view in tables_to_keep),
            own_ids.table(config.project),
        ):
            database.run(CREATE.format(table=table))
        for view in tables_to_delete:
            database.run(DROP.format(table=table_name(config.project, view.name)))

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:  # noqa: ARG002
        for table in (*(table_name(config.project, view.name) for view in tables), own_ids.table(config.project)):
            self._open(config).run(DROP.format(table=table))


def _key(key: EntityKey) -> str:
    values = [feast_value_type_to_python_type(value) for value in key.entity_values]
    return entity_key(dict(zip(key.join_keys, values, strict=True)))


def _json(values: dict[str, Value]) -> str:
    # A float32 in the fewest digits that identify it; NaN becomes null: both mean missing.
    plain = {name: _plain(value) for name, value in values.items()}
    return orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _nan(value: Any) -> Any:
    """NaN for nulls in a list: protobuf lists have no null, and Feast would write a zero."""
    return [math.nan if part is None else part for part in value] if isinstance(value, list) else value


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("val")
    if kind == "float_val":
        return np.float32(value.float_val)
    if kind == "float_list_val":
        return np.array(value.float_list_val.val, dtype=np.float32)
    return feast_value_type_to_python_type(value)


def _micros(time: datetime) -> int:
    """Microseconds since 1970 UTC; a time without a zone is UTC, as in Feast."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return round(aware.timestamp() * MICROSECONDS)


def _datetime(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / MICROSECONDS, UTC)
