"""The raw dataset folder: written atomically, read back, identified by a digest of its content."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from salescast.data import dataset, demo
from salescast.errors import UserError
from salescast.schema import RAW_SALES, RAW_STORE_WEEKS, RAW_STORES

NUMBERS = {"stores": 3, "depts": 2, "weeks": 9}
sales_rows = st.lists(
    st.tuples(
        st.integers(-(2**31), 2**31 - 1),
        st.integers(0, 99),
        st.dates(date(2000, 1, 1), date(2030, 1, 1)),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=20,
)
static_rows = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
        st.none() | st.integers(0, 2**60),
        st.none() | st.sampled_from(["", "West"]),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "raw"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_generated_data_is_read_back(out: Path) -> None:
    meta = dataset.generate(out, **NUMBERS, seed=7)
    raw = dataset.load(out)
    assert raw.meta == meta
    assert (meta.rows, meta.series, meta.stores, meta.seed) == (54, 6, 3, 7)
    assert (meta.first_week, meta.last_week) == (demo.FIRST_WEEK, date(2023, 3, 31))
    assert (meta.country, meta.planned, meta.open_days, meta.noise_floor_mape) == ("US", (), None, 0.03)
    chunks = list(demo.World.create(3, 2, 9, 7).chunks())
    assert_frame_equal(raw.sales.collect(), pl.concat(c.sales for c in chunks), check_exact=True)
    assert_frame_equal(raw.store_weeks, pl.concat(c.store_weeks for c in chunks), check_exact=True)
    assert_frame_equal(raw.stores, pl.concat(c.stores for c in chunks), check_exact=True)
    assert raw.plan is None
    assert sorted(content(out)) == sorted([dataset.META, dataset.SALES, dataset.STORES, dataset.STORE_WEEKS])


def test_the_digest_identifies_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset.generate(tmp_path / "a", **NUMBERS, seed=7)
    monkeypatch.setattr(dataset, "ROW_GROUP", 5)
    again = dataset.generate(tmp_path / "b", **NUMBERS, seed=7)
    other = dataset.generate(tmp_path / "c", **NUMBERS, seed=8)
    assert first == again
    assert len(first.digest) == 64
    assert other.digest != first.digest


@settings(max_examples=50, deadline=None)
@given(sales_rows, st.data())
def test_a_digest_depends_on_every_value_but_not_on_chunks(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, date, float]], draw: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "digest.parquet"
    table = pl.DataFrame(rows, schema=RAW_SALES, orient="row")
    whole = dataset.write_table(path, RAW_SALES, table)
    writer = dataset.Writer(path, RAW_SALES)
    cut = draw.draw(st.integers(0, table.height))
    writer.write(table[:cut])
    writer.write(table[cut:])
    assert writer.close() == whole
    assert_frame_equal(pl.read_parquet(path), table, check_exact=True)
    name = draw.draw(st.sampled_from(table.columns))
    row = draw.draw(st.integers(0, table.height - 1))
    value = table[row, name]
    changed = value.replace(year=1999) if isinstance(value, date) else 1.0 if value != 1 else 2.0
    altered = table.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(changed)).otherwise(name).cast(RAW_SALES[name]).alias(name)
    )
    assert dataset.write_table(path, RAW_SALES, altered) != whole


@settings(max_examples=50, deadline=None)
@given(static_rows, static_rows)
def test_digests_of_tables_with_missing_values_and_text_are_equal_for_equal_tables_only(
    tmp_path_factory: pytest.TempPathFactory, one: list[tuple[object, ...]], two: list[tuple[object, ...]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "static.parquet"
    digests = [
        dataset.write_table(path, RAW_STORES, pl.DataFrame(rows, schema=RAW_STORES, orient="row"))
        for rows in (one, two)
    ]
    assert (digests[0] == digests[1]) == (one == two)


def test_a_digest_tells_missing_from_zero_and_empty(tmp_path: Path) -> None:
    tables = [
        pl.DataFrame([(1, kind, size, "x")], schema=RAW_STORES, orient="row")
        for kind, size in ((None, None), ("", 0), ("", None), (None, 0))
    ]
    assert len({dataset.write_table(tmp_path / "t", RAW_STORES, table) for table in tables}) == 4
    one, two = tables[0], tables[1]
    digests = {dataset.write_table(tmp_path / "t", RAW_STORES, pl.concat(pair)) for pair in ((one, two), (two, one))}
    assert len(digests) == 2


def test_generating_again_replaces_the_complete_folder(out: Path) -> None:
    dataset.generate(out, **NUMBERS, seed=1)
    (out / dataset.REJECTED).write_text("of an earlier import")
    (out / dataset.PLAN).write_text("of an earlier import")
    dataset.generate(out, stores=1, depts=1, weeks=2, seed=1)
    assert sorted(content(out)) == sorted([dataset.META, dataset.SALES, dataset.STORES, dataset.STORE_WEEKS])
    assert dataset.load(out).sales.collect().height == 2


def test_interruption_leaves_the_earlier_dataset(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.generate(out, **NUMBERS, seed=1)
    before = content(out)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset.Writer, "close", stop)
    with pytest.raises(KeyboardInterrupt):
        dataset.generate(out, **NUMBERS, seed=2)
    assert content(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["raw"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other files and no dataset; give a new folder"):
        dataset.generate(tmp_path, **NUMBERS)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        dataset.generate(tmp_path / "file", **NUMBERS)
    with pytest.raises(UserError, match=r"cannot write the dataset to .*: .*; give another folder"):
        dataset.generate(tmp_path / "file" / "under", **NUMBERS)
    with pytest.raises(UserError, match=r"cannot write the dataset to /proc/nothing: .*; give another folder"):
        dataset.generate(Path("/proc/nothing"), **NUMBERS)


def test_a_folder_without_a_dataset_is_refused_with_advice(out: Path) -> None:
    with pytest.raises(
        UserError, match=r"no dataset in .*raw .*run `salescast data generate` or `salescast data import`"
    ):
        dataset.load(out)
    dataset.generate(out, **NUMBERS)
    meta = json.loads((out / dataset.META).read_text())
    for broken in ("{", "[]", "{}", json.dumps(meta | {"colour": 1}), json.dumps(meta | {"first_week": "soon"}), "\0"):
        (out / dataset.META).write_text(broken)
        with pytest.raises(UserError, match=r"dataset.json cannot be used \(.*generate or import the data again"):
            dataset.load(out)


@pytest.mark.parametrize("name", [dataset.SALES, dataset.STORE_WEEKS, dataset.STORES])
def test_a_broken_or_foreign_part_is_named(out: Path, name: str) -> None:
    meta = dataset.generate(out, **NUMBERS)
    whole = (out / name).read_bytes()
    for broken in (b"", whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        (out / name).write_bytes(broken)
        with pytest.raises(UserError, match=f"{name} is damaged or was changed; generate or import the data again"):
            dataset.load(out)
    (out / dataset.META).write_text(replace(meta, files={}).to_json())  # as written by another program
    for broken in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-20]):
        (out / name).write_bytes(broken)
        with pytest.raises(UserError, match=f"{name} cannot be read .*generate or import the data again"):
            dataset.load(out)
    pl.DataFrame({"a": [1]}).write_parquet(out / name)
    with pytest.raises(UserError, match=rf"{name} has the columns \{{'a': Int64\}}, not"):
        dataset.load(out)
    (out / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        dataset.load(out)


def test_a_plan_is_read_where_planned_columns_are_declared(out: Path) -> None:
    meta = dataset.generate(out, **NUMBERS)
    (out / dataset.META).write_text(replace(meta, planned=("Promo",)).to_json())
    with pytest.raises(UserError, match=r"plan\.parquet cannot be read"):
        dataset.load(out)
    plan = pl.DataFrame(schema={**dataset.PLAN_KEYS, "Promo": pl.Float32})
    plan.write_parquet(out / dataset.PLAN)
    raw = dataset.load(out)
    assert raw.meta.planned == ("Promo",)
    assert raw.plan is not None
    assert raw.plan.collect().equals(plan)
    assert raw.store_weeks.schema == RAW_STORE_WEEKS
