"""Files of the four shapes in docs/your-data.md, made up, are imported by the commands that stand there."""

import re
import shlex
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from salescast.cli.app import app
from salescast.data import dataset
from salescast.data.names import Names

DOCUMENT = Path(__file__).parents[2] / "docs" / "your-data.md"
DAYS, WEEKS = 7 * 70, 70
FIRST = date(2016, 1, 4)  # a Monday
draws = np.random.default_rng(5)


def days() -> pl.Series:
    return pl.date_range(FIRST, FIRST + timedelta(DAYS - 1), eager=True)


def recruit(folder: Path) -> dict[tuple[str, str], float]:
    shops = pl.DataFrame({"air_store_id": ["air_ba937bf13d40fb24", "air_25e9888d30b386df", "air_00a91d42b08b08d9"]})
    rows = shops.join(pl.DataFrame({"visit_date": days()}), how="cross")
    rows = rows.with_columns(visitors=pl.Series(draws.integers(1, 60, rows.height)))
    rows.filter(pl.col("visit_date").dt.weekday() < 7).write_csv(folder / "air_visit_data.csv")
    open_days = rows.filter(pl.col("visit_date").dt.weekday() < 7)
    return {(name, "0"): float(open_days.filter(air_store_id=name)["visitors"].sum()) for name in shops["air_store_id"]}


def bakery(folder: Path) -> dict[tuple[str, str], float]:
    keys = pl.DataFrame({"store": [2, 2, 14]}).with_columns(product=pl.Series([101, 105, 101]))
    rows = keys.join(pl.DataFrame({"date": days()}), how="cross")
    rows = rows.with_columns(
        demand=pl.Series(draws.integers(0, 900, rows.height)).cast(pl.Float64),
        **{
            name: pl.Series(draws.integers(0, 2, rows.height))
            for name in ("is_schoolholiday", "is_holiday", "promotion_currentweek")
        },
    )
    rows.select("date", "store", "product", "demand", pl.exclude("date", "store", "product", "demand")).write_csv(
        folder / "bakery.csv"
    )
    sums = rows.group_by("store", "product").agg(pl.col("demand").sum())
    return {(str(store), str(product)): demand for store, product, demand in sums.iter_rows()}


def orange_juice(folder: Path) -> dict[tuple[str, str], float]:
    weeks = pl.DataFrame({"date": [date(1990, 6, 20) + timedelta(7 * week) for week in range(WEEKS)]})
    rows = pl.DataFrame({"store": [2, 5]}).join(pl.DataFrame({"brand": [1, 2]}), how="cross").join(weeks, how="cross")
    rows = rows.with_columns(
        units=pl.Series(draws.integers(64, 9000, rows.height)),
        price=pl.Series(draws.uniform(0.03, 0.06, rows.height)),
        deal=pl.Series(draws.integers(0, 2, rows.height)),
        feat=pl.Series(draws.uniform(0, 1, rows.height)),
    )
    rows.write_csv(folder / "orange_juice.csv")
    sums = rows.group_by("store", "brand").agg(pl.col("units").sum())
    return {(str(store), str(brand)): float(units) for store, brand, units in sums.iter_rows()}


def online_retail(folder: Path) -> dict[tuple[str, str], float]:
    """Many lines a day, two of them of one article; no sales on Saturdays."""
    articles = ["79323P", "85123A", "22064", "84029E", "71053", "84406B", "21730", "84029G", "37444A", "47566B"]
    minutes = [
        datetime(2009, 12, 7) + timedelta(days=day, hours=9, minutes=7 * line)
        for day in range(DAYS) if day % 7 != 5 for line in range(6)
    ]  # fmt: skip
    code = draws.choice(articles, len(minutes))
    rows = pl.DataFrame(
        {
            "Invoice": [str(489434 + number // 6) for number in range(len(minutes))], "StockCode": code,
            "Description": ["LIGHT"] * len(minutes), "Quantity": draws.integers(-2, 30, len(minutes)),
            "InvoiceDate": minutes, "Price": [1.25] * len(minutes), "Country": ["United Kingdom"] * len(minutes),
        }
    )  # fmt: skip
    rows.write_parquet(folder / "receipts.parquet")
    sums = rows.group_by("StockCode").agg(pl.col("Quantity").sum())
    return {("0", name): float(quantity) for name, quantity in sums.iter_rows()}


def commands(name: str) -> list[list[str]]:
    """The commands of the document that name a workdir."""
    text = DOCUMENT.read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(rf"^salescast .*--workdir {name}\b.*$", text, re.M)]


@pytest.mark.parametrize("make", [recruit, bakery, orange_juice, online_retail])
def test_a_published_file_is_imported_by_the_documented_command(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """All sales of the weeks that are over are there, under the ids of the file."""
    expected = make(tmp_path)
    name = make.__name__.replace("_", "-")
    run, forecast = commands(name)
    options = ["data", "import", *run[2:]]
    options[options.index("--workdir") : options.index("--workdir") + 2] = ["--out", str(tmp_path / "data")]
    options[options.index("--sales") + 1] = str(tmp_path / options[options.index("--sales") + 1])
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    names = Names.read(tmp_path / "data")
    sales = (
        names.named(dataset.load(tmp_path / "data").sales.collect())
        .group_by("store_id", "dept_id")
        .agg(pl.col("weekly_sales").sum())
    )
    found = {
        (str(names.name_of("store_id", store)), str(names.name_of("dept_id", dept))): amount
        for store, dept, amount in sales.iter_rows()
    }
    assert found == pytest.approx(expected)
    asked = dict(zip(forecast[2::2], forecast[3::2], strict=True))
    assert (asked["--store"], asked.get("--dept", "0")) in found
