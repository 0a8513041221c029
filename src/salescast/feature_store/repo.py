"""The Feast repository of a workdir: apply the declarations, materialize the upcoming week."""

import contextlib
import io
import logging
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from salescast import schema
from salescast.config import settings
from salescast.data import dataset
from salescast.data.names import Names
from salescast.errors import UserError
from salescast.runtime import checksums, code_digest, extras
from salescast.runtime.atomic_files import replace_file
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from feast import FeatureStore, Field, RepoConfig

logger = logging.getLogger(__name__)

VIEWS = (schema.SALES_VIEW, schema.STORE_VIEW, schema.SEASONAL_VIEW)


def feast_fields(columns: Mapping[str, pl.DataType]) -> "list[Field]":
    """Feast's declaration of a view's columns. Raises KeyError for a type that no view has."""
    from salescast.feature_store.feast_import import Array, Field, Float32, Int32, Int64, String

    types = {
        pl.Float32(): Float32,
        pl.Int32(): Int32,
        pl.Int64(): Int64,
        pl.String(): String,
        pl.List(pl.Float32()): Array(Float32),
    }
    return [Field(name=name, dtype=types[dtype]) for name, dtype in columns.items()]


def dataset_schema(folder: Path) -> dict[str, pl.DataType]:
    """The columns of the seasonal view that differ by dataset."""
    return schema.dataset_columns(pl.read_parquet_schema(folder / f"{schema.SEASONAL_VIEW}.parquet"))


