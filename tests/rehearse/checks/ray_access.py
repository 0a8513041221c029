"""Who may use the Ray cluster: only clients with the token and a certificate of its authority."""

import os
import subprocess
import sys
import tempfile

import httpx

PROGRAM = """
import ray
from feast_asof import ray_connection
ray_connection.connect(None)
print("alive", len([node for node in ray.nodes() if node["Alive"]]))
"""


def use(**changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **changes},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


good = use()
if "Starting Ray client server failed" in good.stderr:  # Ray waits only 30 s, which may be too short on a busy machine
    good = use()
assert good.returncode == 0 and "alive 2" in good.stdout, good.stdout + good.stderr
wrong_token = use(RAY_AUTH_TOKEN="0" * 64)
assert wrong_token.returncode != 0, wrong_token.stdout
with tempfile.TemporaryDirectory() as folder:
    subject = ["-subj", "/CN=stranger", "-days", "1", "-keyout", f"{folder}/key", "-out", f"{folder}/crt"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject], check=True, capture_output=True
    )
    stranger = use(RAY_TLS_SERVER_CERT=f"{folder}/crt", RAY_TLS_SERVER_KEY=f"{folder}/key")
assert stranger.returncode != 0, stranger.stdout
dashboard = "http://feast-ray-head-svc:8265/api/jobs/"
assert httpx.get(dashboard).status_code == 401
assert httpx.get(dashboard, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}).status_code == 200
