"""Entity frames: pandas, Polars, Arrow or a Parquet path in; a table, or files, and the timestamp column's name out."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from feast_asof import encode
from feast_asof.errors import AsofError
from feast_asof.join import View
from feast_asof.snapshot import Snapshot, consistent
from feast_asof.source import Source

DEFAULT_TIMESTAMP = "event_timestamp"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class EntityFrame:
    """A table in memory, Parquet files, or (`read_again`) rows that every retrieval reads again."""

    schema: pa.Schema
    timestamp: str
    table: pa.Table | None = None
    source: Source | None = None
    read_again: "Callable[[Snapshot], EntityFrame] | None" = None

    def at(self, snapshot: Snapshot) -> "EntityFrame":
        """The rows for one retrieval. Raises AsofError if they have other columns by now."""
        if self.read_again is None:
            return self
        frame = self.read_again(snapshot)
        if not frame.schema.equals(self.schema):
            raise AsofError(
                f"the columns of the entity frame were {', '.join(self.schema.names)} when the features were asked for "
                f"and are {', '.join(frame.schema.names)} now, or have other types: call get_historical_features again"
            )
        return frame

    def load(self) -> pa.Table:
        """All rows and columns. Raises AsofError if the Parquet files cannot be read."""
        if self.table is not None:
            return self.table
        assert self.source is not None
        return self.source.read(self.schema.names)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        if self.table is not None:
            return self.table[name]
        assert self.source is not None
        return self.source.column(name)

    def time_range(self) -> tuple[datetime | None, datetime | None]:
        """First and last entity timestamp, None where there are none."""
        values, unit = encode.instants(consistent(lambda snapshot: self.at(snapshot).column(self.timestamp)))
        span = pc.min_max(values)

        def as_datetime(value: int | None) -> datetime | None:
            return None if value is None else EPOCH + timedelta(microseconds=value // (1000 if unit == "ns" else 1))

        return as_datetime(span["min"].as_py()), as_datetime(span["max"].as_py())


def _table(frame: Any) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if isinstance(frame, pl.DataFrame):
        return frame.to_arrow()
    if not isinstance(frame, pd.DataFrame):
        raise AsofError(
            f"the entity frame is a {type(frame).__name__}; "
            "give a pandas or Polars frame, an Arrow table or a path to Parquet"
        )
    try:
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise AsofError(f"the entity frame has a column of mixed types: {'; '.join(map(str, error.args))}") from error


def timestamp_column(schema: pa.Schema) -> str:
    """`event_timestamp`, or the only datetime column. Raises AsofError if there is no such column."""
    if DEFAULT_TIMESTAMP in schema.names:
        return DEFAULT_TIMESTAMP
    timestamps = [str(field.name) for field in schema if pa.types.is_timestamp(field.type)]
    if len(timestamps) == 1:
        return timestamps[0]
    raise AsofError(
        f"the entity frame has no column {DEFAULT_TIMESTAMP!r} and {len(timestamps)} datetime columns; "
        f"its columns are {', '.join(schema.names)}: name the time of each row {DEFAULT_TIMESTAMP!r}"
    )


def read(frame: Any) -> EntityFrame:
    """The entity frame as given by the user. Raises AsofError on an unusable type, path or timestamp column."""
    if isinstance(frame, str | Path):

        def open_files(snapshot: Snapshot) -> EntityFrame:
            source = Source.open("the entity frame", str(frame), None, snapshot)
            snapshot.check_unchanged()  # the sources of the views are open, too
            return EntityFrame(source.schema, timestamp_column(source.schema), source=source)

        first = consistent(open_files)
        return EntityFrame(first.schema, first.timestamp, read_again=open_files)
    table = _table(frame)
    if len(set(table.schema.names)) != len(table.schema.names):
        raise AsofError(f"the entity frame has columns of the same name: {', '.join(table.schema.names)}")
    return EntityFrame(table.schema, timestamp_column(table.schema), table=table)


def check(schema: pa.Schema, timestamp: str, views: list[View]) -> None:
    """Raise AsofError unless the join keys of all views have comparable types and no two columns get the same name."""
    taken = set(schema.names)
    dtype = schema.field(timestamp).type
    if not encode.is_time(dtype):
        raise AsofError(f"column {timestamp!r} of the entity frame is {dtype}: give datetimes or ISO 8601 strings")
    for view in views:
        missing = [key for _, key in view.keys if key not in schema.names]
        if missing:
            raise AsofError(
                f"the entity frame lacks the join key {', '.join(map(repr, missing))} of feature view {view.name!r}; "
                f"its columns are {', '.join(schema.names)}"
            )
        for feature in view.features:
            if feature.name in taken:
                raise AsofError(
                    f"two columns of the result would be named {feature.name!r}: rename the column of the entity frame "
                    "or ask for full_feature_names=True"
                )
            taken.add(feature.name)
        source = consistent(partial(check_source, view))
        for column, key in view.keys:
            encode.check_key(key, schema.field(key).type, source.type_of(column), view.name)


def check_source(view: View, snapshot: Snapshot) -> Source:
    """The view's files. Raises AsofError if a column is missing or a timestamp has another type."""
    source = view.open(snapshot)
    for column in (*view.index_columns(), *(feature.column for feature in view.features)):
        source.type_of(column)
    for column in filter(None, (view.timestamp, view.created)):
        dtype = source.type_of(column)
        if not (
            pa.types.is_timestamp(dtype) or pa.types.is_date(dtype) or encode.key_class(dtype) in ("string", "null")
        ):
            raise AsofError(f"{source.what}: column {column!r} of {view.path} is {dtype}, not a timestamp")
    return source
