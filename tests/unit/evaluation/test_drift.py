"""The stability index against its formula, and drift of new weeks from those of training."""

import math
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast import schema
from salescast.data import dataset
from salescast.evaluation import drift
from salescast.features import contracts
from salescast.features.build import build_features
from salescast.schema import KEYS, TIMESTAMP


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    dataset.generate(folder / "raw", 3, 2, 70, 1)
    build_features(folder / "raw", folder)
    return folder


def table(built: Path, view: str = schema.SALES_VIEW) -> pl.DataFrame:
    return pl.read_parquet(built / f"{view}.parquet")


def by_hand(expected: list[float | None], actual: list[float | None]) -> float:
    """The index with plain loops; deciles by NumPy, since other rounding would move values to other bins."""
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


def test_the_index_of_nothing_is_nan() -> None:
    assert math.isnan(drift.stability(pl.Series([], dtype=pl.Float32), pl.Series([1.0])))


def training(built: Path) -> pl.LazyFrame:
    stores = table(built, schema.STORE_VIEW).drop(TIMESTAMP)
    joined = table(built).join(stores, on=KEYS).join(table(built, schema.SEASONAL_VIEW), on=[*KEYS, TIMESTAMP])
    return joined.lazy()


def test_the_largest_drift_comes_first(built: Path, tmp_path: Path) -> None:
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
