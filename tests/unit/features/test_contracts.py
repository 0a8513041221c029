"""The contract of feature tables."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from salescast import schema
from salescast.data import dataset
from salescast.errors import UserError
from salescast.features import contracts
from salescast.features.build import build_features
from salescast.schema import TIMESTAMP


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    dataset.generate(folder / "raw", 3, 2, 70, 1)
    build_features(folder / "raw", folder)
    return folder


def table(built: Path, view: str = schema.SALES_VIEW) -> pl.DataFrame:
    return pl.read_parquet(built / f"{view}.parquet")


@pytest.mark.parametrize("view", list(contracts.COLUMNS))
def test_built_tables_satisfy_the_contract(built: Path, view: str) -> None:
    contracts.check(view, table(built, view))


BROKEN: list[tuple[str, Callable[[pl.DataFrame], pl.DataFrame], str]] = [
    ("missing column", lambda t: t.drop("lag_2"), r"other columns or types than declared: \['lag_2'\]"),
    ("wrong type", lambda t: t.cast({"month": pl.Int64}), r"declared: \['month'\]"),
    ("extra column", lambda t: t.with_columns(x=1), r"declared: \['x'\]"),
    ("duplicate row", lambda t: pl.concat([t[:3], t[2:]]), "week 2023-.* of store 1, department 1 is there twice"),
    (
        "missing week",
        lambda t: pl.concat([t[:3], t[4:]]),
        "is there twice, out of order or after a gap",
    ),
    ("unsorted", lambda t: t.sort(TIMESTAMP), "is there twice, out of order"),
    ("stores swapped", lambda t: t.sort("store_id", "dept_id", TIMESTAMP, descending=[True, False, False]), "store 2"),
    (
        "month out of range",
        lambda t: t.with_columns(month=pl.lit(13, pl.Int32)),
        r"month are not within \(1, 12\)",
    ),
    ("negative deviation", lambda t: t.with_columns(-pl.col("rolling_std_4w") - 1), "rolling_std_4w are not within"),
    ("NaN", lambda t: t.with_columns(temperature=pl.lit(math.nan, pl.Float32)), "values of temperature are"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_violation_is_named(built: Path, change: Callable[[pl.DataFrame], pl.DataFrame], message: str) -> None:
    with pytest.raises(UserError, match=message):
        contracts.check(schema.SALES_VIEW, change(table(built)))


def test_a_dataset_with_a_duplicate_week_is_refused(built: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    dataset.generate(raw, 2, 2, 70, 1)
    before = build_features(raw, tmp_path).files[schema.SALES_VIEW].read_bytes()
    sales = pl.read_parquet(raw / dataset.SALES)
    pl.concat([sales[:5], sales[4:]]).write_parquet(raw / dataset.SALES)
    with pytest.raises(UserError, match=r"sales.parquet is damaged or was changed; generate or import the data again"):
        build_features(raw, tmp_path)
    meta = json.loads((raw / dataset.META).read_text()) | {"files": {}}  # a folder made by another program
    (raw / dataset.META).write_text(json.dumps(meta))
    with pytest.raises(UserError, match="is there twice"):
        build_features(raw, tmp_path)
    assert (tmp_path / "sales_features.parquet").read_bytes() == before
