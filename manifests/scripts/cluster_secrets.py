"""Secrets of the cluster, generated at random inside it.

cluster_secrets.py create                        fill the declared secrets that are still empty
cluster_secrets.py certificate --authority DIR --out DIR NAME...
                                                 a certificate for this pod's address and names
"""

import argparse
import base64
import datetime
import ipaddress
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

logger = logging.getLogger("cluster_secrets")
VALID = datetime.timedelta(days=730)
CONFLICT = 409


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self, name: str) -> dict[str, str]:
        """`name.crt` and `name.key`, PEM."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = self.certificate.public_bytes(serialization.Encoding.PEM)
        return {f"{name}.crt": certificate.decode(), f"{name}.key": key.decode()}


def _builder(subject: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # the clocks of nodes may differ
        .not_valid_after(now + VALID)
    )


def authority(name: str) -> Pair:
    """A new certificate authority for certificates of servers and clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, key, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


def issue(signer: Pair, names: Sequence[str], addresses: Sequence[str] = ()) -> Pair:
    """A certificate of a server and client that is valid for these DNS names and IP addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    valid_for: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    valid_for += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    signer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    certificate = (
        _builder(names[0], key, signer.certificate.subject)
        .add_extension(x509.SubjectAlternativeName(valid_for), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(signer_key, critical=False)
        .sign(signer.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def service_names(service: str, namespace: str) -> list[str]:
    """The DNS names of a Service inside the cluster."""
    return [service, f"{service}.{namespace}", f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"]


def contents(namespace: str) -> dict[str, dict[str, str]]:
    """Secret name -> key -> value. Values that depend on each other are in one secret."""
    services = authority("salescast services")  # its key is not kept: it signs nothing else
    ray = authority("feast-ray")  # its key signs the certificate of every Ray node
    password = secrets.token_urlsafe(24)
    uri = f"postgresql+psycopg://mlflow:{password}@postgres:5432/mlflow?sslmode=verify-full"
    return {
        "postgres": {f"{role}-password": secrets.token_urlsafe(24) for role in ("admin", "feast", "feast-reader")},
        "mlflow": {
            "db-password": password,
            "db-uri": uri,
            "basic_auth.ini": f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {uri}\n",
            "username": "salescast",
            "password": secrets.token_urlsafe(24),
            "session-key": secrets.token_hex(32),
        },
        "feast-ray-auth": {"auth_token": secrets.token_hex(32)},
        "feast-ray-tls": {**ray.pem("ca"), **issue(ray, ["feast-ray-client"]).pem("client")},
        "service-tls": {
            "ca.crt": services.pem("ca")["ca.crt"],
            **issue(services, service_names("postgres", namespace)).pem("postgres"),
            **issue(services, service_names("mlflow", namespace)).pem("mlflow"),
            **issue(services, service_names("feast-server", namespace)).pem("feast-server"),
        },
        "oauth-proxy": {"cookie-secret": secrets.token_urlsafe(24)},  # 32 characters: the length of an AES-256 key
    }


def fill(api: client.ApiClient, namespace: str, name: str, values: dict[str, str]) -> bool:
    """Write the values of an empty secret; False if it has values already.

    This is a server-side apply by an owner of its own, without force: the API server answers 409 if another owner has
    set a key to another value. So the Job needs no permission to read, and cannot overwrite.
    """
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }
    owner = f"salescast-secrets-{secrets.token_hex(8)}"
    try:
        api.call_api(
            f"/api/v1/namespaces/{namespace}/secrets/{name}",
            "PATCH",
            query_params=[("fieldManager", owner), ("force", "false")],
            header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
    except ApiException as error:
        if error.status == CONFLICT:
            return False
        raise
    return True


def create(namespace: str) -> None:
    config.load_incluster_config()
    api = client.ApiClient()
    for name, values in contents(namespace).items():
        logger.info("secret %s: %s", name, "filled" if fill(api, namespace, name, values) else "kept")


def certificate(folder: Path, out: Path, services: Sequence[str], namespace: str, address: str) -> None:
    """Write `tls.crt`, `tls.key` and `ca.crt` for this pod into `out`, signed by `ca.crt`/`ca.key` in `folder`."""
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SystemExit(f"{folder / 'ca.key'} is not an elliptic-curve key; delete the secret and apply again")
    signer = Pair(x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), key)
    names = [name for service in services for name in service_names(service, namespace)]
    files = issue(signer, names, [address, "127.0.0.1"]).pem("tls") | {"ca.crt": signer.pem("ca")["ca.crt"]}
    for name, text in files.items():
        (out / name).write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("create")
    one = commands.add_parser("certificate")
    one.add_argument("--authority", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("names", nargs="+")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    namespace = os.environ["POD_NAMESPACE"]
    if arguments.command == "create":
        create(namespace)
    else:
        certificate(arguments.authority, arguments.out, arguments.names, namespace, os.environ["POD_IP"])


if __name__ == "__main__":
    main()
