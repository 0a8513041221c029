"""Files of products and stores: labels, groups, and weeks outside the assortment."""

from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salescast.data import dataset, ingest
from salescast.data.attributes import Attributes
from salescast.data.names import Names
from salescast.errors import UserError
from salescast.features.seasonal import prepare, rows
from salescast.features.siblings import LEAD_IN, Siblings
from salescast.schema import SEASON

SUNDAY = date(2023, 1, 8)
WEEKS = 30


def write_sales(folder: Path, stores: str = "AB", articles: tuple[str, ...] = ("007", "8", "9")) -> Path:
    path = folder / "sales.csv"
    rows = [f"{s},{a},{SUNDAY + timedelta(7 * k)},{10 + k}" for s in stores for a in articles for k in range(WEEKS)]
    path.write_text("\n".join(["Store,Dept,Date,Weekly_Sales", *rows]))
    return path


def write(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines))
    return path


PRODUCTS = (
    "Dept,Label,Category,Brand,Listed,Delisted",
    "007,Rye bread,bread,Own,,2023-06-07",
    "8,Rolls,bread,,05/02/2023,",
    "99,Not sold yet,cake,,,",
)


def test_products_and_stores_are_kept_with_their_attributes(tmp_path: Path) -> None:
    products = write(tmp_path, "products.csv", *(line.replace("05/02/2023", "2023-02-05") for line in PRODUCTS))
    stores = write(tmp_path, "stores.csv", "Store,Label,Closed", "A,City,", "B,,2023-07-02")
    report = ingest.import_sales(write_sales(tmp_path), None, stores, tmp_path / "raw", products=products)
    raw, names = dataset.load(tmp_path / "raw"), Names.read(tmp_path / "raw")
    rye, rolls, unsold = (names.id_of("dept_id", own) for own in ("007", "8", "99"))
    assert raw.attributes.values("dept_id", "label") == {rye: "Rye bread", rolls: "Rolls", unsold: "Not sold yet"}
    assert raw.attributes.values("dept_id", "category") == {rye: "bread", rolls: "bread", unsold: "cake"}
    assert raw.attributes.values("store_id", "label") == {names.id_of("store_id", "A"): "City"}
    assert any("1 of products.csv have no sales" in text for text in report.decisions)
    assert any("outside the assortment" in text for text in report.decisions)
    assert report.files[-1].accepted == 3
    assert raw.plan is not None and raw.meta.open_days == "open_days"
    closed = raw.plan.filter(pl.col("open_days") == 0).collect()
    of_rye = closed.filter(pl.col("dept_id") == rye, pl.col("store_id") == names.id_of("store_id", "A"))
    # The last day is Wednesday 7 June: the first week wholly after it ends on Sunday 18 June.
    assert of_rye["week"].min() == date(2023, 6, 18)
    assert of_rye["week"].max() == raw.meta.last_week + timedelta(weeks=SEASON)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("007,Again,,,,", "a second row for the same Dept"),
        ("12,,,,soon,", "Listed is not a date"),
        (",Nothing,,,,", "Dept is missing"),
    ],
)
def test_a_wrong_row_of_products_is_named(tmp_path: Path, line: str, reason: str) -> None:
    products = write(tmp_path, "products.csv", PRODUCTS[0], PRODUCTS[1], line)
    with pytest.raises(UserError, match=reason):
        ingest.import_sales(write_sales(tmp_path), None, None, tmp_path / "raw", products=products)


days = st.dates(SUNDAY - timedelta(40), SUNDAY + timedelta(200))


@given(
    st.lists(st.tuples(st.sampled_from(["store_id", "dept_id"]), st.integers(1, 3), st.none() | days, st.none() | days))
)
def test_closed_weeks_against_a_loop(rows: list[tuple[str, int, date | None, date | None]]) -> None:
    table = pl.DataFrame(
        [{"entity": entity, entity: id_, "begins": begins, "ends": ends} for entity, id_, begins, ends in rows],
        schema={"entity": pl.String, "store_id": pl.Int32, "dept_id": pl.Int32, "begins": pl.Date, "ends": pl.Date},
    ).unique(["entity", "store_id", "dept_id"], keep="first", maintain_order=True)
    attributes = Attributes.of(
        [(entity, table.filter(pl.col("entity") == entity).drop("entity")) for entity in ("store_id", "dept_id")]
    )
    series = pl.DataFrame([(s, d) for s in (1, 2) for d in (1, 2, 3)], schema=["store_id", "dept_id"], orient="row")
    last = SUNDAY + timedelta(weeks=9)
    found = attributes.closed(series.cast(pl.Int32), SUNDAY, last)
    expected = set()
    for store, dept in series.iter_rows():
        for row in table.iter_rows(named=True):
            if row[row["entity"]] != (store if row["entity"] == "store_id" else dept):
                continue
            week = SUNDAY
            while week <= last + timedelta(weeks=SEASON):
                inside = [week - timedelta(back) for back in range(7)]
                after = row["ends"] is not None and all(day > row["ends"] for day in inside)
                before = row["begins"] is not None and all(day < row["begins"] for day in inside)
                if after or before:
                    expected.add((store, dept, week))
                week += timedelta(7)
    assert set(found.iter_rows()) == expected and found.height == len(expected)


def test_a_new_article_has_the_season_of_its_category_and_then_its_own() -> None:
    """Against sums in plain Python: categories while the article is new, the article alone from its second year on."""
    weeks, rng = 140, np.random.default_rng(0)
    begins = {1: 0, 2: 0, 3: 60, 4: 0}
    categories = {1: "bread", 2: "cake", 3: "bread"}
    records = [
        (store, dept, SUNDAY + timedelta(7 * k), float(rng.integers(10, 99)))
        for store in (1, 2) for dept, first in begins.items() for k in range(first, weeks)
    ]  # fmt: skip
    sales = pl.DataFrame(records, ["store_id", "dept_id", "week", "weekly_sales"], orient="row").cast(
        {"store_id": pl.Int32, "dept_id": pl.Int32}
    )
    sums: dict[tuple[int | str, date], float] = defaultdict(float)
    for _, dept, week, amount in records:
        sums[dept, week] += amount
        if dept in categories:
            sums[categories[dept], week] += amount
    known = pl.DataFrame(list(categories.items()), {"dept_id": pl.Int32, "category": pl.String}, orient="row")
    panel = prepare(sales, attributes=Attributes.of([("dept_id", known)]))
    found = rows(panel, np.arange(panel.series.height))
    for store, dept, time, last_year in found.select(
        "store_id", "dept_id", "event_timestamp", "dept_last_year"
    ).iter_rows():
        base = (time.date() - SUNDAY).days // 7
        if base < SEASON + LEAD_IN:
            continue
        young = base - begins[dept] < SEASON + LEAD_IN and dept in categories
        group = categories[dept] if young else dept
        expected = [sums.get((group, SUNDAY + timedelta(7 * (base - SEASON + k)))) for k in range(-1, 9)]
        assert last_year == expected, (store, dept, base)


def test_without_categories_groups_are_departments() -> None:
    depts = pl.Series([5, 5, 9], dtype=pl.Int32)
    siblings = Siblings.of(depts, np.array([3, 0, 7]), {})
    row = np.array([0, 1, 2])
    assert siblings.group(row, row).tolist() == [0, 0, 1]
    assert siblings.sums(np.ones((3, 2))).tolist() == [[2.0, 2.0], [1.0, 1.0]]
