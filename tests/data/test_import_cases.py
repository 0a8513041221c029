"""Files as retailers have them: each is read, or refused in one line that names the cause and what helps.

The table of ../shared/cases/import, case by case.
"""

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from salescast.cli.app import app
from salescast.data import dataset
from salescast.data.names import Names
from salescast.errors import UserError

CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "import"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the files are not beside the repository")
SUNDAYS = (660, date(2024, 9, 15), date(2026, 10, 18))  # rows, first and last week of most cases


@dataclass(frozen=True)
class Read:
    """A file that is read: rows, first and last week of the dataset, and what the report says."""

    file: str
    options: str = ""
    says: tuple[str, ...] = ()
    dataset: tuple[int, date, date] = SUNDAYS
    total: float | None = None  # of all sales; None: that of the plain file
    ids: tuple[str, str] | None = None  # store and department of a series that is there


@dataclass(frozen=True)
class Refused:
    """A file that is refused: what the message says."""

    file: str
    options: str = ""
    says: tuple[str, ...] = field(default=())


GERMAN = "--map Store=FilialeId --map Dept=Warengruppe --map Date=Datum --map Weekly_Sales=Umsatz"
SALES = "--map Weekly_Sales=Sales"
RECEIPTS = "--map Date=date --map Dept=article --map Weekly_Sales=Quantity"
WIDE = "--map Dept=Product_Code"
READ = [
    Read("01-german-semicolon/sales.csv", GERMAN, ("semicolons", "day.month.year", "decimal comma", "thousands")),
    Read("02-utf16-tab/sales.txt", says=("UTF-16", "tabs")),
    Read("03-xlsx/sales.xlsx", says=("an Excel workbook",)),
    Read("03-xlsx/renamed.csv", says=("an Excel workbook",)),
    Read(
        "05-walmart-ddmmyy/sales.csv", says=("day/month/year",), dataset=(858, date(2010, 2, 5), date(2012, 10, 26)),
        total=1124147757.82,
    ),
    Read(
        "07-avocado-names/sales.csv", "--map Store=region --map Dept=type --map 'Weekly_Sales=Total Volume'",
        ("without a name", "store TotalUS is named like a total"), (1352, date(2015, 1, 4), date(2018, 3, 25)),
        total=6218816094.13, ids=("NewYork", "organic"),
    ),
    Read(
        "08-daily-stock-price/sales.csv", "--map Date=data --map Weekly_Sales=venda --out-of-stock estoque",
        ("dates are days, summed", "a stock of 0 means out of stock"), (129, date(2014, 1, 5), date(2016, 7, 31)),
        total=81524,
    ),
    Read(
        "09-till-receipts/sales.csv", f"{RECEIPTS} --sum", ("the last week, to 2021-03-07, has sales up to",),
        (36, date(2021, 1, 3), date(2021, 2, 28)), total=2123, ids=("0", "PAIN AU CHOCOLAT"),
    ),
    Read(
        "11-parentheses-negative/sales.csv",
        "--map Dept=Product_Code --map Store=Warehouse --map Weekly_Sales=Order_Demand",
        ("negative amounts in parentheses",), total=1862209, ids=("Whse_J", "Product_0001"),
    ),
    Read(
        "12-leading-zeros/sales.csv", says=("'007' and '7'",), dataset=(440, *SUNDAYS[1:]), total=1278686.83,
        ids=("007", "1"),
    ),
    Read(
        "13-total-rows/total_as_store99.csv", says=("store 99 is the sum of the other stores",),
        dataset=(880, *SUNDAYS[1:]), total=3833380.14,
    ),
    Read("14-iso-weeks/sales.csv", f"{SALES} --map Date=Week", ("weeks of ISO years",)),
    Read("14-iso-weeks/year_week_columns.csv", f"{SALES} --map Date=Year+Week", ("weeks of ISO years",)),
    Read("14-iso-weeks/yyyyww.csv", f"{SALES} --map Date=YearWeek --date-format %G%V", ("dates as %G%V",)),
    Read("15-thousands-currency/dollar.csv", says=("currency signs", "thousands marks")),
    Read("15-thousands-currency/swiss.csv", says=("thousands marks",)),
    Read("15-thousands-currency/thousands.csv", says=("thousands marks",)),
    Read("15-thousands-currency/german_thousands_dot.csv", "--decimal ,", ("thousands marks",), total=1916362),
    Read("16-preamble/sales.csv", says=("header in row 5",)),
    Read("16-preamble/no_blank.csv", says=("header in row 3",)),
    Read("17-bom-sep/bom.csv"),
    Read("17-bom-sep/sep.csv", says=("semicolons",)),
    Read(
        "18-monday-start/sales.csv", says=("dates are Mondays", "--week-starts monday"),
        dataset=(660, date(2024, 9, 9), date(2026, 10, 12)),
    ),
    Read("18-monday-start/sales.csv", "--week-starts monday"),
    Read("20-daily-six-days/sales.csv", says=("dates are days, summed to weeks that end on Sunday",)),
    Read("22-ean-ids/ean.csv", ids=("1", "4006381333901")),
    Read("24-header-noise/lowercase.csv"),
    Read("24-header-noise/lowercase_dept_only.csv"),
    Read("24-header-noise/lowercase_dept_one_each.csv", dataset=(330, *SUNDAYS[1:]), total=999875.1),
    Read("24-header-noise/spaces.csv"),
    Read("24-header-noise/trailing_commas.csv"),
    Read("25-duplicates/restored_twice.csv", says=("60 repeated",)),
    Read("25-duplicates/two_tills.csv", "--sum"),
    Read("27-weekday-change/sales.csv", "--week-ends sunday"),
    Read("28-timestamps/end_of_day.csv", says=("times of day left out",)),
    Read("28-timestamps/nanoseconds.csv"),
    Read("28-timestamps/yyyymmdd.csv", says=("yyyymmdd",)),
    Read("28-timestamps/zone.csv"),
    Read("28-timestamps/excel_serial.csv", "--date-format excel"),
    Read("29-store-names/sales.csv", ids=("Köln", "Brot")),
    Read("29-store-names/codes.csv", ids=("S001", "P0001")),
    Read("29-store-names/float_ids.csv", ids=("3", "2")),
    Read("30-cp1252/sales.csv", says=("Windows-1252",)),
    Read("30-cp1252/header.csv", "--map 'Weekly_Sales=Umsatz in €'", ("Windows-1252",)),
    Read("32-empty-cells/sales.csv", says=("73 without an amount",), dataset=(587, *SUNDAYS[1:]), total=1705676.2),
    Read("33-numeric-month-first/sales.csv", says=("month/day/year",)),
    Read(
        "34-future-zeros/sales.csv", says=("weeks lie after today", "all of them zero"),
        dataset=(732, date(2024, 9, 15), date(2027, 1, 10)),
    ),
]  # fmt: skip
REFUSED = [
    Refused("04-wide-W0-W51/sales.csv", WIDE, ("a column per week (W0 to W51)", "--wide")),
    Refused("04-wide-W0-W51/sales.csv", f"{WIDE} --wide", ("names are dates", "rename the columns")),
    Refused("09-till-receipts/sales.csv", RECEIPTS, ("'time' tells them apart", "--sum", "69% of the sales")),
    Refused("13-total-rows/sales.csv", says=("1 of 661 rows", "row 662")),
    Refused("14-iso-weeks/yyyyww.csv", f"{SALES} --map Date=YearWeek", ("a year and a week", "--date-format %G%V")),
    Refused("15-thousands-currency/german_thousands_dot.csv", says=("6243 or 6.243", "--decimal")),
    Refused("19-empty/zero.csv", says=("is empty",)),
    Refused("19-empty/header_only.csv", says=("has no rows",)),
    Refused("19-empty/all_missing.csv", says=("no usable row of sales",)),
    Refused("21-two-currencies/sales.csv", says=("'Currency' has EUR and HUF",)),
    Refused("22-ean-ids/ean_scientific.csv", says=("a spreadsheet has rounded", "4.00638E+12")),
    Refused("24-header-noise/long.csv", says=("no column 'Weekly_Sales'", "...'", "--map")),
    Refused("25-duplicates/two_tills.csv", says=("a second row", "--sum", "40% of the sales")),
    Refused("26-inf-nan/sales.csv", says=("22 x Weekly_Sales is not a number", "'inf'")),
    Refused("27-weekday-change/sales.csv", says=("Sundays up to 2025-11-02", "--week-ends sunday")),
    Refused("28-timestamps/excel_serial.csv", says=("an Excel serial number", "--date-format excel")),
    Refused("30-cp1252/header.csv", says=("'Umsatz in €'", "--map Weekly_Sales=COLUMN")),
    Refused("35-year-typo/sales.csv", says=("'2062-04-02'", "more than a year from all others")),
]


