"""The permissions of a reader in PostgreSQL."""

import os

import psycopg

where = {
    "host": os.environ["FEAST_DB_HOST"],
    "dbname": "feast",
    "user": os.environ["FEAST_DB_USER"],
    "password": os.environ["FEAST_DB_PASSWORD"],
}


def refused(statement: str, reason: str, **changes: str) -> None:
    try:
        with psycopg.connect(**{**where, "sslmode": "verify-full", **changes}) as connection:
            connection.execute(statement)
    except psycopg.Error as error:
        assert reason in str(error), error
    else:
        raise AssertionError(f"{statement} was allowed {changes}")


with psycopg.connect(**where, sslmode="verify-full") as connection:
    tables = [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    assert "feature_views" in tables and len([name for name in tables if name.startswith("salescast_")]) >= 3, tables
    (rows,) = connection.execute("SELECT count(*) FROM feature_views").fetchone()
    assert rows >= 3
refused("DELETE FROM feature_views", "permission denied")
refused("CREATE TABLE mine (i int)", "permission denied")
refused("SELECT 1", "permission denied for database", dbname="mlflow")
refused("SELECT 1", "password authentication failed", password="guessed")
refused("SELECT 1", "no encryption", sslmode="disable")
