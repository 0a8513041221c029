"""`salescast serve`: checks that cost nothing, then the server with what it imports."""

import os
import socket
import tempfile
from pathlib import Path

from salescast.config import Workdir, settings
from salescast.errors import UserError


def main(workdir: Workdir, model_dir: Path | None, http_port: int, grpc_port: int, workers: int | None = None) -> None:
    """Serve the bundle in `model_dir` with the features of the workdir's online store until SIGTERM or SIGINT.

    Raises UserError for a port that is taken, a missing bundle and a missing feature repo.
    """
    folder = model_dir or settings().model_dir or workdir.models
    if not folder.is_dir():
        raise UserError(f"no model bundle in {folder}; run `salescast train` first or give --model-dir")
    for name, port in (("HTTP", http_port), ("gRPC", grpc_port)):
        _check_free(name, port)
    count = workers or settings().serve_workers
    with tempfile.TemporaryDirectory(prefix="salescast-metrics-") as metrics:
        if count > 1:  # prometheus_client looks at this once, when it is imported
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        from salescast import server

        server.run(folder, workdir.feature_repo, http_port, grpc_port, count)


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            raise UserError(f"{name} port {port} cannot be used: {error.strerror}; choose another one") from None
