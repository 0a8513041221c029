"""Connecting to real Ray heads with a token or mTLS, and what goes wrong with either."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import trustme
from ray.util import get_node_ip_address

from feast_asof.errors import AsofError
from feast_asof.ray_connection import hint

# Tries its arguments, ADDRESS or ADDRESS,RAY or ADDRESS,RAY,PYTHON with other versions, one after the other: a process
# takes seconds to start. A line each.
DRIVER = """
import sys
import ray
from ray._private import utils
from feast_asof.ray_connection import connect
from feast_asof.errors import AsofError
own, info = ray.__version__, utils.compute_version_info
for given in sys.argv[1:]:
    address, _, versions = given.partition(",")
    other = versions.split(",") if versions else []
    ray.__version__ = other[0] if other else own
    utils.compute_version_info = (lambda: (other[0], other[1])) if len(other) > 1 else info
    try:
        connect(address)
        print("answer", ray.get(ray.remote(lambda: 42).remote()))
        ray.shutdown()
    except AsofError as error:
        print("refused", " ".join(str(error).split()))
"""
HOST = get_node_ip_address()  # Ray binds and announces this address, even if localhost is requested
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head(env: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Start a Ray head; yields its GCS address and its client address."""
    gcs, client = free_port(), free_port()
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--include-dashboard=false"]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ports = [f"--port={gcs}", f"--ray-client-server-port={client}"]
        args = [*command, *ports, "--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={folder}"]
        process = subprocess.Popen(
            args, env=CLEAN | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            for port in (gcs, client):
                wait_for(port, process)
            yield f"{HOST}:{gcs}", f"ray://{HOST}:{client}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            socket.create_connection((HOST, port)).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no Ray head on port {port}: it ended with code {process.returncode}")


def drive(env: dict[str, str], *given: str) -> list[str]:
    """What a driver process with this environment says of each address."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *given], env=CLEAN | env, capture_output=True, text=True, check=False
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("answer", "refused"))]
    assert len(said) == len(given), done.stderr[-2000:]
    return said


@pytest.mark.slow
def test_token_authentication() -> None:
    right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}
    with head(right) as (gcs, client):
        assert drive(right, gcs, client) == ["answer 42", "answer 42"]
        for address, said in zip((gcs, client), drive(right | {"RAY_AUTH_TOKEN": "b" * 32}, gcs, client), strict=True):
            assert said.startswith(f"refused cannot use the Ray cluster at {address}")
            assert "RAY_AUTH_TOKEN" in said


@pytest.mark.slow
def test_mutual_tls(tmp_path: Path) -> None:
    ca = trustme.CA()
    own = ca.issue_cert(HOST, "127.0.0.1", "localhost")
    names = {"RAY_TLS_SERVER_CERT": "cert.pem", "RAY_TLS_SERVER_KEY": "key.pem", "RAY_TLS_CA_CERT": "ca.pem"}
    paths = {name: str(tmp_path / file) for name, file in names.items()}
    own.cert_chain_pems[0].write_to_path(paths["RAY_TLS_SERVER_CERT"])
    own.private_key_pem.write_to_path(paths["RAY_TLS_SERVER_KEY"])
    ca.cert_pem.write_to_path(paths["RAY_TLS_CA_CERT"])
    tls = {"RAY_USE_TLS": "1"} | paths
    with head(tls) as (gcs, client):
        assert drive(tls, gcs, client) == ["answer 42", "answer 42"]
        assert drive({}, client)[0].startswith(f"refused cannot use the Ray cluster at {client}")
        missing = drive(tls | {"RAY_TLS_CA_CERT": "/no/ca.pem"}, gcs)[0]
        assert missing.startswith("refused RAY_TLS_CA_CERT=/no/ca.pem: no such file")


@pytest.mark.slow
def test_other_versions_of_ray_and_python() -> None:
    with head({}) as addresses:
        others = ("2.40.0", f"{ray.__version__},3.9.1")
        given = [f"{address},{other}" for address, other in zip(addresses, others, strict=True)]
        for other, said in zip(given, drive({}, *given), strict=True):
            assert other.split(",")[-1] in said
            assert "driver and cluster need the same Ray and the same Python minor version" in said


def test_no_head_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody, wrong = drive({}, f"ray://127.0.0.1:{free_port()}", "ray://somewhere")
    assert nobody.startswith("refused no Ray head answers at ray://127.0.0.1:")
    assert wrong.startswith("refused ray_address 'ray://somewhere': give host:port")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RAY_USE_TLS": "1"}, "RAY_USE_TLS is set but RAY_TLS_SERVER_CERT is not"),
        ({"RAY_AUTH_MODE": "token", "HOME": "/nowhere"}, "RAY_AUTH_MODE=token but there is no token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/token"}, "RAY_AUTH_TOKEN_PATH=/no/token: no such file"),
    ],
)
def test_incomplete_environment(env: dict[str, str], message: str) -> None:
    assert drive(env, "127.0.0.1:1")[0].startswith(f"refused {message}")


def test_hints_say_what_to_do() -> None:
    assert "check the address" in hint("something else")
    assert issubclass(AsofError, ValueError)
