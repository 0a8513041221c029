"""The rows of the online store: one row of JSON per entity and feature view, in SQLite or PostgreSQL.

Feast's own SQL stores have one row per entity *and feature*: 630 series of 45 features are 28,350 rows, and each has a
protobuf message to parse in Python, which takes 154 ms on 2 cores. Here they are 1,890 rows of JSON, parsed by column.
`online_store` builds Feast's interface (apply, materialize, get_online_features) on these rows. This module does not
import Feast, because that import would slow the start of the server.
"""

import hashlib
import os
import re
import socket
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import orjson
import polars as pl
import tenacity
import yaml

from salescast.errors import UserError
from salescast.runtime import extras

if TYPE_CHECKING:
    import psycopg
    from psycopg_pool import ConnectionPool


Key = tuple[int, int]  # store_id, dept_id
Row = tuple[Any, ...]
Parameter = str | list[str]  # a list of keys in the form of a database

CHECKSUM: Final = 8  # characters of the checksum after a row's features
WRITE_TIMEOUT: Final = 60.0  # seconds that a SQLite writer waits for another writer
# Types of the parsed numbers. A float32 is written in the fewest digits that identify it, so it is parsed as float32.
NUMPY_TYPES: Final[dict[pl.DataType, type[np.floating[Any]]]] = {
    pl.Float32(): np.float32,
    pl.Int32(): np.float64,
    pl.Int64(): np.float64,
    pl.List(pl.Float32()): np.float32,
}

CREATE: Final = (
    'CREATE TABLE IF NOT EXISTS "{table}" (entity_key TEXT PRIMARY KEY, event_ts BIGINT NOT NULL, '
    "created_ts BIGINT, features TEXT NOT NULL)"
)
DROP: Final = 'DROP TABLE IF EXISTS "{table}"'
# The row with the newest event time wins, then the newest created time (none counts as oldest), then the last written.
UPSERT: Final = (
    'INSERT INTO "{table}" VALUES ({mark}, {mark}, {mark}, {mark}) ON CONFLICT (entity_key) DO UPDATE SET '
    "event_ts = excluded.event_ts, created_ts = excluded.created_ts, features = excluded.features "
    f"WHERE (excluded.event_ts, COALESCE(excluded.created_ts, {-(1 << 62)})) >= "
    f'("{{table}}".event_ts, COALESCE("{{table}}".created_ts, {-(1 << 62)}))'
)
CLEAR: Final = 'DELETE FROM "{table}"'
PLAIN_PROJECT: Final = re.compile("(?!sqlite$)[a-z0-9]+")  # SQLite reserves names that begin with sqlite_
PLAIN_VIEW: Final = re.compile("[a-z0-9_]+")
LONGEST_NAME: Final = 63  # bytes; PostgreSQL truncates longer names
NO_TABLE: Final = "; `salescast apply`, then `salescast materialize` make and fill it"


class StoreDownError(Exception):
    """The online store did not answer in time or gave an invalid answer; the message says what happened."""


class Database(Protocol):
    """What the online store needs of a database; SQL dialects differ in parameter marks and lists of keys."""

    mark: str
    among_keys: str  # a condition on entity_key with one parameter

    def keys(self, keys: Sequence[str]) -> Parameter: ...
    def fetch(self, sql: str, parameters: Sequence[Parameter | int]) -> list[Row]: ...
    def run(self, sql: str) -> None: ...
    def write(self, table: str, rows: Iterable[Row]) -> None: ...
    def replace(self, tables: Mapping[str, Iterable[Row]]) -> None: ...


