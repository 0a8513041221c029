"""The retailer's ids and their numbers inside: one to one, never renumbered."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from salescast.data.names import ENTITIES, Names, are_numbers, is_canonical, own_ids
from salescast.errors import UserError
from salescast.runtime import parquet

EMPTY = Names(pl.DataFrame(schema={"entity": pl.String, "id": pl.Int32, "name": pl.String}))
ids = st.sampled_from(["7", "007", "8", "-3", "4006381333901", "Köln", "köln", "2147483647", "2147483648", "0"])
texts = st.lists(ids | st.text(min_size=1, max_size=6), min_size=1, max_size=20)


def column(names: list[str]) -> pl.Series:
    return pl.Series(names, dtype=pl.String)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=1, max_size=3))
def test_names_and_numbers_are_one_to_one_and_stay(tmp_path: Path, imports: list[list[str]]) -> None:
    imports = [[name for name in names if name != "2147483647"] for names in imports]
    names, numbers = EMPTY, dict[str, int]()
    for own in imports:
        names = names.extended("store_id", column(own))
        found = dict(zip(own, names.ids("store_id", column(own)), strict=True))
        assert {name: numbers[name] for name in found.keys() & numbers.keys()} == {
            name: found[name] for name in found.keys() & numbers.keys()
        }
        numbers |= found
    assert len(set(numbers.values())) == len(numbers)
    if names.needed:
        parquet.write(names.table, tmp_path / "names.parquet")
    else:
        parquet.write(
            pl.DataFrame({entity: sorted(numbers.values()) for entity in ENTITIES}), tmp_path / "sales.parquet"
        )
    read = Names.read(tmp_path)
    for name, number in numbers.items():
        assert str(read.name_of("store_id", number)) == name
        if name == name.strip():
            assert read.id_of("store_id", name) == number
    for file in tmp_path.glob("*.parquet"):
        file.unlink()


def test_a_number_of_32_bits_is_its_own_name() -> None:
    names = EMPTY.extended("dept_id", column(["3", "-2", "0"]))
    assert not names.needed and names.id_of("dept_id", 3) == names.id_of("dept_id", " 3 ") == 3
    assert names.name_of("dept_id", 3) == 3
    with pytest.raises(UserError, match="no department 'Bakery' in the data; the ids are whole numbers"):
        names.id_of("dept_id", "Bakery")
    assert [is_canonical(text) for text in ("007", "2147483648", "-2147483648", "+1", "1.0", "٣")] == [
        False, False, True, False, False, False,
    ]  # fmt: skip


def test_no_number_is_left() -> None:
    with pytest.raises(UserError, match="no number of 32 bits is left for 'x'"):
        EMPTY.extended("store_id", column(["2147483647", "x"]))


def test_tables_get_the_names_in_front() -> None:
    names = EMPTY.extended("store_id", column(["Köln", "3"]))
    frame = pl.DataFrame({"store_id": [4, 3], "dept_id": [1, 1]}, schema={"store_id": pl.Int32, "dept_id": pl.Int32})
    assert names.named(frame).columns == ["store", "store_id", "dept_id"]
    assert names.named(frame)["store"].to_list() == ["Köln", "3"]
    assert EMPTY.named(frame).columns == ["store_id", "dept_id"]


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["1", "2", "x"], True),
        (["1", "x", "y"], False),
        (["007", "1", "2", "3"], False),
        (["4006381333901", "1", "2"], False),
        (["1", "2"], True),
        ([str(number) for number in range(40)] + ["Total", "x"], True),  # strays
        ([str(number) for number in range(200)] + [f"{number}B" for number in range(30)], False),  # codes
    ],
)
def test_ids_are_numbers_unless_digits_would_be_lost(values: list[str], numbers: bool) -> None:
    assert are_numbers([column(values)]) == numbers


def test_whole_numbers_lose_their_decimals() -> None:
    assert own_ids(column(["1.0", "2.", "3"])).to_list() == ["1", "2", "3"]
    assert own_ids(column(["1.0", "v1", "v2"])).to_list() == ["1.0", "v1", "v2"]
