"""Create roles and databases in PostgreSQL and an empty Feast registry; can run again.

    feast         owns database `feast`: applies definitions, materializes
    feast_reader  reads it: training, feature server, model server
    mlflow        owns database `mlflow`

Environment: FEAST_DB_* as the feature repo uses them, PGPASSWORD (the superuser's), FEAST_READER_PASSWORD,
MLFLOW_DB_PASSWORD, PGSSLROOTCERT.
"""

import logging
import os
from pathlib import Path

import psycopg
from feast import FeatureStore, Project
from psycopg import sql
from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_delay, wait_fixed

logger = logging.getLogger("database_roles")
REPO = Path(__file__).parents[2] / "feature_repo"


@retry(
    retry=retry_if_exception_type(psycopg.OperationalError),
    wait=wait_fixed(3),
    stop=stop_after_delay(300),
    before_sleep=before_sleep_log(logger, logging.INFO),
    reraise=True,
)
def connect(database: str) -> psycopg.Connection:
    """A connection of the superuser, as soon as PostgreSQL answers."""
    return psycopg.connect(
        host=os.environ["FEAST_DB_HOST"],
        port=os.environ["FEAST_DB_PORT"],
        sslmode=os.environ["FEAST_DB_SSLMODE"],
        user="postgres",
        dbname=database,
        autocommit=True,
    )


def role(connection: psycopg.Connection, name: str, password: str) -> None:
    """Create a role that may only log in, or set its password."""
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    action = sql.SQL("ALTER" if exists else "CREATE")
    connection.execute(
        sql.SQL("{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}").format(
            action, sql.Identifier(name), sql.Literal(password)
        )
    )


def database(connection: psycopg.Connection, owner: str) -> None:
    """Create a database with the name of its owner, which others may not open."""
    exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [owner]).fetchone()
    name = sql.Identifier(owner)
    if not exists:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(name, name))
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with connect("postgres") as server:
        role(server, "feast", os.environ["FEAST_DB_PASSWORD"])
        role(server, "feast_reader", os.environ["FEAST_READER_PASSWORD"])
        role(server, "mlflow", os.environ["MLFLOW_DB_PASSWORD"])
        database(server, "feast")
        database(server, "mlflow")
    with connect("feast") as inside:
        inside.execute("GRANT CONNECT ON DATABASE feast TO feast_reader")
        inside.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO feast_reader")
        inside.execute(
            "ALTER DEFAULT PRIVILEGES FOR ROLE feast IN SCHEMA public GRANT SELECT ON TABLES TO feast_reader"
        )
    # Readers may not create the registry's tables and project, so create them first.
    store = FeatureStore(repo_path=str(REPO), fs_yaml_file=REPO / "feature_store_ray.yaml")
    if store.project not in [project.name for project in store.registry.list_projects()]:
        store.registry.apply_project(Project(name=store.project), commit=True)
    logger.info("roles, databases and Feast project %s exist", store.project)


if __name__ == "__main__":
    main()