def imported(file: str, options: str, out: Path) -> tuple[int, str]:
    """Exit code and output of `salescast data import`, on one line."""
    import shlex

    result = CliRunner().invoke(
        app, ["data", "import", "--sales", str(CASES / file), "--out", str(out), *shlex.split(options)]
    )
    if isinstance(result.exception, UserError):  # the command line's `main` prints it
        return 1, str(result.exception)
    assert result.exception is None, result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def plain_total(tmp_path_factory: pytest.TempPathFactory) -> float:
    return float(pl.read_csv(CASES / "17-bom-sep" / "bom.csv")["Weekly_Sales"].sum())


@pytest.mark.parametrize("case", READ, ids=lambda case: f"{case.file} {case.options}"[:60])
def test_a_file_is_read_and_the_report_says_how(case: Read, tmp_path: Path, plain_total: float) -> None:
    code, said = imported(case.file, case.options, tmp_path / "raw")
    assert code == 0, said
    assert [text for text in case.says if text not in said] == []
    meta = dataset.Dataset.read(tmp_path / "raw")
    assert (meta.rows, meta.first_week, meta.last_week) == case.dataset
    sales = dataset.load(tmp_path / "raw").sales.collect()
    assert sales["weekly_sales"].sum() == pytest.approx(case.total or plain_total, abs=0.5)
    if case.ids:
        names = Names.read(tmp_path / "raw")
        store, dept = (names.id_of(entity, own) for entity, own in zip(("store_id", "dept_id"), case.ids, strict=True))
        assert sales.filter((pl.col("store_id") == store) & (pl.col("dept_id") == dept)).height > 5
        assert [str(names.name_of(e, i)) for e, i in (("store_id", store), ("dept_id", dept))] == list(case.ids)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.file} {case.options}"[:60])
def test_a_file_is_refused_in_one_line(case: Refused, tmp_path: Path) -> None:
    code, said = imported(case.file, case.options, tmp_path / "raw")
    assert code == 1
    assert "\n" not in said and len(said) < 700
    assert [text for text in case.says if text not in said] == []


def test_every_case_is_here() -> None:
    there = {str(path.relative_to(CASES)) for path in CASES.glob("*/*") if path.is_file()}
    assert there == {case.file for case in (*READ, *REFUSED)}
