import http.server
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from salescast.config import read
from salescast.errors import UserError
from salescast.tracking.mlflow import check


class Handler(http.server.BaseHTTPRequestHandler):
    """Something that answers HTTP."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_answers_is_fine(server: str) -> None:
    check(server)


def test_a_server_with_a_certificate_of_its_own_authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import trustme

    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="certificate verify failed"):
            check(f"https://localhost:{server.server_port}", attempts=1)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "ca.crt"))
        read.cache_clear()
        check(f"https://localhost:{server.server_port}")
        server.shutdown()
    read.cache_clear()


def test_a_server_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 does not answer .*MLFLOW_TRACKING_URI=off"):
        check("http://127.0.0.1:9", attempts=1)


def test_a_file_store_needs_a_writable_folder(tmp_path: Path) -> None:
    check(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UserError, match="in a folder that cannot be written"):
        check("sqlite:////proc/1/new/mlflow.db")


def test_a_name_in_a_damaged_store_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE some_table (a NOT NULL)")
        file.execute("INSERT INTO some_table VALUES (1)")
        file.execute("PRAGMA writable_schema = 1")
        file.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'some_table', CAST(x'e3ff' AS TEXT)), "
            "name = CAST(x'e3ff' AS TEXT), tbl_name = CAST(x'e3ff' AS TEXT), rootpage = 77"
        )
        file.commit()
    with pytest.raises(UserError, match="is damaged"):
        check(f"sqlite:///{path}")
