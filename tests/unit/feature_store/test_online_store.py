"""The rows as a Feast online store: Feast and the server read the same values."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.type_map import python_values_to_proto_values
from feast.types import Array, Float32, Int32, Int64, String
from hypothesis import given
from hypothesis import strategies as st

from salescast.data import dataset
from salescast.feature_store import repo
from salescast.feature_store.databases import open_database
from salescast.feature_store.online import OnlineReader
from salescast.feature_store.online_store import RowOnlineStore, _json, _nan
from salescast.pipeline import stages
from salescast.schema import TRAINING_SERVICE
from salescast.serving.served import service_views
from salescast.workdir import Workdir

COLUMNS = {"number": Float32, "count": Int32, "size": Int64, "kind": String, "weeks": Array(Float32)}
TYPES = {
    "number": pl.Float32(),
    "count": pl.Int32(),
    "size": pl.Int64(),
    "kind": pl.String(),
    "weeks": pl.List(pl.Float32()),
}
PAIRS = [(1, 1), (1, 2), (45, 99), (-3, 2**31 - 1)]
WEEK = datetime(2025, 1, 31, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgres"])
def filled(request: pytest.FixtureRequest, tmp_path: Path):
    """A Feast repo with one view of PAIRS, applied and materialized, and the online store's options."""
    options = {"path": "online.db"} if request.param == "sqlite" else request.getfixturevalue("postgres")
    frame = pl.DataFrame(
        {
            "store_id": pl.Series([store for store, _ in PAIRS], dtype=pl.Int32),
            "dept_id": pl.Series([dept for _, dept in PAIRS], dtype=pl.Int32),
            "event_timestamp": [WEEK] * len(PAIRS),
            "number": pl.Series([0.1, None, -0.0, 3.4e38], dtype=pl.Float32),
            "count": pl.Series([1, 2, None, -(2**31)], dtype=pl.Int32),
            "size": pl.Series([None, 2**62, 0, 1], dtype=pl.Int64),
            "kind": ["A", None, "", '\u00fc"\\'],
            "weeks": pl.Series([[1.5, 2.5], [0.1, -0.1], [3.0, 4.0], [5.0, 6.0]], dtype=pl.List(pl.Float32)),
        }
    ).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
    frame.write_parquet(tmp_path / "view.parquet")
    config = RepoConfig(
        project="p",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.db"},
        online_store={"type": "salescast.feature_store.online_store.RowOnlineStore", **options},
        offline_store={"type": "dask"},
        entity_key_serialization_version=3,
        repo_path=tmp_path,
    )
    store = FeatureStore(config=config)
    entities = [Entity(name=name, join_keys=[name], value_type=ValueType.INT32) for name in ("store_id", "dept_id")]
    view = FeatureView(
        name="view",
        entities=entities,
        schema=[Field(name=name, dtype=dtype) for name, dtype in COLUMNS.items()],
        source=FileSource(name="source", path=str(tmp_path / "view.parquet"), timestamp_field="event_timestamp"),
        ttl=None,
    )
    store.apply([*entities, view])
    store.write_to_online_store("view", frame.to_pandas())
    yield store, view, options, frame
    store.teardown()


