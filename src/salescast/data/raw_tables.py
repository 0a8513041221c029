"""Parsed rows as tables of the dataset."""

from collections.abc import Mapping

import polars as pl

from salescast.schema import KEYS


def conform(rows: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Parsed rows as a raw table: its columns (null where the file has none), its types, sorted by keys and week."""
    columns = [pl.col(name) if name in rows.columns else pl.lit(None).alias(name) for name in schema]
    keys = [pl.lit(0).alias(name) for name in KEYS if name in schema and name not in rows.columns]
    table = rows.select(columns).with_columns(keys)
    return table.cast(pl.Schema(schema)).sort([name for name in (*KEYS, "week") if name in schema])


def of_stores(plan: pl.DataFrame) -> pl.DataFrame:
    """Rows of a plan that hold for every department of their store."""
    return plan.with_columns(dept_id=pl.lit(None, pl.Int32))


def with_keys(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with both keys; a file without a column of stores or departments has store or department 0."""
    return rows.with_columns(pl.lit(0, pl.Int32).alias(name) for name in KEYS if name not in rows.columns)
