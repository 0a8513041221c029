"""Online features of many series in one read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from salescast.feature_store import own_ids
from salescast.feature_store.databases import NUMPY_TYPES, Database, Key, StoreDownError, select, table_name
from salescast.feature_store.own_ids import OwnId
from salescast.features.columns import Columns
from salescast.schema import KEYS, STORE_VIEW, TIMESTAMP


@dataclass(frozen=True)
class OnlineRows:
    """What the store holds for n requested series."""

    columns: Columns  # keys, event_timestamp and features of the m usable series, in the order requested
    position: NDArray[np.int64]  # [n] row of `columns`, -1 where there is none
    incomplete: dict[int, str]  # index of a request -> why its features cannot be used; other -1 are unknown series


class OnlineReader:
    """Reads the features of a service for many series at once."""

    def __init__(self, database: Database, project: str, views: Mapping[str, Mapping[str, pl.DataType]]) -> None:
        """`views`: for each view its columns and their types."""
        self.database, self.project, self.views = database, project, views
        self.tables = [table_name(project, view) for view in views]

    def ping(self) -> None:
        """Raises StoreDownError unless the store answers and has every table."""
        select(self.database, self.tables, [])

    def ids(self, asked: Iterable[OwnId]) -> dict[OwnId, int]:
        """The entity ids of the retailer's own ids that the store knows. Raises StoreDownError."""
        return own_ids.read(self.database, self.project, asked)

    def read(self, pairs: Sequence[Key]) -> OnlineRows:
        """The rows of `pairs`, which may repeat. Raises StoreDownError.

        A series is unknown if no view has a row of it. It is incomplete if a view has no row of it, or if the rows of
        its views are of different weeks. The store view does not count: its features belong to no week.
        """
        keys = [f'{{"dept_id":{dept},"store_id":{store}}}' for store, dept in pairs]
        rows_by_view: list[dict[str, tuple[int, str]]] = [{} for _ in self.views]
        for number, key, time, features in select(self.database, self.tables, list(dict.fromkeys(keys))):
            rows_by_view[number][key] = (time, features)
        position = np.full(len(keys), -1)
        incomplete: dict[int, str] = {}
        good: list[str] = []
        for asked, key in enumerate(keys):
            rows_of = [rows.get(key) for rows in rows_by_view]
            weeks = {row[0] for view, row in zip(self.views, rows_of, strict=True) if row and view != STORE_VIEW}
            if None not in rows_of and len(weeks) == 1:
                position[asked] = len(good)
                good.append(key)
            elif any(rows_of):
                lacking = [view for view, rows in zip(self.views, rows_by_view, strict=True) if key not in rows]
                incomplete[asked] = f"no row in {lacking}" if lacking else "its feature views are of different weeks"
        columns = self._columns([asked for asked, at in enumerate(position) if at >= 0], pairs, keys, rows_by_view)
        return OnlineRows(columns, position, incomplete)

    def _columns(
        self, asked: list[int], pairs: Sequence[Key], keys: list[str], rows_by_view: list[dict[str, tuple[int, str]]]
    ) -> Columns:
        columns: dict[str, Any] = {
            name: pa.array([pairs[number][i] for number in asked], pa.int32()) for i, name in enumerate(KEYS)
        }
        columns[TIMESTAMP] = np.array([rows_by_view[0][keys[number]][0] for number in asked], "datetime64[us]")
        for (view, types), rows in zip(self.views.items(), rows_by_view, strict=True):
            records = orjson.loads("[" + ",".join([rows[keys[number]][1] for number in asked]) + "]")
            try:
                columns |= {name: _column([record[name] for record in records], kind) for name, kind in types.items()}
            except KeyError as error:
                raise StoreDownError(f"view {view} has no feature {error}; apply and materialize again") from None
            except (ValueError, TypeError) as error:
                raise StoreDownError(f"view {view} holds an invalid value: {error}; materialize again") from None
        return columns


def _column(values: list[Any], dtype: pl.DataType) -> Any:
    """One feature of many records. Raises ValueError or TypeError for a wrong type and for lists of unequal length."""
    if dtype == pl.String:
        return pa.array(values, pa.large_string())
    if isinstance(dtype, pl.List) and None in values:
        empty = [None] * max((len(value) for value in values if value is not None), default=0)
        values = [empty if value is None else value for value in values]
    array = np.array(values, NUMPY_TYPES[dtype])
    if values and array.ndim != 1 + isinstance(dtype, pl.List):
        raise ValueError(f"{values[0]!r:.40} where {dtype} is expected")
    return array if isinstance(dtype, pl.List) else array.astype(np.float64)
