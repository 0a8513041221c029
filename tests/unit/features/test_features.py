"""Published features: a plain loop per series as the oracle, no leak, the same file for all chunk sizes."""

from datetime import date, timedelta
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from salescast import retail_calendar
from salescast.data import dataset, ingest
from salescast.errors import UserError
from salescast.features import build, published
from salescast.features.build import build_features
from salescast.model import inputs
from salescast.schema import (
    INFERENCE_SERVICE,
    INFERENCE_SERVICE_SEASONAL,
    KEYS,
    LABEL,
    RAW_SALES,
    RAW_STORE_WEEKS,
    RAW_STORES,
    SALES_FEATURES,
    STORE_FEATURES,
    TIMESTAMP,
    TIMESTAMP_TYPE,
)

US = retail_calendar.calendar("US")
VIEWS = ("sales_features", "store_features")  # the published ones; others have tests of their own
START = date(2011, 10, 7)
WEEK = timedelta(7)
COVARIATES = ("temperature", "fuel_price", "cpi", "unemployment")

amounts = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 0.01, 100.0])
# For each series the sales by week number: gaps, late starts and early ends come by themselves.
histories = st.dictionaries(
    st.tuples(st.integers(-2, 3), st.integers(0, 2)),
    st.dictionaries(st.integers(0, 16), amounts, min_size=1, max_size=17),
    min_size=1,
    max_size=4,
)
conditions = st.dictionaries(
    st.tuples(st.integers(-2, 3), st.integers(0, 18)), st.none() | st.floats(-50, 300, width=32), max_size=20
)
Histories = dict[tuple[int, int], dict[int, float]]
Conditions = dict[tuple[int, int], float | None]


def raw_sales(found: Histories) -> pl.DataFrame:
    rows = [(s, d, START + k * WEEK, y) for (s, d), held in found.items() for k, y in held.items()]
    return pl.DataFrame(rows, schema=RAW_SALES, orient="row").sort(*KEYS, "week")


def raw_store_weeks(found: Conditions) -> pl.DataFrame:
    rows = [(s, START + k * WEEK, *(None if v is None else v + i for i in range(4))) for (s, k), v in found.items()]
    return pl.DataFrame(rows, schema=RAW_STORE_WEEKS, orient="row").sort("store_id", "week")


def same(found: Any, wanted: Any) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return bool(np.isclose(found, wanted, rtol=1e-5, atol=1e-2 if abs(wanted) > 1 else 1e-6))


def oracle(held: dict[int, float], known: Conditions, store: int, k: int) -> dict[str, float | None]:
    """The features of week k, by looking up each value."""
    last = [held.get(k - i) for i in range(1, 5)]
    row: dict[str, float | None] = {LABEL: held.get(k), **{f"lag_{i}": held.get(k - i) for i in (1, 2, 4, 8)}}
    row |= dict.fromkeys(("rolling_mean_4w", "rolling_std_4w", "sales_vs_avg"))
    if None not in last:
        row["rolling_mean_4w"], row["rolling_std_4w"] = mean(last), stdev(last)
        if mean(last) != 0:
            row["sales_vs_avg"] = last[0] / mean(last)
    before = known.get((store, k - 1))
    return row | {name: None if before is None else before + i for i, name in enumerate(COVARIATES)}


@settings(max_examples=150, deadline=None)
@given(histories, conditions)
def test_every_column_equals_a_loop_over_the_series(found: Histories, known: Conditions) -> None:
    table = published.sales_features(raw_sales(found), raw_store_weeks(known), US)
    assert table.columns == [*KEYS, TIMESTAMP, *SALES_FEATURES]
    assert table.schema[TIMESTAMP] == TIMESTAMP_TYPE
    assert {name: table.schema[name] for name in SALES_FEATURES} == SALES_FEATURES
    upcoming = max(k for held in found.values() for k in held) + 1
    wanted = [(s, d, k) for (s, d), held in sorted(found.items()) for k in range(min(held), upcoming + 1)]
    assert table.height == len(wanted)
    for row, (store, dept, k) in zip(table.iter_rows(named=True), wanted, strict=True):
        week = START + k * WEEK
        assert (row["store_id"], row["dept_id"], row[TIMESTAMP].date()) == (store, dept, week)
        for name, value in oracle(found[store, dept], known, store, k).items():
            assert same(row[name], value), (name, k, row[name], value)
        for name, values in retail_calendar.published(np.array([week], dtype="datetime64[D]"), US).items():
            assert row[name] == values[0]


