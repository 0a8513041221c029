"""Plain reads of one source: the rows between two times, all or the newest of every entity."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_asof import asof, encode, gather
from feast_asof.partition import Chunk
from feast_asof.snapshot import Snapshot
from feast_asof.source import Source, bound


@dataclass(frozen=True)
class Columns:
    """The columns of a plain read: `names` in the file (None: all), and a `constant` (name, value) column to add."""

    path: str
    filesystem: Any
    keys: list[str]
    names: list[str] | None
    timestamp: str
    created: str | None
    constant: tuple[str, str] | None

    def open(self, snapshot: Snapshot) -> Source:
        """Its Parquet files. Raises AsofError, see `Source.open`."""
        return Source.open("the source", self.path, self.filesystem, snapshot)


def _micros(time: datetime | None) -> int | None:
    if time is None:
        return None
    return int(pa.scalar(time, pa.timestamp("us", "UTC")).value)


def within(source: Source, timestamp: str, start: datetime | None, end: datetime | None) -> Source:
    """The row groups that can hold rows between two times."""
    dtype = source.type_of(timestamp)
    return source.within(
        {timestamp: (bound(_micros(start), dtype, True, "us"), bound(_micros(end), dtype, False, "us"))}
    )


def between(rows: Source | Chunk, of: Columns, start: datetime | None, end: datetime | None) -> pa.Table:
    """The rows with start <= timestamp <= end (None: no bound; naive: UTC), without those of null timestamps."""
    first, last, timestamp = _micros(start), _micros(end), of.timestamp
    rows = within(rows, timestamp, start, end) if isinstance(rows, Source) else rows
    names = of.names if of.names is not None else rows.schema.names
    table = rows.read(list(dict.fromkeys([*names, timestamp])))
    values, unit = encode.instants(table[timestamp])
    scale = 1000 if unit == "ns" else 1
    keep = np.asarray(values.is_valid())
    if first is not None:
        keep &= encode.ints(values) >= first * scale
    if last is not None:
        keep &= encode.ints(values) <= last * scale
    table = table.select(list(dict.fromkeys(names)))
    return table if keep.all() else table.filter(pa.array(keep))


def newest(table: pa.Table, of: Columns) -> pa.Table:
    """The newest row of every key; ties go to the one created last, then to the later row. Null keys are dropped."""
    keys, timestamp, created = of.keys, of.timestamp, of.created
    missing = [np.asarray(pc.is_null(table[key])) for key in keys if table[key].null_count]
    if missing:
        table = table.filter(pa.array(~np.logical_or.reduce(missing)))
    codes = [encode.key_codes(encode.flat(table[key]), encode.flat(table[key])[:0], key) for key in keys]
    time, unit = encode.instants(table[timestamp])
    timed = [(time, unit)]
    if created:
        timed.append(encode.instants(table[created]))
    values, *rest = encode.same_unit({unit for _, unit in timed}, timed)
    age = gather.nulls_to_min(rest[0], timed[1][0].is_null()) if rest else None
    rows = asof.latest(asof.combine(codes, table.num_rows, 0), asof.Side(values, age))
    parts = gather.slices(rows)
    return pa.table({name: gather.gather(table[name], parts, None, name) for name in table.column_names})


def newest_of(chunk: Chunk, of: Columns, start: datetime | None, end: datetime | None) -> pa.Table:
    """The newest row of every entity in one chunk."""
    return newest(between(chunk, of, start, end), of)
