"""The rules of docs/feast-asof.md, through Feast and for both engines."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, Field, RequestSource, ValueType
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float32, Float64, Int32, Int64, String

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")


def source(rows: list[tuple[Any, ...]], names: str = "id ts f", id_type: pa.DataType | None = None) -> pa.Table:
    types = {"id": id_type or pa.int64(), "ts": STAMP, "made": STAMP, "f": pa.int64()}
    columns = zip(*rows, strict=True) if rows else [[] for _ in names.split()]
    return pa.table({n: pa.array(list(c), types.get(n)) for n, c in zip(names.split(), columns, strict=True)})


def entity(rows: list[tuple[Any, datetime | None]], id_type: pa.DataType | None = None) -> pa.Table:
    return pa.table(
        {
            "id": pa.array([key for key, _ in rows], id_type or pa.int64()),
            "event_timestamp": pa.array([time for _, time in rows], STAMP),
        }
    )


def ask(repo: Any, customer: Entity, table: pa.Table, frame: Any, **options: Any) -> list[Any]:
    """Feature f of one view at the rows of the frame."""
    known_at = options.pop("known_at", False)
    store = repo.store([customer, repo.view("v", table, [customer], **options)])
    job = store.get_historical_features(frame, ["v:f"], filter_by_created_timestamp=known_at)
    return job.to_arrow()["f"].to_pylist()


def after(**by: float) -> datetime:
    return NOON + timedelta(**by)


def test_newest_at_or_before(repo: Any, customer: Entity) -> None:
    table = source([(1, after(days=-1), 10), (1, NOON, 11), (1, after(microseconds=1), 12)])
    frame = entity([(1, NOON), (1, after(microseconds=-1)), (1, after(days=-2)), (2, NOON), (1, after(days=9))])
    assert ask(repo, customer, table, frame) == [11, 10, None, None, 12]


@pytest.mark.parametrize("hours", [1, 25, 36])
def test_ttl_is_inclusive_and_exact(repo: Any, customer: Entity, hours: int) -> None:
    table = source([(1, NOON, 10)])
    frame = entity([(1, after(hours=hours)), (1, after(hours=hours, microseconds=1))])
    assert ask(repo, customer, table, frame, ttl=timedelta(hours=hours)) == [10, None]


def test_created_decides_ties_even_if_created_later(repo: Any, customer: Entity) -> None:
    rows = [(1, NOON, after(days=9), 11), (1, NOON, None, 12), (1, NOON, after(days=1), 10), (2, NOON, None, 20)]
    options = {"created_timestamp_column": "made"}
    assert ask(repo, customer, source(rows, "id ts made f"), entity([(1, NOON), (2, NOON)]), **options) == [11, 20]


def test_rows_created_later_are_left_out_on_request(repo: Any, customer: Entity) -> None:
    rows = [
        (1, after(days=-3), after(days=-3), 1),
        (1, after(days=-2), after(days=-2), 2),
        (1, after(days=-1), after(days=1), 3),
        (1, NOON, None, 4),
    ]
    options = {"created_timestamp_column": "made", "known_at": True}
    frame = entity([(1, NOON), (1, after(days=1)), (1, after(days=-3)), (1, after(days=-4))])
    assert ask(repo, customer, source(rows, "id ts made f"), frame, **options) == [2, 3, 1, None]


def test_ties_and_duplicates_give_each_entity_row_once(repo: Any, customer: Entity) -> None:
    got = ask(repo, customer, source([(1, NOON, 7), (1, NOON, 7)]), entity([(1, NOON)] * 3))
    assert got == [7, 7, 7]


def test_null_keys_and_times_never_match(repo: Any, customer: Entity) -> None:
    table = source([(None, NOON, 1), (2, None, 2), (3, NOON, 3)])
    assert ask(repo, customer, table, entity([(None, NOON), (2, NOON), (3, NOON), (3, None)])) == [None, None, 3, None]


def test_a_null_key_of_one_view_does_not_affect_others(repo: Any, customer: Entity) -> None:
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
    stocks = pa.table({"shop": ["a"], "ts": pa.array([NOON], STAMP), "g": ["stock"]})
    views = [
        repo.view("v", source([(1, NOON, 5)]), [customer]),
        repo.view("w", stocks, [shop], schema=[Field(name="g", dtype=String)]),
    ]
    store = repo.store([customer, shop, *views])
    frame = entity([(None, NOON), (1, NOON)]).append_column("shop", pa.array(["a", None]))
    result = store.get_historical_features(frame, ["w:g", "v:f"]).to_arrow()
    assert result.column_names == ["id", "event_timestamp", "shop", "g", "f"]
    assert result["g"].to_pylist() == ["stock", None]
    assert result["f"].to_pylist() == [None, 5]


def test_a_null_value_is_not_replaced_by_an_older_one(repo: Any, customer: Entity) -> None:
    assert ask(repo, customer, source([(1, after(days=-1), 1), (1, NOON, None)]), entity([(1, NOON)])) == [None]


def test_time_zones_are_instants(repo: Any, customer: Entity) -> None:
    york = ZoneInfo("America/New_York")
    before, during = datetime(2024, 3, 10, 1, 59, tzinfo=york), datetime(2024, 3, 10, 3, 1, tzinfo=york)
    table = source([(1, before.astimezone(UTC), 1), (1, during.astimezone(UTC), 2)])
    times = [int(time.timestamp()) * 10**6 for time in (before, during, during - timedelta(minutes=1))]
    column = pa.array(times).view(pa.timestamp("us", "America/New_York"))
    frame = pa.table({"id": [1, 1, 1], "event_timestamp": column, "note": ["x", "y", "z"]})
    store = repo.store([customer, repo.view("v", table, [customer])])
    result = store.get_historical_features(frame, ["v:f"]).to_arrow()
    assert result["f"].to_pylist() == [1, 2, 1]
    assert result.select(frame.column_names).equals(frame)


def test_naive_means_utc(repo: Any, customer: Entity) -> None:
    table = source([(1, NOON, 1)])
    naive = table.set_column(1, "ts", table["ts"].cast(pa.timestamp("us")))
    noon = pd.Timestamp("2024-03-10 12:00")
    frame = pd.DataFrame({"id": [1, 1], "event_timestamp": [noon, noon - pd.Timedelta("1us")]})
    store = repo.store([customer, repo.view("v", naive, [customer])])
    result = store.get_historical_features(frame, ["v:f"]).to_df()
    assert result["f"].isna().tolist() == [False, True]
    pd.testing.assert_series_equal(result["event_timestamp"], frame["event_timestamp"])


def test_nanoseconds_are_exact(repo: Any, customer: Entity) -> None:
    instant = NOON.timestamp() * 10**6
    nanos = pa.array([int(instant) * 1000 + n for n in (-1, 0, 1)], pa.int64()).cast(pa.timestamp("ns", "UTC"))
    frame = pa.table({"id": [1, 1, 1], "event_timestamp": nanos})
    assert ask(repo, customer, source([(1, NOON, 1)]), frame, ttl=timedelta(microseconds=1)) == [None, 1, 1]


def test_iso_strings(repo: Any, customer: Entity) -> None:
    texts = [
        "2024-03-10",
        "2024-03-10T12:00:00",
        "2024-03-10 14:00:00.000001+02:00",
        "2024-03-10T11:59:59.999999Z",
        None,
    ]
    frame = pd.DataFrame({"id": [1] * 5, "event_timestamp": texts})
    store = repo.store([customer, repo.view("v", source([(1, NOON, 1)]), [customer])])
    result = store.get_historical_features(frame, ["v:f"]).to_arrow()
    assert result["f"].to_pylist() == [None, 1, 1, None, None]
    assert result["event_timestamp"].to_pylist() == texts


def test_composite_keys_are_not_concatenated(repo: Any) -> None:
    a, b = (Entity(name=n, join_keys=[n], value_type=ValueType.STRING) for n in "ab")
    table = pa.table({"a": ["1", "11"], "b": ["11", "1"], "ts": pa.array([NOON] * 2, STAMP), "f": [1, 2]})
    frame = pa.table({"b": ["1", "11", "111"], "a": ["11", "1", ""], "event_timestamp": pa.array([NOON] * 3, STAMP)})
    store = repo.store([a, b, repo.view("v", table, [a, b])])
    assert store.get_historical_features(frame, ["v:f"]).to_arrow()["f"].to_pylist() == [2, 1, None]


@pytest.mark.parametrize("entity_type", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float64()])
def test_integers_match_by_value(repo: Any, customer: Entity, entity_type: pa.DataType) -> None:
    table = source([(7, NOON, 1)], id_type=pa.int32())
    assert ask(repo, customer, table, entity([(7, NOON), (8, NOON), (None, NOON)], entity_type)) == [1, None, None]


def test_large_integers_stay_exact_in_pandas(repo: Any, customer: Entity) -> None:
    store = repo.store([customer, repo.view("v", source([(1, NOON, 2**53 + 1)]), [customer])])
    frame = store.get_historical_features(entity([(1, NOON), (2, NOON)]), ["v:f"]).to_df()
    assert frame["f"].dtype == pd.Int64Dtype()
    assert frame["f"][0] == 2**53 + 1


def test_declared_types_and_full_names(repo: Any, customer: Entity) -> None:
    table = pa.table(
        {
            "id": [1],
            "ts": pa.array([NOON], STAMP),
            "n": pa.array([3], pa.int64()),
            "x": pa.array([0.5]),
            "v": pa.array([[0.25] * 60], pa.list_(pa.float64())),
        }
    )
    fields = [Field(name="n", dtype=Int32), Field(name="x", dtype=Float32), Field(name="v", dtype=Array(Float32))]
    store = repo.store([customer, repo.view("w", table, [customer], schema=fields)])
    refs = ["w:v", "w:n", "w:x"]
    result = store.get_historical_features(entity([(1, NOON), (9, NOON)]), refs, full_feature_names=True).to_arrow()
    assert result.column_names[2:] == ["w__v", "w__n", "w__x"]
    assert [field.type for field in result.schema][2:] == [pa.list_(pa.float32()), pa.int32(), pa.float32()]
    assert result["w__v"].to_pylist() == [[0.25] * 60, None]


def test_empty_source_and_empty_frame(repo: Any, customer: Entity) -> None:
    assert ask(repo, customer, source([]), entity([(1, NOON)])) == [None]
    store = repo.store([customer, repo.view("v", source([(1, NOON, 1)]), [customer])])
    result = store.get_historical_features(entity([]), ["v:f"]).to_arrow()
    assert result.num_rows == 0
    assert result.column_names == ["id", "event_timestamp", "f"]


def test_the_only_datetime_column_is_the_timestamp(repo: Any, customer: Entity) -> None:
    frame = entity([(1, NOON)]).rename_columns(["id", "ts"])
    store = repo.store([customer, repo.view("v", source([(1, NOON, 1)]), [customer])])
    assert store.get_historical_features(frame, ["v:f"]).to_arrow().column_names == ["id", "ts", "f"]


def test_without_entity_frame(repo: Any, customer: Entity) -> None:
    rows = [
        (1, after(days=-5), 0),
        (1, after(days=-1), 1),
        (1, NOON, 2),
        (2, NOON, 3),
        (2, after(days=3), 4),
        (1, NOON, 2),
    ]
    store = repo.store([customer, repo.view("v", source(rows), [customer])])
    job = store.get_historical_features(features=["v:f"], start_date=after(days=-2), end_date=after(days=1))
    got = [(row["id"], row["event_timestamp"], row["f"]) for row in job.to_arrow().to_pylist()]
    assert got == [(1, after(days=-1), 1), (1, NOON, 2), (2, NOON, 3)]


def test_aliases_field_mapping_and_services(repo: Any, customer: Entity) -> None:
    table = source([(1, NOON, 1), (2, NOON, 2)], "cust when value").set_column(1, "when", pa.array([NOON] * 2, STAMP))
    view = repo.view("v", table, [customer], timestamp="ts", field_mapping={"cust": "id", "when": "ts", "value": "f"})
    store = repo.store([customer, view])
    origin = store.get_feature_view("v").with_name("origin").with_join_key_map({"id": "from"})
    goal = store.get_feature_view("v").with_name("goal").with_join_key_map({"id": "to"})
    service = FeatureService(name="trips", features=[origin, goal])
    store.apply([service])
    frame = pa.table({"from": [1, 2], "to": [2, 5], "event_timestamp": pa.array([NOON] * 2, STAMP)})
    result = store.get_historical_features(
        frame, store.get_feature_service("trips"), full_feature_names=True
    ).to_arrow()
    assert result["origin__f"].to_pylist() == [1, 2]
    assert result["goal__f"].to_pylist() == [2, None]


def _twice(repo: Any, customer: Entity) -> Any:
    view = repo.view("v", source([(1, NOON, 4)]), [customer])

    @on_demand_feature_view(
        sources=[view, RequestSource(name="asked", schema=[Field(name="plus", dtype=Int64)])],
        schema=[Field(name="twice", dtype=Float64)],
    )
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": (inputs["f"] * 2 + inputs["plus"]).astype("float64")})

    return repo.store([customer, view, doubled])


def test_on_demand_views_and_saved_datasets(repo: Any, customer: Entity, tmp_path: Any) -> None:
    store = _twice(repo, customer)
    frame = entity([(1, NOON), (1, after(days=1))]).append_column("plus", pa.array([1, 2]))
    job = store.get_historical_features(frame, ["v:f", "doubled:twice"])
    assert job.to_arrow()["twice"].to_pylist() == [9.0, 10.0]
    saved = store.create_saved_dataset(job, "kept", SavedDatasetFileStorage(str(tmp_path / "kept.parquet")))
    assert saved.to_df()["twice"].tolist() == [9.0, 10.0]
    assert pq.read_table(tmp_path / "kept.parquet")["f"].to_pylist() == [4, 4]
    paths = job.to_remote_storage()
    assert pa.concat_tables([pq.read_table(path) for path in paths])["twice"].to_pylist() == [9.0, 10.0]


@pytest.mark.parametrize("form", ["pandas", "polars", "lazy", "arrow", "batch", "path"])
def test_forms_of_the_entity_frame(repo: Any, customer: Entity, form: str, tmp_path: Any) -> None:
    table = entity([(1, NOON), (2, NOON)])
    pq.write_table(table, tmp_path / "entities.parquet")
    frame = {
        "pandas": table.to_pandas(),
        "polars": pl.DataFrame(table),
        "lazy": pl.DataFrame(table).lazy(),
        "arrow": table,
        "batch": table.to_batches()[0],
        "path": str(tmp_path / "entities.parquet"),
    }[form]
    assert ask(repo, customer, source([(1, NOON, 1)]), frame) == [1, None]


def test_entityless_view(repo: Any, customer: Entity) -> None:
    view = repo.view("rates", source([(after(days=-1), 1), (NOON, 2)], "ts f"), [])
    store = repo.store([view])
    frame = pa.table({"event_timestamp": pa.array([NOON, after(days=-1), after(days=-9)], STAMP)})
    assert store.get_historical_features(frame, ["rates:f"]).to_arrow()["f"].to_pylist() == [2, 1, None]
