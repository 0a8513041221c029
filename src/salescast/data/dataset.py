"""The raw dataset folder: its files, how it is written and how it is read.

sales.parquet        RAW_SALES, observed rows only, sorted by store, department, week
store_weeks.parquet  RAW_STORE_WEEKS, covariates by store and week; may go beyond the last week with sales
stores.parquet       RAW_STORES
attributes.parquet   only with labels, categories or dates of stores and products: `attributes.Attributes`
names.parquet        only with ids that are not numbers of 32 bits: `names.Names`
plan.parquet         only with planned inputs: store_id, dept_id (null = every department of the store), week,
                     known_at (null = always known) and one Float32 column for each planned input
dataset.json         `Dataset`
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import polars as pl
import pyarrow as pa

from feast_asof.parquet import FileWriter
from salescast import retail_calendar
from salescast.data import demo
from salescast.data.attributes import Attributes
from salescast.errors import UserError
from salescast.retail_calendar import WEEK
from salescast.runtime.atomic_files import replace_dir
from salescast.runtime.checksums import sha256
from salescast.runtime.progress import track_rows
from salescast.schema import (
    KEY_TYPES,
    KEYS,
    RAW_SALES,
    RAW_STORE_WEEKS,
    RAW_STORES,
)

SALES: Final = "sales.parquet"
STORE_WEEKS: Final = "store_weeks.parquet"
STORES: Final = "stores.parquet"
PLAN: Final = "plan.parquet"
META: Final = "dataset.json"
REJECTED: Final = "rejected.csv"
GENERATED: Final = "generated"  # `Dataset.source` of demo data

PLAN_KEYS: Final[dict[str, pl.DataType]] = {**KEY_TYPES, "week": pl.Date(), "known_at": pl.Datetime("us", "UTC")}
ROW_GROUP: Final = 128_000  # rows: small enough to read single stores, large enough to compress well
CHUNK_ROWS: Final = 1_000_000  # feature rows that are computed at a time


@dataclass(frozen=True)
class Dataset:
    """Content of dataset.json. `noise_floor_mape` is a fraction (0.03 = 3 %), known for generated data only."""

    source: str
    rows: int
    series: int
    stores: int
    first_week: date
    last_week: date
    country: str = "US"
    planned: tuple[str, ...] = ()
    open_days: str | None = None
    gaps: str = "unknown"  # what a week without a row means: zero (such weeks are filled) or unknown
    noise_floor_mape: float | None = None
    seed: int | None = None
    digest: str = ""
    files: dict[str, str] = field(default_factory=dict, compare=False)  # SHA-256 by file name; {} = do not check

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str, indent=2) + "\n"

    @classmethod
    def read(cls, raw_dir: Path) -> Self:
        """Raises UserError when the folder has no dataset or one of another version."""
        try:
            values: dict[str, Any] = json.loads((raw_dir / META).read_text())
            first, last = (date.fromisoformat(values.pop(name)) for name in ("first_week", "last_week"))
            planned = tuple(values.pop("planned"))
            return cls(**values, first_week=first, last_week=last, planned=planned)
        except FileNotFoundError:
            raise UserError(
                f"no dataset in {raw_dir} ({META} is missing); run `salescast data generate` or `salescast data import`"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{raw_dir / META} cannot be used ({error}); generate or import the data again") from None


def is_generated(folder: Path) -> bool:
    """Whether the folder describes generated data, whose dates mean nothing; False when it has no dataset.json."""
    try:
        return Dataset.read(folder).source == GENERATED
    except UserError:
        return False


@dataclass(frozen=True)
class Raw:
    """A dataset folder opened for reading. The two tables whose size grows with the series are lazy."""

    meta: Dataset
    sales: pl.LazyFrame
    store_weeks: pl.DataFrame
    stores: pl.DataFrame
    plan: pl.LazyFrame | None
    attributes: Attributes = field(default_factory=lambda: Attributes.of([]))


def load(raw_dir: Path) -> Raw:
    """Open a raw dataset folder. Raises UserError when a file is missing, damaged or changed, or has other columns."""
    meta = Dataset.read(raw_dir)
    for name, digest in meta.files.items():
        if not (raw_dir / name).is_file() or sha256(raw_dir / name) != digest:
            raise UserError(f"{raw_dir / name} is damaged or was changed; generate or import the data again")
    plan = _scan(raw_dir / PLAN, {**PLAN_KEYS, **dict.fromkeys(meta.planned, pl.Float32())}) if meta.planned else None
    return Raw(
        meta=meta,
        sales=_scan(raw_dir / SALES, RAW_SALES),
        store_weeks=_scan(raw_dir / STORE_WEEKS, RAW_STORE_WEEKS).collect(),
        stores=_scan(raw_dir / STORES, RAW_STORES).collect(),
        plan=plan,
        attributes=Attributes.read(raw_dir),
    )


def _scan(path: Path, schema: dict[str, pl.DataType]) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path, glob=False)
        actual = frame.collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({error}); generate or import the data again") from None
    if dict(actual) != schema:
        raise UserError(f"{path} has the columns {dict(actual)}, not {schema}; generate or import the data again")
    return frame


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces the dataset folder `out` at a clean exit.

    Raises UserError when `out` cannot be written, or contains other files than a dataset.
    """
    if out.is_dir() and not (out / META).exists() and any(entry.name != REJECTED for entry in out.iterdir()):
        raise UserError(f"{out} holds other files and no dataset; give a new folder, since its content is replaced")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to write the dataset to")
    try:
        with replace_dir(out) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"cannot write the dataset to {out}: {error.strerror or error}; give another folder") from None


