"""What feature tables promise, and the stability index against its formula."""

import json
import math
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast import schema
from salescast.data import dataset
from salescast.errors import UserError
from salescast.evaluation import drift
from salescast.features import contracts
from salescast.features.build import build_features
from salescast.schema import KEYS, TIMESTAMP


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    dataset.generate(folder / "raw", 3, 2, 70, 1)
    build_features(folder / "raw", folder)
    return folder


def table(built: Path, view: str = schema.SALES_VIEW) -> pl.DataFrame:
    return pl.read_parquet(built / f"{view}.parquet")


@pytest.mark.parametrize("view", list(contracts.COLUMNS))
def test_what_is_built_keeps_the_contract(built: Path, view: str) -> None:
    contracts.check(view, table(built, view))


BROKEN: list[tuple[str, Callable[[pl.DataFrame], pl.DataFrame], str]] = [
    ("a column less", lambda t: t.drop("lag_2"), r"other columns or types than it promises: \['lag_2'\]"),
    ("a type", lambda t: t.cast({"month": pl.Int64}), r"promises: \['month'\]"),
    ("a column more", lambda t: t.with_columns(x=1), r"promises: \['x'\]"),
    ("a row twice", lambda t: pl.concat([t[:3], t[2:]]), "week 2023-.* of store 1, department 1 is there twice"),
    ("a hole", lambda t: pl.concat([t[:3], t[4:]]), "of store 1, department 1 is there twice, out of order or after a"),
    ("an order", lambda t: t.sort(TIMESTAMP), "is there twice, out of order"),
    ("stores swapped", lambda t: t.sort("store_id", "dept_id", TIMESTAMP, descending=[True, False, False]), "store 2"),
    ("a month", lambda t: t.with_columns(month=pl.lit(13, pl.Int32)), r"values of month are not within \(1, 12\)"),
    ("a spread", lambda t: t.with_columns(-pl.col("rolling_std_4w") - 1), "rolling_std_4w are not within"),
    ("not a number", lambda t: t.with_columns(temperature=pl.lit(math.nan, pl.Float32)), "values of temperature are"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_promise_is_named(built: Path, change: Callable[[pl.DataFrame], pl.DataFrame], message: str) -> None:
    with pytest.raises(UserError, match=message):
        contracts.check(schema.SALES_VIEW, change(table(built)))


def test_a_dataset_with_a_week_twice_does_not_become_features(built: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    dataset.generate(raw, 2, 2, 70, 1)
    before = build_features(raw, tmp_path).files[schema.SALES_VIEW].read_bytes()
    sales = pl.read_parquet(raw / dataset.SALES)
    pl.concat([sales[:5], sales[4:]]).write_parquet(raw / dataset.SALES)
    with pytest.raises(UserError, match=r"sales.parquet is damaged or was changed; generate or import the data again"):
        build_features(raw, tmp_path)
    meta = json.loads((raw / dataset.META).read_text()) | {"files": {}}  # a folder that somebody else has made
    (raw / dataset.META).write_text(json.dumps(meta))
    with pytest.raises(UserError, match="is there twice"):
        build_features(raw, tmp_path)
    assert (tmp_path / "sales_features.parquet").read_bytes() == before


# --- drift ---


def by_hand(expected: list[float | None], actual: list[float | None]) -> float:
    """The index with plain loops; the deciles are numpy's: a rounding elsewhere would move a value over its edge."""
    known = [value for value in expected if value is not None]
    edges = sorted({float(np.quantile(known, tenth / 10)) for tenth in range(1, 10)}) if known else []

    def shares(values: list[float | None]) -> list[float]:
        counts = [0] * (len(edges) + 2)
        for value in values:
            counts[len(edges) + 1 if value is None else sum(edge < value for edge in edges)] += 1
        return [max(count / len(values), 1e-4) for count in counts]

    return sum((a - e) * math.log(a / e) for e, a in zip(shares(expected), shares(actual), strict=True))


numbers = st.lists(st.none() | st.integers(-50, 50).map(float), min_size=1, max_size=60)


@given(numbers, numbers)
def test_the_index_is_the_formula(expected: list[float | None], actual: list[float | None]) -> None:
    found = drift.stability(pl.Series(expected, dtype=pl.Float32), pl.Series(actual, dtype=pl.Float32))
    assert found == pytest.approx(by_hand(expected, actual), abs=1e-9)
    assert found >= 0


@given(st.lists(st.sampled_from(["A", "B", None]), min_size=1), st.lists(st.sampled_from(["A", "C", None]), min_size=1))
def test_text_is_counted_by_value_and_unseen_values_together(expected: list[str], actual: list[str]) -> None:
    def share(values: list[str], those: set[object]) -> float:
        return max(sum(value in those for value in values) / len(values), 1e-4)

    bins: list[set[object]] = [{value} for value in set(expected)] + [{"A", "B", "C", None} - set(expected)]
    pairs = [(share(expected, those), share(actual, those)) for those in bins]
    wanted = sum((a - e) * math.log(a / e) for e, a in pairs)
    text = drift.stability(pl.Series(expected, dtype=pl.String), pl.Series(actual, dtype=pl.String))
    assert text == pytest.approx(wanted, abs=1e-9)


def test_nothing_to_compare_is_not_a_number() -> None:
    assert math.isnan(drift.stability(pl.Series([], dtype=pl.Float32), pl.Series([1.0])))


def training(built: Path) -> pl.LazyFrame:
    stores = table(built, schema.STORE_VIEW).drop(TIMESTAMP)
    joined = table(built).join(stores, on=KEYS).join(table(built, schema.SEASONAL_VIEW), on=[*KEYS, TIMESTAMP])
    return joined.lazy()


def test_what_has_drifted_comes_first(built: Path, tmp_path: Path) -> None:
    last = table(built)[TIMESTAMP].dt.date().max()
    assert isinstance(last, date)
    cutoff = last - timedelta(weeks=8)
    paths = {view: built / f"{view}.parquet" for view in contracts.COLUMNS}
    usual = dict(drift.drift(training(built), paths, cutoff).iter_rows())
    moved = table(built).with_columns(pl.col("temperature") + 100, pl.col("lag_1") * 10)
    moved.write_parquet(tmp_path / "moved.parquet")
    found = drift.drift(training(built), paths | {schema.SALES_VIEW: tmp_path / "moved.parquet"}, cutoff)
    assert found["psi"].is_sorted(descending=True)
    psi = dict(found.iter_rows())
    assert psi["temperature"] > 5 and psi["lag_1"] > 2 > usual["lag_1"]
    assert {name for name in psi if psi[name] != usual[name]} == {"temperature", "lag_1"}
    assert not set(drift.POOLED) & set(psi)
    assert psi["store_type"] == pytest.approx(0)