class Sqlite:
    """A file that is opened for each use (0.1 ms), so that a replaced file is noticed."""

    mark = "?"
    among_keys = "entity_key IN (SELECT value FROM json_each(?))"

    def __init__(self, path: Path, timeout: float) -> None:
        self.path, self.timeout = path, timeout

    def keys(self, keys: Sequence[str]) -> str:
        return orjson.dumps(keys).decode()

    def fetch(self, sql: str, parameters: Sequence[Parameter | int]) -> list[Row]:
        try:
            with closing(
                sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=self.timeout)
            ) as file:
                return file.execute(sql, parameters).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            advice = NO_TABLE if str(error).startswith("no such table") else ""
            raise StoreDownError(f"SQLite {self.path}: {error}{advice}") from error

    def run(self, sql: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=WRITE_TIMEOUT)) as file, file:
            file.execute(sql)

    def write(self, table: str, rows: Iterable[Row]) -> None:
        """Insert rows; one that is older than the stored row of its entity is ignored."""
        with closing(sqlite3.connect(self.path, timeout=WRITE_TIMEOUT)) as file, file:
            file.executemany(UPSERT.format(table=table, mark=self.mark), rows)

    def replace(self, tables: Mapping[str, Iterable[Row]]) -> None:
        """Replace all rows of the tables, in one transaction."""
        connection = sqlite3.connect(self.path, timeout=WRITE_TIMEOUT, isolation_level="IMMEDIATE")
        with closing(connection) as file:
            file.execute("PRAGMA cache_spill = OFF")  # block readers only during the commit
            with file:
                for table, rows in tables.items():
                    file.execute(CLEAR.format(table=table))
                    file.executemany(UPSERT.format(table=table, mark=self.mark), rows)


class Postgres:
    """A pool of connections. Every read ends within `timeout` seconds, with rows or StoreDownError."""

    mark = "%s"
    among_keys = "entity_key = ANY(%s)"

    def __init__(self, connection: Mapping[str, Any], timeout: float, pool_size: int = 4) -> None:
        self.connection, self.timeout, self.pool_size = dict(connection), timeout, pool_size
        self._pool: ConnectionPool[psycopg.Connection] | None = None
        self._opening = threading.Lock()

    def keys(self, keys: Sequence[str]) -> list[str]:
        return list(keys)

    def fetch(self, sql: str, parameters: Sequence[Parameter | int]) -> list[Row]:
        import psycopg  # not needed with SQLite

        # After a restart of the database the pool holds dead connections; each is replaced when its use fails.
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
            wait=tenacity.wait_exponential_jitter(initial=0.02, max=0.2, jitter=0.02),
            stop=tenacity.stop_after_delay(self.timeout),
            reraise=True,
        )
        try:
            return attempts(self._fetch, sql, parameters)
        except psycopg.Error as error:
            where = f"{self.connection.get('host')}:{self.connection.get('port')}"
            advice = NO_TABLE if isinstance(error, psycopg.errors.UndefinedTable) else ""
            raise StoreDownError(f"PostgreSQL {where}: {str(error).strip() or type(error).__name__}{advice}") from error

    def _fetch(self, sql: str, parameters: Sequence[Parameter | int]) -> list[Row]:
        with self._open().connection() as connection:
            # A database that does not answer ignores requests to cancel, too: close the socket instead.
            hang_up = threading.Timer(self.timeout, _shut_down, [connection.fileno()])
            hang_up.start()
            try:
                return connection.execute(sql.encode(), parameters, binary=True).fetchall()
            finally:
                hang_up.cancel()

    def _open(self) -> "ConnectionPool[psycopg.Connection]":
        from psycopg_pool import ConnectionPool

        with self._opening:
            if self._pool is None:
                self._pool = ConnectionPool(
                    kwargs={**self.connection, "autocommit": True, "connect_timeout": max(2, round(self.timeout))},
                    min_size=1,
                    max_size=self.pool_size,
                    timeout=self.timeout,
                    # Give up early; the next request tries again, without the long pauses of the pool's backoff.
                    reconnect_timeout=self.timeout,
                    open=True,
                )
            return self._pool

    def run(self, sql: str) -> None:
        import psycopg

        with psycopg.connect(**self.connection) as connection:
            connection.execute(sql.encode())

    def write(self, table: str, rows: Iterable[Row]) -> None:
        """Insert rows; one that is older than the stored row of its entity is ignored."""
        import psycopg

        with psycopg.connect(**self.connection) as connection, connection.cursor() as cursor:
            cursor.executemany(UPSERT.format(table=table, mark=self.mark).encode(), rows)

    def replace(self, tables: Mapping[str, Iterable[Row]]) -> None:
        """Replace all rows of the tables, in one transaction."""
        import psycopg

        with psycopg.connect(**self.connection) as connection, connection.cursor() as cursor:
            for table in sorted(tables):  # always in the same order: no deadlock between two writers
                # Blocks other writers but not readers, who see the rows from before.
                cursor.execute(f'LOCK TABLE "{table}" IN SHARE ROW EXCLUSIVE MODE'.encode())
                cursor.execute(CLEAR.format(table=table).encode())
                cursor.executemany(UPSERT.format(table=table, mark=self.mark).encode(), tables[table])