def parquet_writer(path: Path, schema: pa.Schema) -> FileWriter:
    """A compressed file. Floats get no dictionaries: trying them takes most of the time and saves nothing."""
    repeating = [field.name for field in schema if not pa.types.is_floating(field.type)]
    return FileWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=repeating)


class Writer:
    """Writes chunks of a raw table, in key order, to one Parquet file and computes a digest of the content.

    The digest is over the values of each column: it depends neither on the chunks nor on the Parquet version.
    """

    def __init__(self, path: Path, schema: dict[str, pl.DataType]) -> None:
        self.rows = 0
        self._columns = {name: hashlib.sha256(f"{name}:{dtype}".encode()) for name, dtype in schema.items()}
        self._missing = {name: hashlib.sha256() for name in schema}
        self._schema = pl.DataFrame(schema=schema).to_arrow().schema
        self._file = parquet_writer(path, self._schema)

    def write(self, chunk: pl.DataFrame) -> None:
        """Append rows. `chunk` has the columns of the schema in the same order."""
        for column in chunk:
            digest = self._columns[column.name]
            digest.update(_content(column))
            if column.null_count():
                missing = np.flatnonzero(column.is_null().to_numpy()) + self.rows
                self._missing[column.name].update(missing.astype(np.int64).tobytes())
        self.rows += chunk.height
        self._file.write_table(chunk.to_arrow().cast(self._schema), row_group_size=ROW_GROUP)

    def close(self) -> str:
        """Finish the file and return the digest of its content."""
        self._file.close()
        return combine_digests([part.hexdigest() for part in (*self._columns.values(), *self._missing.values())])


def _content(column: pl.Series) -> bytes:
    """The values of a column as bytes, with zero or an empty string for a missing one."""
    if column.dtype == pl.String:
        return "".join(f"{value}\0" for value in column.fill_null("")).encode()
    return column.to_physical().fill_null(0).to_numpy().tobytes()


def write_meta(folder: Path, meta: Dataset) -> Dataset:
    """Write dataset.json, the last file of a dataset folder, with the checksums of the others; return its content."""
    complete = replace(meta, files={path.name: sha256(path) for path in sorted(folder.glob("*.parquet"))})
    (folder / META).write_text(complete.to_json())
    return complete


def write_table(path: Path, schema: dict[str, pl.DataType], table: pl.DataFrame) -> str:
    """Write a complete raw table and return the digest of its content."""
    writer = Writer(path, schema)
    writer.write(table)
    return writer.close()


def combine_digests(digests: list[str]) -> str:
    """One digest of several digests in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def generate(out: Path, stores: int = 45, depts: int = 14, weeks: int = 104, seed: int = 42) -> Dataset:
    """Write a demo dataset of stores x depts x weeks rows to the folder `out` (see `demo`).

    Memory is bounded by a chunk of stores. The content depends on the four numbers only. Raises UserError when a number
    is out of range or the folder cannot be written.
    """
    world = demo.World.create(stores, depts, weeks, seed)
    with replacing(out) as folder:
        sales, store_weeks, static = (
            Writer(folder / name, schema)
            for name, schema in ((SALES, RAW_SALES), (STORE_WEEKS, RAW_STORE_WEEKS), (STORES, RAW_STORES))
        )
        for chunk in track_rows(world.chunks(), "data", stores * depts * weeks):
            sales.write(chunk.sales)
            store_weeks.write(chunk.store_weeks)
            static.write(chunk.stores)
        meta = Dataset(
            source=GENERATED,
            rows=sales.rows,
            series=stores * depts,
            stores=stores,
            first_week=world.weeks[0].item(),
            last_week=world.weeks[-1].item(),
            noise_floor_mape=demo.NOISE_FLOOR_MAPE,
            seed=seed,
            digest=combine_digests([part.close() for part in (sales, store_weeks, static)]),
        )
        return write_meta(folder, meta)


@dataclass(frozen=True)
class Chunk:
    """The raw tables of some stores, complete, with the calendar and the upcoming week that all stores share."""

    sales: pl.DataFrame
    store_weeks: pl.DataFrame
    stores: pl.DataFrame
    plan: pl.DataFrame | None
    calendar: retail_calendar.Calendar
    upcoming: date


def chunks(raw: Raw, calendar: retail_calendar.Calendar, rows: int) -> Iterator[Chunk]:
    """The dataset in key order, in chunks of complete stores with about `rows` feature rows each."""
    upcoming = raw.meta.last_week + WEEK
    # Count feature rows, not sales: every series has a row for each week up to the upcoming one.
    span = (pl.lit(upcoming) - pl.col("week").min()).dt.total_days() // 7 + 1
    sizes = raw.sales.group_by(KEYS).agg(span.alias("rows")).group_by("store_id").agg(pl.col("rows").sum())
    numbered = sizes.sort("store_id").with_columns((pl.col("rows").cum_sum() - pl.col("rows")) // rows)
    bounds = numbered.group_by("rows", maintain_order=True).agg(
        pl.col("store_id").min().alias("first"), pl.col("store_id").max().alias("last")
    )
    for first, last in bounds.select("first", "last").collect(engine="streaming").iter_rows():
        in_chunk = pl.col("store_id").is_between(first, last)
        yield Chunk(
            sales=raw.sales.filter(in_chunk).collect(),
            store_weeks=raw.store_weeks.filter(in_chunk),
            stores=raw.stores.filter(in_chunk),
            plan=None if raw.plan is None else raw.plan.filter(in_chunk).collect(),
            calendar=calendar,
            upcoming=upcoming,
        )
