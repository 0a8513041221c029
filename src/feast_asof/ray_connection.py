"""Connect to a Ray cluster, with token or mTLS as the environment says, and explain why a cluster cannot be used."""

import os
import socket
from pathlib import Path

import ray
import tenacity

from feast_asof.errors import AsofError

CERTIFICATES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
CONNECT_SECONDS = 10

# A busy head may be too slow to start the process that serves a client, find its port in use, or fail on a process that
# has just ended (psutil.ZombieProcess). Another attempt gets another process and port.
retry = tenacity.retry(
    retry=tenacity.retry_if_exception_message(match="(?s).*(Starting Ray client server failed|psutil.ZombieProcess)"),
    stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_fixed(2),
    reraise=True,
)


def check_environment() -> None:
    """Raise AsofError if TLS or token authentication is requested and its files are missing."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        for name in CERTIFICATES:
            path = os.environ.get(name)
            if not path:
                raise AsofError(f"RAY_USE_TLS is set but {name} is not: set it to the path of a PEM file")
            if not Path(path).is_file():
                raise AsofError(f"{name}={path}: no such file; mTLS needs certificate, key and CA of this client")
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        if path and not Path(path).is_file():
            raise AsofError(
                f"RAY_AUTH_TOKEN_PATH={path}: no such file; mount the secret that holds the cluster's token"
            )
        if not (path or os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").is_file()):
            raise AsofError("RAY_AUTH_MODE=token but there is no token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")


def check_reachable(address: str) -> None:
    """Raise AsofError if nothing listens at host:port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        raise AsofError(f"ray_address {address!r}: give host:port, for example ray://feast-ray-head-svc:10001")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise AsofError(
            f"no Ray head answers at {address}: {error}; is the cluster up, and the address right?"
        ) from error


def connect(address: str | None) -> None:
    """Connect this process to Ray once; later calls do nothing.

    Args:
        address: ray://host:port, host:port, or None for RAY_ADDRESS, else a Ray of this machine.

    Raises:
        AsofError: unreachable head, wrong token or certificate, another version of Ray or Python.
    """
    if ray.is_initialized():
        return
    check_environment()
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address and ":" in address:
        check_reachable(address)
    try:
        retry(ray.init)(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise AsofError(f"cannot use the Ray cluster at {address or 'this machine'}: {hint(reason(error))}") from error


def reason(error: BaseException) -> str:
    """The first message in the chain of errors, on one line without a traceback; some of Ray's errors have none."""
    link: BaseException | None = error
    while link is not None and not str(link).strip():
        link = link.__cause__ or link.__context__
    message = str(link).strip() if link is not None else type(error).__name__
    return " ".join((message.splitlines()[-1] if "Traceback" in message else message).split())


def hint(message: str) -> str:
    """Ray's message and what to do."""
    text = message.lower()
    if "version" in text:
        return f"{message}: driver and cluster need the same Ray and the same Python minor version"
    if "token" in text or "authenticat" in text or "unauthorized" in text:
        return f"{message}: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
    return f"{message}: check the address, RAY_AUTH_MODE and RAY_AUTH_TOKEN, RAY_USE_TLS and its certificates"