@settings(max_examples=150, deadline=None)
@given(histories, conditions, st.integers(0, 17), st.randoms(use_true_random=False))
def test_sales_of_a_week_change_no_feature_up_to_that_week(
    found: Histories, known: Conditions, t: int, random: Any
) -> None:
    """Every column but the label, of every row up to and including week t: history and upcoming rows alike."""
    last = START + max(k for held in found.values() for k in held) * WEEK
    changed = {
        key: {k: y if k < t else random.choice([-y, y + 1, 1e9, 0.0]) for k, y in held.items()}
        for key, held in found.items()
    }
    made = [
        published.sales_features(raw_sales(sales), raw_store_weeks(known), US, upcoming=last + WEEK)
        .filter(pl.col(TIMESTAMP).dt.date() <= START + t * WEEK)
        .drop(LABEL)
        for sales in (found, changed)
    ]
    assert_frame_equal(made[0], made[1], check_exact=True)


@settings(max_examples=50, deadline=None)
@given(histories, conditions, st.integers(1, 17))
def test_the_upcoming_row_equals_the_later_row_of_the_history(found: Histories, known: Conditions, t: int) -> None:
    """With sales cut before week t, its upcoming row has the features that it has later as history."""
    cut = {key: {k: y for k, y in held.items() if k < t} for key, held in found.items()}
    cut = {key: held for key, held in cut.items() if held}
    if not cut:
        return
    week = START + t * WEEK
    later = published.sales_features(raw_sales(found), raw_store_weeks(known), US, upcoming=START + 18 * WEEK)
    upcoming = published.sales_features(raw_sales(cut), raw_store_weeks(known), US, upcoming=week)
    rows = upcoming.filter(pl.col(TIMESTAMP).dt.date() == week)
    assert rows.height == len(cut)
    assert rows[LABEL].null_count() == rows.height
    same_rows = rows.select(*KEYS, TIMESTAMP).join(later, on=[*KEYS, TIMESTAMP], how="left", maintain_order="left")
    assert_frame_equal(rows.drop(LABEL), same_rows.drop(LABEL), check_exact=True)


def test_equal_sales_have_no_deviation_and_zero_sales_no_ratio() -> None:
    for amount, ratio in ((0.1, 1.0), (0.0, None)):
        table = published.sales_features(raw_sales({(1, 1): dict.fromkeys(range(6), amount)}), raw_store_weeks({}), US)
        last = table.row(-1, named=True)
        assert last["rolling_std_4w"] == 0
        assert last["sales_vs_avg"] == ratio


def test_store_features_are_one_row_for_each_series_from_its_first_week() -> None:
    stores = pl.DataFrame([(1, "A", 1000, "West"), (9, "B", 2, None)], schema=RAW_STORES, orient="row")
    table = published.store_features(raw_sales({(1, 2): {3: 1.0, 5: 1.0}, (1, 1): {0: 1.0}, (2, 1): {1: 1.0}}), stores)
    assert table.columns == [*KEYS, TIMESTAMP, *STORE_FEATURES]
    assert [(*row[:2], row[2].date(), *row[3:]) for row in table.iter_rows()] == [
        (1, 1, START, "A", 1000, "West"),
        (1, 2, START + 3 * WEEK, "A", 1000, "West"),
        (2, 1, START + WEEK, None, None, None),
    ]


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "raw"
    dataset.generate(out, stores=7, depts=3, weeks=30, seed=5)
    return out


def test_build_writes_both_views_complete_and_sorted(raw_dir: Path, tmp_path: Path) -> None:
    raw = dataset.load(raw_dir)
    summary = build_features(raw_dir, tmp_path, views=VIEWS)
    assert summary.rows == {"sales_features": 7 * 3 * 31, "store_features": 21}
    assert summary.series == 21
    assert summary.upcoming == raw.meta.last_week + WEEK
    table = pl.read_parquet(summary.files["sales_features"])
    assert_frame_equal(table, published.sales_features(raw.sales.collect(), raw.store_weeks, US), check_exact=True)
    assert table.equals(table.sort(*KEYS, TIMESTAMP))
    stores = pl.read_parquet(summary.files["store_features"])
    assert_frame_equal(stores, published.store_features(raw.sales.collect(), raw.stores), check_exact=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features.json",
        "sales_features.parquet",
        "store_features.parquet",
        "upcoming.parquet",
    ]
    last = table.filter(pl.col(TIMESTAMP) == table[TIMESTAMP].max()).drop("weekly_sales")
    expected = last.join(stores.drop(TIMESTAMP), on=KEYS, how="left", maintain_order="left")
    assert_frame_equal(pl.read_parquet(tmp_path / "upcoming.parquet"), expected, check_exact=True)


