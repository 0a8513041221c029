"""Random joins of both engines against the oracle."""

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_asof import entity_frame, local_engine
from feast_asof.engine import Engine, EngineSettings
from feast_asof.join import Feature, View

KEYS: dict[str, tuple[list[Any], list[pa.DataType]]] = {
    "number": ([None, 0, 1, 11, 111, 127], [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64()]),
    "wide": ([None, -(2**62), 2**53, 2**53 + 1, 2**62], [pa.int64()]),
    "text": (
        [None, "", "1", "11", "111", "ä"],
        [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    ),
    "raw": ([None, b"", b"\x00", b"\x00\x01"], [pa.binary(), pa.large_binary()]),
    "day": ([None, date(1969, 12, 31), date(2024, 2, 29)], [pa.date32(), pa.date64()]),
    "flag": ([None, True, False], [pa.bool_()]),
}
START = 1_709_164_800_000_000_000  # 2024-02-29, nanoseconds
STEPS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
ZONES = st.sampled_from([None, "UTC", "America/New_York", "+05:30"])


def instants(values: list[int | None], unit: str, zone: str | None) -> pa.Array:
    step = STEPS[unit]
    return pa.array([None if v is None else v // step for v in values], pa.int64()).cast(pa.timestamp(unit, zone))


def entity_times(step: int, unit: str, count: int) -> st.SearchStrategy[list[int | None]]:
    """Instants that are a few steps apart, so that ties and edges are common."""
    step = max(STEPS[unit], step)
    steps = st.sampled_from([None, *range(-4, 5), *range(-4, 5)])
    return st.lists(steps, min_size=count, max_size=count).map(
        lambda drawn: [None if n is None else START // step * step + n * step for n in drawn]
    )


def values(name: str, count: int) -> st.SearchStrategy[list[Any]]:
    """Key values, mostly two of them, so that most rows match."""
    pool = KEYS[name][0]
    return st.lists(st.sampled_from([*pool, *pool[1:3] * 3]), min_size=count, max_size=count)


@st.composite
def sources(draw: st.DrawFn, names: list[str], step: int) -> dict[str, Any]:
    """One feature view over a random subset of the keys."""
    keys = draw(st.lists(st.sampled_from(names), max_size=len(names), unique=True))
    count = draw(st.sampled_from([0, 1, 8, 20, 40]))
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    created = draw(st.booleans())
    micro = max(step // 1000, 1)
    return {
        "keys": keys,
        "columns": {key: draw(values(key, count)) for key in keys},
        "types": {key: draw(st.sampled_from(KEYS[key][1])) for key in keys},
        "unit": unit,
        "zone": draw(ZONES),
        "time": draw(entity_times(step, unit, count)),
        "created": draw(entity_times(step, "us", count)) if created else None,
        "group": draw(st.integers(1, 12)),
        "ttl": draw(st.sampled_from([0, 0, 1, micro, 2 * micro, 2 * micro - 1, 25 * 3600 * 10**6])),
        "known_at": created and draw(st.booleans()),
        "files": draw(st.integers(1, 3)),
    }


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Entity rows and up to three views over random subsets of up to three keys."""
    names = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True))
    rows = draw(st.sampled_from([0, 1, 10, 25]))
    unit = draw(st.sampled_from(["s", "us", "ns"]))
    step = draw(st.sampled_from([1, 10**3, 10**9, 86_400 * 10**9]))
    return {
        "entity": {name: draw(values(name, rows)) for name in names},
        "types": {name: draw(st.sampled_from(KEYS[name][1])) for name in names},
        "unit": unit,
        "zone": draw(ZONES),
        "time": draw(entity_times(step, unit, rows)),
        "views": draw(st.lists(sources(names, step), min_size=1, max_size=3)),
    }


def build(case: dict[str, Any], folder: Path) -> tuple[pa.Table, list[View]]:
    """The case as an entity table and Parquet files."""
    columns = {name: pa.array(values, case["types"][name]) for name, values in case["entity"].items()}
    table = pa.table(columns | {"event_timestamp": instants(case["time"], case["unit"], case["zone"])})
    views = []
    for number, view in enumerate(case["views"]):
        count = len(view["time"])
        data = {key: pa.array(values, view["types"][key]) for key, values in view["columns"].items()}
        data["ts"] = instants(view["time"], view["unit"], view["zone"])
        if view["created"] is not None:
            data["made"] = instants(view["created"], "us", None)
        data["row"] = pa.array(range(count), pa.int64())
        data["tags"] = pa.array([None if i % 3 == 2 else [i] * (i % 4) for i in range(count)], pa.list_(pa.float32()))
        source = pa.table(data)
        path = folder / f"view{number}"
        path.mkdir()
        size = -(-max(count, 1) // view["files"])
        for part in range(view["files"]):
            pq.write_table(source.slice(part * size, size), path / f"{part}.parquet", row_group_size=view["group"])
        views.append(
            View(
                name=f"view{number}",
                path=str(path),
                filesystem=None,
                keys=tuple((key, key) for key in view["keys"]),
                timestamp="ts",
                created="made" if view["created"] is not None else None,
                features=(
                    Feature("row", f"row{number}", pa.int64()),
                    Feature("tags", f"tags{number}", pa.list_(pa.float32())),
                ),
                ttl=view["ttl"],
                known_at=view["known_at"],
            )
        )
    return table, views


def check(case: dict[str, Any], result: pa.Table, table: pa.Table, oracle: Callable[..., list[dict[str, Any]]]) -> None:
    """The result has the entity frame's rows in order, and in every cell a value the oracle allows."""
    assert result.select(table.column_names).equals(table)
    times = case["time"]
    for number, view in enumerate(case["views"]):
        rows = [
            {key: values[i] for key, values in view["columns"].items()}
            | {"time": view["time"][i], "created": view["created"][i] if view["created"] else None, "row": i}
            for i in range(len(view["time"]))
        ]
        rule = {"ttl": view["ttl"] * 1000, "known_at": view["known_at"], "created": view["created"] is not None}
        got = result[f"row{number}"].to_pylist()
        tags = result[f"tags{number}"].to_pylist()
        for i, time in enumerate(times):
            entity = {key: values[i] for key, values in case["entity"].items()} | {"time": time}
            allowed = {row["row"] for row in oracle(rows, entity, [(key, key) for key in view["keys"]], rule)} or {None}
            assert got[i] in allowed, (number, i, entity)
            chosen = got[i]
            assert tags[i] == (None if chosen is None or chosen % 3 == 2 else [chosen] * (chosen % 4))


def join_and_compare(
    case: dict[str, Any], engine: Engine, options: EngineSettings, oracle: Callable[..., list[dict[str, Any]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table, views = build(case, Path(folder))
        order = [feature.name for view in views for feature in view.features]
        frame = entity_frame.read(table)
        entity_frame.check(frame.schema, frame.timestamp, views)
        check(case, engine.historical_join(options, frame, views, order).table(), table, oracle)
        path = Path(folder) / "entities.parquet"
        pq.write_table(table, path, row_group_size=3)
        written = engine.historical_join(options, entity_frame.read(path), views, order).parts(
            Path(folder) / "out", None
        )
        read = pa.concat_tables([pq.read_table(part) for part in written])
        check(case, read, pq.read_table(path), oracle)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_local_equals_the_oracle(case: dict[str, Any], oracle: Callable[..., list[dict[str, Any]]]) -> None:
    join_and_compare(case, local_engine, EngineSettings(), oracle)


@pytest.mark.parametrize("plan", ["range by range", "through buckets"])
def test_ray_equals_the_oracle(plan: str, cluster: str, oracle: Callable[..., list[dict[str, Any]]]) -> None:
    from feast_asof import partition, ray_engine

    @settings(max_examples=12, deadline=None)
    @given(case=cases(), rows=st.integers(1, 9))
    def examples(case: dict[str, Any], rows: int) -> None:
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as storage:
            patch.setattr(partition, "part_rows", lambda *_: rows)
            patch.setattr(ray_engine, "SMALL_SOURCE_ROWS", 10**6 if plan == "range by range" else -1)
            patch.setattr(ray_engine, "MAX_READ_FACTOR", 4 if plan == "range by range" else -1)
            join_and_compare(case, ray_engine, EngineSettings(cluster, Path(storage)), oracle)

    examples()
