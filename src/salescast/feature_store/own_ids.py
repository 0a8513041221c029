"""The retailer's own ids in the online store: one row for each, written with the features that they lead to."""

from collections.abc import Iterable
from typing import Final

import orjson

from salescast.data.names import Names
from salescast.feature_store.databases import Database, Row, select, table_name, with_checksum

VIEW: Final = "own_ids"
OwnId = tuple[str, str]  # entity (store_id or dept_id), the retailer's own id


def table(project: str) -> str:
    """The table of own ids of a project."""
    return table_name(project, VIEW)


def rows(names: Names) -> list[Row]:
    """The rows of all own ids, in the form of `databases`."""
    keyed = ((_key((entity, name)), orjson.dumps({"id": id_}).decode()) for entity, id_, name in names.table.rows())
    return [(key, 0, None, with_checksum(key, 0, json)) for key, json in keyed]


def read(database: Database, project: str, asked: Iterable[OwnId]) -> dict[OwnId, int]:
    """The entity ids of the own ids that are known. Raises StoreDownError."""
    keys = {_key(own): own for own in asked}
    if not keys:
        return {}
    return {keys[key]: orjson.loads(json)["id"] for _, key, _, json in select(database, [table(project)], list(keys))}


def _key(own: OwnId) -> str:
    return orjson.dumps(own).decode()