@pytest.mark.parametrize(("chunk", "group"), [(1, 1), (100, 62), (200, 70), (10_000, 1000)])
def test_any_chunk_gives_the_same_table_in_row_groups_of_complete_series(
    raw_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, group: int
) -> None:
    whole = pl.read_parquet(build_features(raw_dir, tmp_path / "whole", views=VIEWS).files["sales_features"])
    monkeypatch.setattr(build, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(build, "ROW_GROUP", group)
    raw = dataset.load(raw_dir)
    held = [set(part.sales["store_id"]) for part in dataset.chunks(raw, US, chunk)]
    assert sorted(store for stores in held for store in stores) == list(range(1, 8))
    assert len(held) == {1: 7, 100: 6, 200: 3, 10_000: 1}[chunk]
    built = build_features(raw_dir, tmp_path / "parts", views=VIEWS).files["sales_features"]
    assert_frame_equal(pl.read_parquet(built), whole, check_exact=True)
    parts = pq.ParquetFile(built)
    sizes = [parts.metadata.row_group(i).num_rows for i in range(parts.num_row_groups)]
    assert all(size % 31 == 0 for size in sizes)
    assert max(sizes) == {1: 31, 62: 62, 70: 93, 1000: 651}[group]


def test_failed_build_leaves_the_earlier_features(
    raw_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {view: path.read_bytes() for view, path in build_features(raw_dir, tmp_path, views=VIEWS).files.items()}

    def fails(_chunk: dataset.Chunk) -> pl.DataFrame:
        raise KeyboardInterrupt

    monkeypatch.setitem(build.VIEWS, "store_features", lambda _raw, _horizon: fails)
    with pytest.raises(KeyboardInterrupt):
        build_features(raw_dir, tmp_path, views=VIEWS)
    assert {view: (tmp_path / f"{view}.parquet").read_bytes() for view in before} == before
    assert len(list(tmp_path.iterdir())) == len(before) + 2  # features.json, upcoming.parquet


def test_build_names_what_cannot_be_read_or_written(raw_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset in .*nowhere"):
        build_features(tmp_path / "nowhere", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the features to .*file"):
        build_features(raw_dir, tmp_path / "file" / "under")


@pytest.mark.parametrize("country", ["US", "DE"])
@pytest.mark.parametrize(
    "first",
    [retail_calendar.FIRST_DAY, retail_calendar.LAST_DAY - 59 * WEEK],
    ids=["first accepted week", "last accepted week"],
)
def test_every_week_that_the_import_accepts_can_be_trained_on(first: date, country: str, tmp_path: Path) -> None:
    """From the limits of the import to the inputs of a one-year forecast: all stages accept the same weeks."""
    rows = [(1, 1, first + k * WEEK, 100 + k % 7) for k in range(60)]
    sales = pl.DataFrame(rows, schema=["Store", "Dept", "Date", "Weekly_Sales"], orient="row")
    sales.write_csv(tmp_path / "sales.csv")
    ingest.import_sales(tmp_path / "sales.csv", None, None, tmp_path / "raw", country=country)
    build_features(tmp_path / "raw", tmp_path / "data", horizon=52)
    parts = [pl.read_parquet(tmp_path / "data" / f"{view}.parquet") for view in build.VIEWS]
    joined = parts[0].join(parts[1].drop(TIMESTAMP), on=KEYS, how="left").join(parts[2], on=[*KEYS, TIMESTAMP])
    for service in (INFERENCE_SERVICE, INFERENCE_SERVICE_SEASONAL):
        built = inputs.build(joined, service, 52, retail_calendar.calendar(country))
        assert built.weeks[0, 0] == np.datetime64(first)
        assert built.weeks[-1, -1] == np.datetime64(first + 111 * WEEK)
        assert np.isfinite(built.anchor[-1]).all()
