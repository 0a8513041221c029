"""Reading and writing the rows of the online store, in SQLite and PostgreSQL."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import psycopg
import pytest
from feast.repo_operations import is_valid_name
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from salescast.errors import UserError
from salescast.feature_store.databases import (
    CREATE,
    DROP,
    Database,
    Postgres,
    Sqlite,
    StoreDownError,
    entity_key,
    open_database,
    read_options,
    table_name,
    with_checksum,
)
from salescast.feature_store.online import OnlineReader
from salescast.schema import TIMESTAMP, planned_columns

WEEK = datetime(2025, 1, 31, tzinfo=UTC)
VIEWS = {
    "sales_features": {"lag_1": pl.Float32(), "month": pl.Int32()},
    "store_features": {"store_type": pl.String(), "store_size": pl.Int64()},
    "seasonal_features": {"recent": pl.List(pl.Float32())},
}


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        yield open_database({"path": "online.db"}, tmp_path)
        return
    options = request.getfixturevalue("postgres")
    database = open_database(options, tmp_path)
    yield database
    assert isinstance(database, Postgres)
    with psycopg.connect(**database.connection) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def put(database: Database, view: str, rows: dict[tuple[int, int], dict[str, object]], week: datetime = WEEK) -> None:
    table = table_name("p", view)
    database.run(CREATE.format(table=table))
    micros = round(week.timestamp() * 1e6)
    keyed = [
        (entity_key({"store_id": store, "dept_id": dept}), orjson.dumps(row).decode())
        for (store, dept), row in rows.items()
    ]
    values = [(key, micros, None, with_checksum(key, micros, features)) for key, features in keyed]
    database.write(table, values)


def fill(database: Database, pairs: list[tuple[int, int]]) -> None:
    put(database, "sales_features", {(s, d): {"lag_1": s + d / 4, "month": d} for s, d in pairs})
    put(database, "store_features", {(s, d): {"store_type": "A", "store_size": 2**40 + s} for s, d in pairs})
    put(database, "seasonal_features", {(s, d): {"recent": [s, None, d / 2]} for s, d in pairs})


def reader(database: Database) -> OnlineReader:
    return OnlineReader(database, "p", VIEWS)


def test_rows_have_the_requested_order_and_their_types_and_week(database: Database) -> None:
    fill(database, [(1, 1), (1, 2), (-7, 2**31 - 1)])
    asked = [(1, 2), (9, 9), (-7, 2**31 - 1), (1, 2)]
    rows = reader(database).read(asked)
    names = ["store_id", "dept_id", TIMESTAMP, *(name for view in VIEWS.values() for name in view)]
    assert list(rows.columns) == names
    assert rows.position.tolist() == [0, -1, 1, 2]
    assert rows.incomplete == {}
    ids = [rows.columns[name].to_pylist() for name in ("store_id", "dept_id")]
    assert list(zip(*ids, strict=True)) == [(1, 2), (-7, 2**31 - 1), (1, 2)]
    assert rows.columns[TIMESTAMP].tolist() == [WEEK.replace(tzinfo=None)] * 3
    assert rows.columns["lag_1"].tolist() == [1.5, float(np.float32(-7 + (2**31 - 1) / 4)), 1.5]
    assert rows.columns["store_size"][0] == 2**40 + 1
    np.testing.assert_array_equal(rows.columns["recent"][0], np.array([1.0, np.nan, 1.0], np.float32))


def test_a_null_is_read_as_missing(database: Database) -> None:
    fill(database, [(1, 1)])
    put(database, "sales_features", {(1, 1): {"lag_1": None, "month": None}})
    put(database, "seasonal_features", {(1, 1): {"recent": None}})
    columns = reader(database).read([(1, 1)]).columns
    np.testing.assert_array_equal([columns["lag_1"][0], columns["month"][0]], [np.nan, np.nan])
    assert columns["recent"].shape == (1, 0)
    put(database, "store_features", {(1, 1): {"store_type": None, "store_size": None}})
    fill(database, [(1, 2)])
    columns = reader(database).read([(1, 1), (1, 2)]).columns
    assert columns["store_type"].to_pylist() == [None, "A"]
    np.testing.assert_array_equal(columns["recent"], np.array([[np.nan] * 3, [1.0, np.nan, 1.0]], np.float32))


@pytest.mark.parametrize(
    ("view", "record"),
    [
        ("sales_features", {"lag_1": "much", "month": 1}),
        ("sales_features", {"lag_1": [1.0], "month": 1}),
        ("store_features", {"store_type": 3, "store_size": 1}),
        ("seasonal_features", {"recent": ["much", 1.0, 1.0]}),
        ("seasonal_features", {"recent": 1.0}),
    ],
)
def test_a_value_of_a_wrong_type_is_an_error(database: Database, view: str, record: dict[str, object]) -> None:
    fill(database, [(1, 1), (1, 2)])
    put(database, view, {(1, 2): record})
    for asked in ([(1, 1), (1, 2)], [(1, 2)]):
        with pytest.raises(StoreDownError, match=f"view {view} holds an invalid value: .*; materialize again"):
            reader(database).read(asked)


def test_a_view_without_the_series_makes_it_incomplete(database: Database) -> None:
    fill(database, [(1, 1), (1, 2)])
    database.run(f'DELETE FROM "{table_name("p", "seasonal_features")}" WHERE entity_key LIKE \'%"dept_id":2,%\'')
    rows = reader(database).read([(1, 1), (1, 2), (5, 5)])
    assert rows.position.tolist() == [0, -1, -1]
    assert rows.incomplete == {1: "no row in ['seasonal_features']"}


def test_views_of_different_weeks_are_not_mixed(database: Database) -> None:
    fill(database, [(1, 1), (1, 2)])
    put(database, "sales_features", {(1, 2): {"lag_1": 1.0, "month": 1}}, WEEK + timedelta(weeks=1))
    put(database, "sales_features", {(1, 1): {"lag_1": 1.0, "month": 1}}, WEEK + timedelta(weeks=1))
    put(database, "seasonal_features", {(1, 1): {"recent": [1.0]}}, WEEK + timedelta(weeks=1))
    rows = reader(database).read([(1, 1), (1, 2)])
    assert rows.position.tolist() == [0, -1]
    assert rows.incomplete == {1: "its feature views are of different weeks"}


# The database stays open for all examples; each uses tables of its own.
examples = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = count()
times = st.tuples(st.integers(0, 3), st.none() | st.integers(0, 2))  # event, created


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), times), max_size=5), max_size=5))
@examples
def test_the_newest_event_time_wins_then_the_newest_created_time(
    database: Database, batches: list[list[tuple[str, tuple[int, int | None]]]]
) -> None:
    table = f"newest{next(numbers)}"
    database.run(CREATE.format(table=table))
    expected: dict[str, tuple[int, int | None, str]] = {}
    written = count()
    for batch in batches:
        rows = [(key, event, created, str(next(written))) for key, (event, created) in batch]
        database.write(table, rows)
        for key, event, created, features in rows:
            before = expected.get(key)
            older = before is not None and (event < before[0] or (event == before[0] and _older(created, before[1])))
            expected[key] = before if before is not None and older else (event, created, features)
    found = database.fetch(f'SELECT entity_key, event_ts, created_ts, features FROM "{table}"', [])
    assert {key: tuple(row) for key, *row in found} == expected


def _older(a: int | None, b: int | None) -> bool:
    """Whether created time `a` is before `b`; a missing one is before all others."""
    return b is not None and (a is None or a < b)


def names(alphabet: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=1, max_size=80)


# What Feast accepts: a project of letters, digits, "_" and "-", a view of anything but "@" and ":".
alike = st.sampled_from("aA_-ä1")
projects = names(alike | st.characters(categories=["L", "Nd"])).filter(is_valid_name)
views = names(alike | st.sampled_from('"%;. \\?{}\x00')) | names(st.characters(codec="utf-8", exclude_characters="@:"))


@given(st.lists(st.tuples(projects, views), min_size=2, max_size=4, unique=True))
@example([("a", "b_c"), ("a_b", "c"), ("a", "B_c"), ("A", "b_c")])
@example([("p", "v"), ("p", 'x"; DROP TABLE p_v_rows; --'), ("p", "100%s"), ("p", "{mark}")])
@example([("sqlite", "v"), ("p", "sqlite")])
@example([("p", "v" * 70 + "1"), ("p", "v" * 70 + "2"), ("ä" * 40, "ö" * 40), ("ä" * 40, "ö" * 41)])
@examples
def test_views_of_any_names_have_separate_rows(database: Database, named: list[tuple[str, str]]) -> None:
    tables = [table_name(project, view) for project, view in named]
    for table in tables:
        database.run(DROP.format(table=table))
    for number, table in enumerate(tables):
        database.run(CREATE.format(table=table))
        key = entity_key({"store_id": 1, "dept_id": 1})
        database.write(table, [(key, 0, None, with_checksum(key, 0, orjson.dumps({"n": number}).decode()))])

    def read(number: int) -> list[float]:
        project, view = named[number]
        found: list[float] = OnlineReader(database, project, {view: {"n": pl.Int32()}}).read([(1, 1)]).columns["n"]
        return list(found)

    assert [read(number) for number in range(len(named))] == [[number] for number in range(len(named))]
    database.run(DROP.format(table=tables[0]))
    assert [read(number) for number in range(1, len(named))] == [[number] for number in range(1, len(named))]
    with pytest.raises(StoreDownError, match="`salescast apply`, then `salescast materialize` make and fill it"):
        read(0)


def test_plain_names_keep_their_table() -> None:
    assert table_name("salescast", "sales_features") == "salescast_sales_features_rows"


@given(st.lists(st.tuples(projects, views), min_size=2, max_size=2, unique=True))
def test_table_names_are_short_plain_and_unique(named: list[tuple[str, str]]) -> None:
    tables = [table_name(project, view) for project, view in named]
    assert len(set(tables)) == 2
    assert all(re.fullmatch("[a-z0-9_]{1,63}", table) for table in tables)


@pytest.mark.parametrize("schema", ["Mine", 'my "own\\ one"', "a,b", "100%"])
def test_a_schema_of_any_name_is_used(postgres: dict[str, str], tmp_path: Path, schema: str) -> None:
    admin = open_database(postgres, tmp_path)
    quoted = schema.replace('"', '""')
    admin.run(f'CREATE SCHEMA "{quoted}"')
    database = open_database({**postgres, "db_schema": schema}, tmp_path)
    fill(database, [(1, 1)])
    assert reader(database).read([(1, 1)]).position.tolist() == [0]
    found = admin.fetch(
        "SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_name LIKE 'p%%rows'", []
    )
    assert found == [(schema,)]
    admin.run(f'DROP SCHEMA "{quoted}" CASCADE')


@pytest.mark.parametrize("fails", [False, True])
def test_replacing_rows_is_atomic(database: Database, fails: bool) -> None:
    fill(database, [(1, 1), (1, 2)])
    tables = [table_name("p", view) for view in VIEWS]
    before = reader(database).read([(1, 1), (1, 2), (3, 3)]).position.tolist()
    seen = []

    def rows() -> Iterator[tuple[str, int, None, str]]:
        """Rows that read the store while they are written."""
        key = entity_key({"store_id": 3, "dept_id": 3})
        seen.append(reader(database).read([(1, 1), (1, 2), (3, 3)]).position.tolist())
        yield key, 0, None, with_checksum(key, 0, '{"lag_1":1,"month":1,"store_type":"A","store_size":1,"recent":[1]}')
        seen.append(reader(database).read([(1, 1), (1, 2), (3, 3)]).position.tolist())
        if fails:
            raise OSError

    def replace() -> None:
        database.replace({table: rows() for table in tables})

    if fails:
        with pytest.raises(OSError):
            replace()
    else:
        replace()
    assert len(seen) == (2 if fails else 6) and all(positions == before for positions in seen)
    after = reader(database).read([(1, 1), (1, 2), (3, 3)]).position.tolist()
    assert after == (before if fails else [-1, -1, 0])


def test_a_feature_that_the_store_lacks_is_an_error(database: Database) -> None:
    fill(database, [(1, 1), (1, 2)])
    put(database, "sales_features", {(1, 2): {"month": 1}})
    with pytest.raises(StoreDownError, match=r"sales_features has no feature 'lag_1'; apply and materialize again"):
        reader(database).read([(1, 1), (1, 2)])


def test_lists_of_different_lengths_are_an_error(database: Database) -> None:
    fill(database, [(1, 1), (1, 2)])
    put(database, "seasonal_features", {(1, 2): {"recent": [1.0]}})
    with pytest.raises(StoreDownError, match="view seasonal_features holds an invalid value"):
        reader(database).read([(1, 1), (1, 2)])


def test_planned_inputs_are_read(database: Database) -> None:
    fill(database, [(1, 1)])
    record = {"recent": [1.0], "planned_promo": [0.0, 1.0], "planned_promo_recent": 0.5, "other": 3}
    put(database, "seasonal_features", {(1, 1): record})
    planned = planned_columns(["planned_promo", "planned_promo_recent", "other"])
    views = VIEWS | {"seasonal_features": {**VIEWS["seasonal_features"], **planned}}
    columns = OnlineReader(database, "p", views).read([(1, 1)]).columns
    assert columns["planned_promo"].tolist() == [[0.0, 1.0]]
    assert columns["planned_promo_recent"].tolist() == [0.5]
    assert "other" not in columns


def test_a_store_without_tables_is_down(database: Database) -> None:
    put(database, "store_features", {})
    with pytest.raises(StoreDownError, match="_features_rows"):
        reader(database).ping()
    fill(database, [])
    reader(database).ping()
    assert reader(database).read([(1, 1)]).position.tolist() == [-1]


def test_a_replaced_sqlite_file_is_noticed(tmp_path: Path) -> None:
    first, second = Sqlite(tmp_path / "a.db", 1.0), Sqlite(tmp_path / "b.db", 1.0)
    fill(first, [(1, 1)])
    fill(second, [(2, 2)])
    subject = reader(first)
    assert subject.read([(2, 2)]).position.tolist() == [-1]
    (tmp_path / "b.db").replace(tmp_path / "a.db")
    assert subject.read([(2, 2)]).position.tolist() == [0]


def test_reading_creates_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreDownError, match="unable to open database file"):
        reader(Sqlite(tmp_path / "no.db", 1.0)).ping()
    assert not (tmp_path / "no.db").exists()


def test_a_database_that_never_answers_is_an_error_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = open_database({"host": "127.0.0.1", "port": port, "database": "x", "user": "x"}, Path(), timeout=0.5)
        start = time.monotonic()
        with pytest.raises(StoreDownError, match=f"PostgreSQL 127.0.0.1:{port}"):
            reader(database).ping()
        assert time.monotonic() - start < 30  # it ends; a busy machine may be slow


def test_a_hanging_connection_is_closed_and_the_next_read_works(postgres: dict[str, str], tmp_path: Path) -> None:
    database = open_database(postgres, tmp_path, timeout=0.5)
    with pytest.raises(StoreDownError):
        database.fetch("SELECT pg_sleep(30)", [])
    assert database.fetch("SELECT 1", []) == [(1,)]


def test_a_read_survives_closed_connections(postgres: dict[str, str], tmp_path: Path) -> None:
    database = open_database(postgres, tmp_path, timeout=5)
    assert isinstance(database, Postgres)
    assert database.fetch("SELECT 1", []) == [(1,)]
    with psycopg.connect(**database.connection, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert database.fetch("SELECT 2", []) == [(2,)]


def test_many_threads_share_few_connections(postgres: dict[str, str], tmp_path: Path) -> None:
    database = open_database(postgres, tmp_path, timeout=20)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(database.fetch("SELECT %s::int", [n])[0][0]))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(20))


def test_options_are_read_as_feast_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "s:e@c/r#t")
    yaml = tmp_path / "feature_store.yaml"
    yaml.write_text(
        "project: p\nonline_store:\n"
        "  type: salescast.feature_store.online_store.RowOnlineStore\n  host: db\n  port: 5433\n"
        '  database: d\n  user: u\n  password: "${DB_PASSWORD}"\n  db_schema: public\n  sslmode: require\n'
    )
    project, options = read_options(yaml)
    assert project == "p"
    database = open_database(options, tmp_path)
    assert isinstance(database, Postgres)
    assert database.connection == {
        "host": "db", "port": 5433, "dbname": "d", "user": "u", "password": "s:e@c/r#t", "sslmode": "require",
        "options": '-c search_path="public"',
    }  # fmt: skip


def test_errors_of_the_configuration_are_explained(tmp_path: Path) -> None:
    yaml = tmp_path / "feature_store.yaml"
    with pytest.raises(UserError, match=r"no .*feature_store.yaml; run `salescast apply` first"):
        read_options(yaml)
    yaml.write_text("project: p\nonline_store:\n  type: redis\n")
    with pytest.raises(UserError, match=r"online_store type 'redis' cannot be served from; run `salescast apply`"):
        read_options(yaml)
    with pytest.raises(UserError, match=r"needs `path` \(SQLite\) or `host` \(PostgreSQL\), got \['type'\]"):
        open_database({"type": "x"}, tmp_path)