def _shut_down(descriptor: int) -> None:
    """Close a connection that another thread waits for; that thread then gets an error."""
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def open_database(options: Mapping[str, Any], repo: Path, timeout: float = 5.0) -> Database:
    """The database that an `online_store:` section names: `path` for SQLite, else `host` and so on for PostgreSQL.

    `timeout`: seconds that a read may take. Raises UserError if it names neither, and for PostgreSQL without psycopg.
    """
    if options.get("path"):
        return Sqlite(repo / options["path"], timeout)
    if not options.get("host"):
        raise UserError(f"online_store needs `path` (SQLite) or `host` (PostgreSQL), got {sorted(options)}")
    extras.require(extras.POSTGRES)
    schema = options.get("db_schema") or "public"
    connection = {name: options[name] for name in ("host", "user", "password", "sslmode") if options.get(name)}
    connection |= {"port": int(options.get("port") or 5432), "dbname": options["database"]}
    # Quoted as in SQL; in `options`, backslashes escape backslashes and white space.
    path = re.sub(r"[\\\s]", r"\\\g<0>", '"' + schema.replace('"', '""') + '"')
    return Postgres({**connection, "options": f"-c search_path={path}"}, timeout)


def read_options(feature_store_yaml: Path) -> tuple[str, dict[str, Any]]:
    """Project and `online_store:` section of a feature_store.yaml, with ${VARIABLES} expanded as Feast does.

    Raises UserError for a missing file or another kind of online store.
    """
    if not feature_store_yaml.is_file():
        raise UserError(f"no {feature_store_yaml}; run `salescast apply` first or correct SALESCAST_FEATURE_STORE_YAML")
    config = yaml.safe_load(os.path.expandvars(feature_store_yaml.read_text()))
    options = config.get("online_store") or {}
    if options.get("type") != "salescast.feature_store.online_store.RowOnlineStore":
        raise UserError(
            f"{feature_store_yaml}: online_store type {options.get('type')!r} cannot be served from; "
            "run `salescast apply` and `salescast materialize` again"
        )
    return config["project"], options


def entity_key(values: Mapping[str, Any]) -> str:
    """The key of an entity in its table: JSON with sorted names."""
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode()


def table_name(project: str, view: str) -> str:
    """The table of a view: unique, and only of `a-z`, `0-9` and `_`, whatever the names contain.

    Plain names are used as they are; the project then has no `_`, so that it ends at the first one. Other names get a
    digest, since databases truncate long names and some ignore case.
    """
    name = f"{project}_{view}_rows"
    if PLAIN_PROJECT.fullmatch(project) and PLAIN_VIEW.fullmatch(view) and len(name) <= LONGEST_NAME:
        return name
    readable = re.sub("[^a-z0-9_]", "_", f"{project}_{view}".lower())[:24]
    digest = hashlib.sha256(orjson.dumps([project, view])).hexdigest()[:32]
    return f"_{readable}_{digest}_rows"  # no project begins with `_`


def select(database: Database, tables: Sequence[str], keys: Sequence[str]) -> list[Row]:
    """Rows (index of the table, entity_key, event_ts in microseconds, JSON) of `keys`, by one statement.

    Raises StoreDownError, also for a row with a wrong checksum.
    """
    one = f'SELECT {{number}}, entity_key, event_ts, features FROM "{{table}}" WHERE {database.among_keys}'
    sql = " UNION ALL ".join(one.format(number=number, table=table) for number, table in enumerate(tables))
    rows = database.fetch(sql, [database.keys(keys)] * len(tables))
    for _, key, time, features in rows:
        if with_checksum(key, time, features[:-CHECKSUM]) != features:
            raise StoreDownError(f"the row of {key} is damaged; materialize again")
    return [(number, key, time, features[:-CHECKSUM]) for number, key, time, features in rows]


def with_checksum(key: str, time: int, features: str) -> str:
    """The features with a checksum: a flipped bit in a database file must not become a wrong forecast."""
    return f"{features}{zlib.crc32(f'{key}{time}{features}'.encode()):08x}"