def install_repo(workdir: Workdir) -> Path:
    """Copy the Feast declarations into the workdir, beside their data, and return that folder."""
    source, target = settings().feature_repo, workdir.feature_repo
    if not (source / "features.py").is_file():
        raise UserError(f"no feature repo at {source}; set SALESCAST_FEATURE_REPO to the folder with features.py")
    for name in ("features.py", "feature_store.yaml", "feature_store_ray.yaml"):
        with replace_file(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
    return target


def _config(repo: Path, name: str | None = None) -> "RepoConfig":
    from salescast.feature_store.feast_import import load_repo_config

    yaml = repo / (name or settings().feature_store_yaml)
    if not yaml.is_file():
        raise UserError(f"no {yaml}; run `salescast apply` first or correct SALESCAST_FEATURE_STORE_YAML")
    config = load_repo_config(repo, yaml)
    # Feast resolves the online store's path against the repo, but a SQLite registry's against the current directory.
    prefix, _, path = config.registry.path.partition("sqlite:///")
    if not prefix and not Path(path).is_absolute():
        config.registry.path = f"sqlite:///{repo.resolve() / path}"
    if config.registry.path.startswith("postgresql"):
        extras.require(extras.POSTGRES)
    if getattr(config.offline_store, "engine", None) == "ray":
        extras.require(extras.RAY)
    return config


def open_store(workdir: Workdir, yaml: str | None = None) -> "FeatureStore":
    """The workdir's feature store; `yaml` overrides the name of feature_store.yaml in the settings.

    Raises UserError if `apply` has not been run.
    """
    from salescast.feature_store.feast_import import FeatureStore

    return FeatureStore(config=_config(workdir.feature_repo, yaml))


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the registry, the online store and Ray into a UserError of one line without passwords."""
    import sqlalchemy.exc
    from google.protobuf.message import DecodeError

    from feast_asof.errors import AsofError

    kinds: tuple[type[Exception], ...] = (
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        UnicodeDecodeError,
        DecodeError,  # of a damaged object in the registry
        AsofError,
    )
    if extras.installed(extras.POSTGRES):
        import psycopg

        kinds += (psycopg.Error,)
    if "ray" in sys.modules:
        from ray.exceptions import RayError

        kinds += (RayError, ConnectionError)
    try:
        yield
    except kinds as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the feature store does not answer or is damaged: {reason}; fix the cause (remove a damaged SQLite file), "
            "then run `salescast apply` and `salescast materialize`, which write its content again"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what Feast prints to the log."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield
    for line in out.getvalue().splitlines():
        logger.debug("feast: %s", line)


def apply(workdir: Workdir, yaml: str | None = None) -> None:
    """Register entities, views and services, as `feast apply` in the workdir's feature repo would.

    `yaml`: as for `open_store`. Raises UserError for feature files that cannot be used.
    """
    from salescast.feature_store.feast_import import apply_total

    feature_digests(workdir)
    repo = install_repo(workdir).resolve()
    config = _config(repo, yaml)
    sys.modules.pop("features", None)  # the declarations of another workdir
    sys.path.insert(0, str(repo))
    try:
        with contextlib.chdir(repo), quiet(), store_errors():
            apply_total(config, repo, skip_source_validation=False)
    finally:
        sys.path.remove(str(repo))


def materialize(workdir: Workdir) -> int:
    """Write the newest row of every series, its upcoming week, to the online store; returns the number of series.

    Afterwards the store holds only these rows: series that left the data are no longer served. Readers see all rows
    from before or all rows from after. Raises UserError for feature files that cannot be used.
    """
    feature_digests(workdir)
    newest = pl.scan_parquet(workdir.data / f"{schema.SALES_VIEW}.parquet").select(
        first=pl.col(schema.TIMESTAMP).min(),
        last=pl.col(schema.TIMESTAMP).max(),
        series=pl.struct(schema.KEYS).n_unique(),
    )
    first, last, series = newest.collect().row(0)
    from salescast.feature_store.online_store import RowOnlineStore

    _warn_of_old_features(workdir, last)
    with quiet(), store_errors():
        store = open_store(workdir)
        online = store._get_provider().online_store
        # Feast's own online stores, which the benchmarks use, cannot replace all rows at once.
        rows = (
            online.replacing(store.config, VIEWS, Names.read(workdir.raw))
            if isinstance(online, RowOnlineStore)
            else contextlib.nullcontext()
        )
        with rows:
            store.materialize(first - timedelta(days=1), last + timedelta(days=1))
    return int(series)


def _warn_of_old_features(workdir: Workdir, upcoming: datetime) -> None:
    """Warn if the server will refuse the features as too old."""
    age, allowed = (datetime.now(UTC) - upcoming) / timedelta(days=1), settings().max_feature_age_days
    if age > allowed and not dataset.is_generated(workdir.data):
        logger.warning(
            "the upcoming week of this data, %s, is %.0f days ago; the server refuses features older than %g days. "
            "Import newer sales, or set SALESCAST_MAX_FEATURE_AGE_DAYS=inf for the server to serve history",
            upcoming.date(), age, allowed,
        )  # fmt: skip


def view_files(workdir: Workdir) -> list[Path]:
    """The Parquet files of the views, in the order of VIEWS."""
    return [workdir.data / f"{view}.parquet" for view in VIEWS]


def feature_digests(workdir: Workdir) -> dict[str, str]:
    """Digests of the feature files by name.

    Raises UserError unless all files exist, come from one build by this code and are unchanged since: views of
    different builds, damaged files and features of other code must not reach training or the server.
    """
    missing = [str(path) for path in view_files(workdir) if not path.is_file()]
    if missing:
        raise UserError(f"feature files {missing} are missing; run `salescast features` first")
    digests = checksums.verified(view_files(workdir), workdir.data / checksums.FEATURES)
    if digests is None:
        raise UserError(
            f"the feature files in {workdir.data} are not those of one finished build: it was interrupted, or a file "
            "was changed or damaged; run `salescast features` again"
        )
    made_by, code = checksums.code_of(workdir.data / checksums.FEATURES), code_digest.digest(code_digest.FEATURES)
    if made_by != code:
        raise UserError(
            f"the feature files in {workdir.data} were made by other code or libraries (digest {made_by!s:.12}, now "
            f"{code:.12}); run `salescast features` again"
        )
    return digests