def plain(column: Any) -> list[Any]:
    """A column as Python values, None = missing."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in column.tolist()]


def test_feast_and_the_server_read_what_feast_wrote(filled, tmp_path: Path) -> None:
    store, _, options, frame = filled
    asked = [*reversed(PAIRS), (7, 7), PAIRS[0]]
    rows = [{"store_id": s, "dept_id": d} for s, d in asked]
    feast = store.get_online_features(features=[f"view:{name}" for name in COLUMNS], entity_rows=rows).to_dict()
    ours = OnlineReader(open_database(options, tmp_path), "p", {"view": TYPES}).read(asked)
    assert ours.position.tolist() == [0, 1, 2, 3, -1, 4]
    known = [number for number, at in enumerate(ours.position) if at >= 0]
    for name in COLUMNS:
        read = plain(ours.columns[name])
        assert [feast[name][number] for number in known] == read, name
        assert feast[name][4] is None
        original = dict(zip(PAIRS, frame[name].to_list(), strict=True))
        assert read == [original[asked[number]] for number in known], name
    assert ours.columns["event_timestamp"].tolist() == [WEEK.replace(tzinfo=None)] * 5


def test_a_second_write_replaces_the_row_and_a_removed_view_its_table(filled, tmp_path: Path) -> None:
    store, view, options, frame = filled
    newer = frame[:1].with_columns(
        number=pl.lit(7.0, pl.Float32), event_timestamp=pl.col("event_timestamp").dt.offset_by("7d")
    )
    store.write_to_online_store("view", newer.to_pandas())
    reader = OnlineReader(open_database(options, tmp_path), "p", {"view": TYPES})
    read = reader.read(PAIRS[:2]).columns
    assert plain(read["number"]) == [7.0, None]
    assert read["event_timestamp"][0] - read["event_timestamp"][1] == np.timedelta64(7, "D")
    store.apply([], objects_to_delete=[view], partial=False)
    with pytest.raises(Exception, match="p_view_rows"):
        reader.ping()


@pytest.mark.fault(
    "an older row pushed, backfilled or written after a newer one",
    "the newest event time stays, then the newest created time",
)
def test_an_older_row_that_arrives_late_is_ignored(filled, tmp_path: Path) -> None:
    store, view, options, frame = filled
    reader = OnlineReader(open_database(options, tmp_path), "p", {"view": TYPES})

    def write(*rows: tuple[int, float]) -> None:
        """Rows of the first pair: days after WEEK, number."""
        parts = [
            frame[:1].with_columns(
                number=pl.lit(number, pl.Float32), event_timestamp=pl.col("event_timestamp").dt.offset_by(f"{day}d")
            )
            for day, number in rows
        ]
        store.write_to_online_store("view", pl.concat(parts).to_pandas())

    def read() -> list[float]:
        found: list[float] = reader.read(PAIRS[:1]).columns["number"].tolist()
        return found

    write((7, 7.0), (-7, 1.0))
    assert read() == [7.0]
    write((0, 2.0))
    store.materialize(WEEK - timedelta(days=1), WEEK + timedelta(days=1))  # a backfill
    assert read() == [7.0]
    write((7, 8.0))
    assert read() == [8.0]
    online, config = RowOnlineStore(), store.config
    key = EntityKey(join_keys=["dept_id", "store_id"], entity_values=[Value(int32_val=1), Value(int32_val=1)])
    for created, number in ((2, 20.0), (1, 10.0), (None, 0.0), (3, 30.0)):
        at = None if created is None else WEEK + timedelta(hours=created)
        row = (
            key,
            {**dict.fromkeys(COLUMNS, Value()), "number": Value(float_val=number)},
            WEEK + timedelta(days=9),
            at,
        )
        online.online_write_batch(config, view, [row], None)
        assert read() == [max(number, 20.0)]


HOSTILE = 'x"; DROP TABLE "p_view_rows"; -- 100%s \'ä'


def test_a_view_of_any_name_works_and_affects_no_other(filled, tmp_path: Path) -> None:
    store, view, options, frame = filled
    hostile = FeatureView(name=HOSTILE, entities=[], schema=view.schema, source=view.batch_source, ttl=None)
    hostile.entities, hostile.entity_columns = view.entities, view.entity_columns
    store.apply([hostile])
    store.refresh_registry()
    assert OnlineReader(open_database(options, tmp_path), "p", {"view": TYPES}).read(PAIRS[:1]).position.tolist() == [0]
    other = frame.with_columns(count=pl.lit(99, pl.Int32))
    store.write_to_online_store(HOSTILE, other.to_pandas())
    asked = {"features": ["view:count", f"{HOSTILE}:count"], "entity_rows": [{"store_id": 1, "dept_id": 1}]}
    assert store.get_online_features(**asked, full_feature_names=True).to_dict() == {
        "store_id": [1], "dept_id": [1], "view__count": [1], f"{HOSTILE}__count": [99],
    }  # fmt: skip
    store.apply([], objects_to_delete=[hostile], partial=False)
    left = OnlineReader(open_database(options, tmp_path), "p", {"view": TYPES}).read(PAIRS)
    assert left.position.tolist() == [0, 1, 2, 3]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_float32_values_survive_json(values: list[float]) -> None:
    record = {"a": Value(float_val=values[0]), "b": Value(float_list_val=FloatList(val=values)), "c": Value()}
    back = orjson.loads(_json(record))
    assert np.float32(back["a"]) == np.float32(values[0])
    assert np.array_equal(np.array(back["b"], dtype=np.float32), np.array(values, dtype=np.float32))
    assert back["c"] is None


def test_nan_is_missing_and_other_types_keep_their_values() -> None:
    record = {
        "nan": Value(float_val=math.nan),
        "list": Value(float_list_val=FloatList(val=[1.0, math.nan])),
        "int": Value(int64_val=2**53 + 1),
        "text": Value(string_val='a"ü'),
        "double": Value(double_val=0.1),
        "flag": Value(bool_val=False),
    }
    assert orjson.loads(_json(record)) == {
        "nan": None, "list": [1.0, None], "int": 2**53 + 1, "text": 'a"ü', "double": 0.1, "flag": False,
    }  # fmt: skip


def test_a_null_in_a_list_is_nan_for_feast() -> None:
    found = python_values_to_proto_values([_nan([None, 1.0]), _nan(None)], ValueType.FLOAT_LIST)
    assert math.isnan(found[0].float_list_val.val[0]) and found[0].float_list_val.val[1] == 1.0
    assert found[1].WhichOneof("val") is None


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    work = Workdir(tmp_path_factory.mktemp("applied"))
    build(work, 2, 58)
    repo.apply(work)
    return work


def build(work: Workdir, stores: int, weeks: int) -> None:
    dataset.generate(work.raw, stores, 2, weeks, 42)
    stages.features_stage(work, work.raw, 4)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_online_store_holds_exactly_the_series_of_the_data(
    applied: Workdir, kind: str, request: pytest.FixtureRequest
) -> None:
    work = applied
    options = {"path": "online_store.db"} if kind == "sqlite" else request.getfixturevalue("postgres")
    path = work.feature_repo / "feature_store.yaml"
    config = yaml.safe_load(path.read_text())
    config["online_store"] = {"type": config["online_store"]["type"], **options}
    path.write_text(yaml.safe_dump(config))
    store = repo.open_store(work)
    views = [store.get_feature_view(name) for name in repo.VIEWS]
    RowOnlineStore().update(store.config, [], views, [], [], False)  # as applying does
    database = open_database(options, work.feature_repo)
    reader = OnlineReader(database, "salescast", service_views(TRAINING_SERVICE))
    asked = [(store, dept) for store in range(1, 5) for dept in (1, 2)]

    def read() -> tuple[list[int], list[str]]:
        rows = reader.read(asked)
        assert rows.incomplete == {}
        return rows.position.tolist(), sorted({str(week)[:10] for week in rows.columns["event_timestamp"]})

    build(work, 4, 60)
    assert repo.materialize(work) == 8
    assert read() == (list(range(8)), ["2024-03-29"])
    # Two stores are gone and the data end earlier; the online store follows.
    build(work, 2, 58)
    assert repo.materialize(work) == 4
    assert read() == ([0, 1, 2, 3, -1, -1, -1, -1], ["2024-03-15"])
