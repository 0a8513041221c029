"""A server for the one call of the Kubernetes API that the manifests' scripts make."""

import json
from http.server import BaseHTTPRequestHandler

from cluster import NAMESPACE


class KubernetesApi(BaseHTTPRequestHandler):
    """Server-side apply of secrets: changing a key that another owner has set is a conflict unless forced."""

    stored: dict[str, dict[str, str]]

    def do_PATCH(self) -> None:
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        path, _, query = self.path.partition("?")
        name = path.removeprefix(f"/api/v1/namespaces/{NAMESPACE}/secrets/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert "force=true" not in query and "fieldManager=salescast-secrets-" in query
        assert body["metadata"] == {"name": name, "namespace": NAMESPACE}
        known = self.stored.get(name)
        status = 403 if known is None else 409 if known and known != body["data"] else 200
        if status == 200:
            self.stored[name] = body["data"]
        answer = json.dumps({"kind": "Status", "code": status} if status != 200 else body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass
