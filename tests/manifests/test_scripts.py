"""The script for secrets: valid certificates, values that agree, and no secret is overwritten."""

import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest
from cluster import MANIFESTS, NAMESPACE
from kube_api import KubernetesApi
from kubernetes import client

sys.path.append(str(MANIFESTS / "scripts"))
import cluster_secrets


def _handshake(folder: Path, authority: str, name: str) -> None:
    """A TLS handshake in memory in which both sides use the certificate in `folder`; raises ssl.SSLError."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority)
    server.verify_mode = ssl.CERT_REQUIRED
    caller = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=authority)
    for context in (server, caller):
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        caller.wrap_bio(back, there, server_hostname=name),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    for name, text in cluster_secrets.contents(NAMESPACE)["feast-ray-tls"].items():
        (tmp_path / name).write_text(text)
    cluster_secrets.certificate(tmp_path, tmp_path, ["feast-ray-head-svc"], NAMESPACE, "10.1.2.3")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["10.1.2.3", "127.0.0.1", "feast-ray-head-svc", f"feast-ray-head-svc.{NAMESPACE}.svc.cluster.local"]
)
def test_a_pods_certificate_is_valid_for_its_names_and_address(pod: Path, name: str) -> None:
    _handshake(pod, (pod / "ca.crt").read_text(), name)


@pytest.mark.parametrize("name", ["10.1.2.4", "postgres"])
def test_a_pods_certificate_is_invalid_for_other_names(pod: Path, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        _handshake(pod, (pod / "ca.crt").read_text(), name)


def test_another_authority_is_refused(pod: Path) -> None:
    other = cluster_secrets.contents(NAMESPACE)["feast-ray-tls"]["ca.crt"]
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(pod, other, "10.1.2.3")


def test_services_certificates_cannot_join_ray(tmp_path: Path) -> None:
    made = cluster_secrets.contents(NAMESPACE)
    (tmp_path / "tls.crt").write_text(made["service-tls"]["postgres.crt"])
    (tmp_path / "tls.key").write_text(made["service-tls"]["postgres.key"])
    _handshake(tmp_path, made["service-tls"]["ca.crt"], "postgres")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(tmp_path, made["feast-ray-tls"]["ca.crt"], "postgres")
    assert "ca.key" not in made["service-tls"]


def test_values_agree_and_are_random() -> None:
    one, other = cluster_secrets.contents(NAMESPACE), cluster_secrets.contents(NAMESPACE)
    mlflow = one["mlflow"]
    assert (
        f"mlflow:{mlflow['db-password']}@postgres:5432" in mlflow["db-uri"]
        and mlflow["db-uri"] in mlflow["basic_auth.ini"]
    )
    assert "%" not in mlflow["basic_auth.ini"]  # which MLflow's configuration parser would expand
    assert len(one["oauth-proxy"]["cookie-secret"]) == 32
    fixed = {("mlflow", "username")}
    for name, values in one.items():
        for key, value in values.items():
            assert ((name, key) in fixed) is (value == other[name][key])
            assert value == value.strip() or value.endswith("\n")


@pytest.fixture
def api() -> Iterator[tuple[client.ApiClient, dict[str, dict[str, str]]]]:
    stored: dict[str, dict[str, str]] = {}
    server = HTTPServer(("127.0.0.1", 0), type("Api", (KubernetesApi,), {"stored": stored}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    yield client.ApiClient(configuration), stored
    server.shutdown()


def test_an_empty_secret_is_filled_once(api: tuple[client.ApiClient, dict[str, dict[str, str]]]) -> None:
    core, stored = api
    stored["postgres"] = {}
    values = cluster_secrets.contents(NAMESPACE)["postgres"]
    assert cluster_secrets.fill(core, NAMESPACE, "postgres", values)
    first = dict(stored["postgres"])
    assert set(first) == set(values)
    again = cluster_secrets.contents(NAMESPACE)["postgres"]
    assert not cluster_secrets.fill(core, NAMESPACE, "postgres", again)
    assert stored["postgres"] == first


def test_a_refusal_of_the_api_ends_the_job(api: tuple[client.ApiClient, dict[str, dict[str, str]]]) -> None:
    core, _ = api
    with pytest.raises(client.exceptions.ApiException, match="403"):
        cluster_secrets.fill(core, NAMESPACE, "undeclared", {"key": "value"})
