"""Missing and old features, replaced and broken bundles, many clients, clients that disconnect, SIGTERM under load."""

import asyncio
import contextlib
import json
import math
import re
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import httpx
import pytest

from salescast.config import Settings
from salescast.feature_store.databases import CHECKSUM, with_checksum
from salescast.serving.availability import BusyError, RateLimit, UnavailableError
from salescast.serving.forecaster import Forecaster
from salescast.serving.protocol_v1 import Query

from .conftest import PREDICT, READY, Running, World, answers, wait

Serve = Callable[..., AbstractContextManager[Running]]
ONE = {"instances": [{"store_id": 1, "dept_id": 1}]}
ALL = {"instances": [{"store_id": store, "dept_id": dept} for store in range(1, 26) for dept in range(1, 21)]}


@pytest.fixture(scope="module")
def root(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.copy(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def running(root: Path, serve: Serve) -> Iterator[Running]:
    with serve(root, SALESCAST_MODEL_POLL_SECONDS="0.2") as server:
        yield server


def change_store(root: Path, sql: str) -> None:
    """Run SQL on the online store; its function `checked(entity_key, event_ts, features)` renews the checksum."""
    with closing(sqlite3.connect(root / "feature_repo" / "online_store.db")) as file, file:
        file.create_function("checked", 3, lambda key, time, features: with_checksum(key, time, features[:-CHECKSUM]))
        file.execute(sql)


def post(client: httpx.Client, body: object = ONE) -> tuple[int, dict]:
    answer = client.post(PREDICT, json=body)
    return answer.status_code, answer.json()


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


# --- features ---


@pytest.mark.fault("online rows missing, of other weeks, damaged; tables and file gone", "400 or 503 that says so")
def test_features_missing_partly_missing_and_back(running: Running, root: Path) -> None:
    store = root / "feature_repo" / "online_store.db"
    shutil.copyfile(store, root / "kept.db")
    two = {"instances": [{"store_id": 2, "dept_id": 2}, {"store_id": 1, "dept_id": 1}]}
    with running.client() as client:
        change_store(
            root, 'DELETE FROM salescast_seasonal_features_rows WHERE entity_key = \'{"dept_id":1,"store_id":1}\''
        )
        status, body = post(client, two)
        assert (status, body["error"]) == (
            503,
            "features of instances[1] (store_id 1, dept_id 1): no row in ['seasonal_features']; materialize again",
        )
        assert post(client, {"instances": two["instances"][:1]})[0] == 200
        change_store(
            root,
            "UPDATE salescast_sales_features_rows SET event_ts = event_ts + 604800000000, features = "
            "checked(entity_key, event_ts + 604800000000, features)",
        )
        status, body = post(client, {"instances": two["instances"][:1]})
        assert status == 503
        assert "its feature views are of different weeks" in body["error"]
        for view in ("sales", "store", "seasonal"):
            change_store(root, f"DELETE FROM salescast_{view}_features_rows")
        status, body = post(client, two)
        assert status == 400
        assert "instances[0] (store_id 2, dept_id 2) is unknown" in body["error"]
        shutil.copyfile(root / "kept.db", store)
        change_store(root, "UPDATE salescast_store_features_rows SET features = replace(features, '1', '2')")
        status, body = post(client, two)
        assert status == 503
        assert "is damaged; materialize again" in body["error"]
        change_store(root, "DROP TABLE salescast_sales_features_rows")
        status, body = post(client, two)
        assert status == 503
        assert "no such table: salescast_sales_features_rows" in body["error"]
        store.unlink()
        status, body = post(client, two)
        assert (status, "unable to open database file" in body["error"]) == (503, True)
        assert client.get(READY).status_code == 503
        shutil.copyfile(root / "kept.db", store)
        assert post(client, two)[0] == 200
        assert client.get(READY).status_code == 200


def test_features_that_are_too_old(world: World, tmp_path: Path) -> None:
    def age(root: Path, **limit: float) -> float:
        forecaster = Forecaster(root / "models", root / "feature_repo", Settings(**limit))
        return asyncio.run(forecaster.answer(lambda _: Query([(1, 1), (2, 2)], 2, (0.1,)))).feature_age_days

    assert age(world.root) > 14  # generated data has no age limit
    imported = world.copy(tmp_path / "imported")
    change_dataset(imported, source="sales.csv")
    with pytest.raises(UnavailableError) as caught:
        age(imported)
    assert re.fullmatch(
        r"features of instances\[0\] are [0-9.]+ days old, at most 14 are allowed; import newer sales and materialize, "
        "or set SALESCAST_MAX_FEATURE_AGE_DAYS",
        caught.value.reason,
    )
    assert age(imported, max_feature_age_days=math.inf) > 14
    for days, allowed in ((13.9, True), (14.1, False)):
        ago = round((time.time() - days * 86_400) * 1e6)
        for view in ("sales", "store", "seasonal"):
            change_store(
                imported,
                f"UPDATE salescast_{view}_features_rows SET event_ts = {ago}, features = "
                f"checked(entity_key, {ago}, features)",
            )
        if allowed:
            assert age(imported) == pytest.approx(days, abs=0.05)
        else:
            with pytest.raises(UnavailableError, match=r"14\.1 days old"):
                age(imported)
    (imported / "data" / "dataset.json").unlink()
    with pytest.raises(UnavailableError, match=r"14\.1 days old"):
        age(imported)


def change_dataset(root: Path, **values: str) -> None:
    path = root / "data" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- bundles ---


def put_bundle(source: Path, target: Path) -> None:
    """Replace a bundle as a copy tool does: write beside it, then rename."""
    beside, old = target.with_name("beside"), target.with_name("old")
    shutil.copytree(source, beside)
    target.rename(old)
    beside.rename(target)
    shutil.rmtree(old)


@pytest.mark.fault("the served bundle replaced under load", "no request fails")
def test_a_new_bundle_is_picked_up_without_a_failed_request(running: Running, root: Path, world: World) -> None:
    statuses: list[int] = []
    versions: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with running.client() as client:
            while not stop.is_set():
                status, body = post(client)
                statuses.append(status)
                versions.append(body.get("model_version", ""))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait(lambda: len(versions) > 10, running)
    first = versions[0]
    put_bundle(world.other_bundle, root / "models")
    wait(lambda: versions[-1] != first, running)
    put_bundle(world.root / "models", root / "models")
    wait(lambda: versions[-1] == first, running)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert len(set(versions)) == 2


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


BROKEN: dict[str, Callable[[Path], None]] = {
    "a weight changed": lambda folder: _flip(folder / "model_final.pt"),
    "weights cut off": lambda folder: _truncate(folder / "model_final.pt"),
    "no scalers": lambda folder: (folder / "scalers.json").unlink(),
    "metadata cut off": lambda folder: _truncate(folder / "model_metadata.json"),
    "empty metadata": lambda folder: (folder / "model_metadata.json").write_text('{"format": 1}'),
    "metadata is a list": lambda folder: (folder / "model_metadata.json").write_text("[]"),
}


@pytest.mark.fault("the served bundle replaced by a broken one", "refused; the current model is kept")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_bundle_is_refused_and_the_current_one_kept(
    running: Running, root: Path, world: World, tmp_path: Path, name: str
) -> None:
    with running.client() as client:
        before = metric(client, 'salescast_bundle_reloads_total{outcome="refused"}')
        version = post(client)[1]["model_version"]
        shutil.copytree(world.other_bundle, tmp_path / "bundle")
        BROKEN[name](tmp_path / "bundle")
        put_bundle(tmp_path / "bundle", root / "models")
        wait(
            lambda: metric(client, 'salescast_bundle_reloads_total{outcome="refused"}') > before,
            running,
        )
        assert f"new bundle refused, keeping {version}" in running.log.read_text()
        status, body = post(client)
        assert (status, body["model_version"]) == (200, version)
        assert client.get(READY).status_code == 200
    put_bundle(world.root / "models", root / "models")


# --- clients ---


def test_200_clients_at_once(running: Running) -> None:
    with running.client() as client:
        expected = post(client)[1]["predictions"]

    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    with ThreadPoolExecutor(200) as crowd, httpx.Client(base_url=running.url, timeout=None, limits=limits) as client:
        answers_ = list(crowd.map(lambda _: client.post(PREDICT, json=ONE), range(400)))
    got = [(answer.status_code, answer.json().get("predictions")) for answer in answers_]
    assert {status for status, _ in got} == {200}
    for _, predictions in got:
        assert predictions[0]["forecast"] == pytest.approx(expected[0]["forecast"], rel=1e-6)  # type: ignore[index]


def request_bytes(body: object) -> bytes:
    content = json.dumps(body).encode()
    return f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


@pytest.mark.fault("clients disconnect in the middle of a request", "the others are answered")
def test_clients_that_disconnect_cause_no_error(running: Running) -> None:
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    with running.client() as client:
        errors = metric(client, 'salescast_requests_total{outcome="error"')
        for part in (1.0, 0.5, 1.0) * 15:
            content = request_bytes(ALL)
            with socket.create_connection(address) as connection:
                connection.sendall(content[: int(len(content) * part)])
        assert post(client)[0] == 200
        assert metric(client, 'salescast_requests_total{outcome="error"') == errors
        assert "Traceback" not in running.log.read_text()


def test_one_bad_request_does_not_affect_others_of_its_batch(running: Running) -> None:
    bad = {"instances": [{"store_id": 1, "dept_id": 999}]}

    with ThreadPoolExecutor(30) as crowd, running.client() as client:
        statuses = list(crowd.map(lambda n: post(client, bad if n % 3 == 0 else ONE)[0], range(90)))
    assert statuses == [400 if number % 3 == 0 else 200 for number in range(90)]


# --- limits ---


@pytest.mark.fault("more requests than the server accepts", "429 at once; accepted ones are answered")
def test_requests_beyond_the_limit_are_answered_429(world: World, serve: Serve) -> None:
    with serve(world.root, SALESCAST_MAX_WAITING="600") as server, server.client() as client:
        with ThreadPoolExecutor(24) as crowd:
            answered = list(crowd.map(lambda _: client.post(PREDICT, json=ALL), range(48)))
        assert {answer.status_code for answer in answered} == {200, 429}
        refused = next(answer for answer in answered if answer.status_code == 429)
        assert re.fullmatch(
            r"\d+ series are waiting for forecasts already; try again in a moment", refused.json()["error"]
        )
        assert refused.headers["retry-after"] == "1"
        assert post(client, ALL)[0] == 200, "a single request is accepted, however large"
        busy = sum(answer.status_code == 429 for answer in answered)
        assert metric(client, 'salescast_requests_total{outcome="busy"') == busy


def test_requests_a_second_are_limited_if_configured(world: World, serve: Serve) -> None:
    with serve(world.root, SALESCAST_MAX_REQUESTS_PER_SECOND="3") as server, server.client() as client:
        statuses = [post(client)[0] for _ in range(12)]
        assert statuses[:3] == [200] * 3 and 429 in statuses
        wait(lambda: post(client)[0] == 200, server)
        assert client.get(READY).status_code == 200, "probes are not counted"


def test_the_rate_holds_over_time_with_bursts_of_one_second() -> None:
    now = [0.0]
    rate = RateLimit(2.0, clock=lambda: now[0])

    def taken(count: int) -> int:
        done = 0
        for _ in range(count):
            with contextlib.suppress(BusyError):
                rate.check()
                done += 1
        return done

    assert [taken(5), taken(1)] == [2, 0]
    now[0] += 0.5
    assert taken(5) == 1
    now[0] += 3600
    assert taken(9) == 2
    with pytest.raises(BusyError, match="more than 2 requests a second; try again in a moment"):
        rate.check()
    RateLimit(None).check()


def test_inputs_outside_the_training_range_are_counted(running: Running, root: Path) -> None:
    name = "salescast_inputs_outside_training_total"
    with running.client() as client:
        change_store(
            root,
            "UPDATE salescast_seasonal_features_rows SET features = checked(entity_key, event_ts, "
            "replace(features, '\"deviation\":', '\"deviation\":99')) "
            'WHERE entity_key = \'{"dept_id":1,"store_id":1}\'',
        )
        before = metric(client, name)
        assert post(client)[0] == 200
        assert metric(client, name) > before


# --- signals ---


def test_sighup_loads_a_new_bundle_and_sigterm_ends_the_server(world: World, serve: Serve, tmp_path: Path) -> None:
    root = world.copy(tmp_path / "work")
    with serve(root, SALESCAST_MODEL_POLL_SECONDS="3600") as server:
        with server.client() as client:
            first = post(client)[1]["model_version"]
            put_bundle(world.other_bundle, root / "models")
            server.process.send_signal(signal.SIGHUP)
            wait(lambda: post(client)[1]["model_version"] != first, server)
        _terminate_under_load(server)


@pytest.mark.fault("SIGTERM under load", "requests in progress are answered, then exit code 0")
def test_two_workers_share_their_metrics_and_end_together(root: Path, serve: Serve) -> None:
    with serve(root, workers=2) as server:
        for _ in range(12):  # a new connection each time, so that both workers answer
            with server.client() as client:
                assert post(client)[0] == 200
        counts = set()
        for _ in range(6):
            with server.client() as client:
                counts.add(metric(client, "salescast_instances_total"))
        assert counts == {12.0}
        _terminate_under_load(server)


def _terminate_under_load(server: Running) -> None:
    """Requests that the server has begun to read are answered; it then ends by itself with code 0."""
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    connections = [socket.create_connection(address) for _ in range(24)]
    for connection in connections:  # every connection is known to the server before the request that counts
        connection.sendall(request_bytes(ONE))
    assert all(_answer(connection) == 200 for connection in connections)
    for connection in connections:
        connection.sendall(request_bytes(ALL))
    assert _answer(connections[0]) == 200  # they are in progress
    server.process.send_signal(signal.SIGTERM)
    statuses = [_answer(connection) for connection in connections[1:]]
    assert server.process.wait() == 0, server.log.read_text()
    assert statuses == [200] * 23
    assert not answers(server.url + READY)
    for connection in connections:
        connection.close()


def _answer(connection: socket.socket) -> int:
    """The status of one complete answer, 0 if it is cut off."""
    content = b""
    while b"\r\n\r\n" not in content:
        part = connection.recv(65536)
        if not part:
            return 0
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    length = int(
        next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    )
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            return 0
        body += part
    json.loads(body)
    return int(head.split()[1])
