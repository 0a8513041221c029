"""Import of a retailer's files: every row is accepted, part of the plan, or rejected with a reason."""

import csv
import os
import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from salescast.cli.import_output import import_report
from salescast.data import dataset, ingest
from salescast.data.import_report import FileReport, ImportReport, OpeningDays
from salescast.data.weeks import Weeks
from salescast.errors import UserError

FRIDAY = date(2012, 9, 7)
HEADER = ["Store", "Dept", "Date", "Weekly_Sales"]
WALMART = Path(__file__).parents[2].parent / "shared" / "data" / "walmart"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))  # `make fuzz` asks for more than 10,000
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def week(k: int) -> str:
    return str(FRIDAY + timedelta(7 * k))


def write(path: Path, header: list[str], rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def run(tmp_path: Path, rows: list[tuple[Any, ...]], *, header: list[str] = HEADER, **options: Any) -> ImportReport:
    """Import rows as sales.csv into tmp_path/raw."""
    sales = write(tmp_path / "sales.csv", header, rows)
    files = {name: options.pop(name, None) for name in ("features", "stores")}
    return ingest.import_sales(sales, files["features"], files["stores"], tmp_path / "raw", **options)


def reported(file: FileReport) -> int:
    """The rows of a file by what became of them, all together."""
    return file.accepted + file.plan_rows + file.rejected + file.merged + file.empty + file.left_out


def balanced(report: ImportReport) -> bool:
    return all(file.rows == reported(file) for file in report.files)


# --- against a loop over the records ---------------------------------------------------------------------------------

stores_text = st.sampled_from(["1", "1", "2", " 2 ", "1.0", "4", "x", "", "1.5", "3000000000", "NA", "inf"])
depts_text = st.sampled_from(["1", "1", "2", "-3", "", "two", "2147483648"])
dates_text = st.sampled_from(
    [
        *map(week, range(5)),
        week(0),
        week(1),
        week(2) + " 00:00:00",
        "2012-09-08",
        "2012-13-01",
        "",
        "07.09.2012",
        "2012-09-07 12:30",
        "1889-01-04",
    ]
)
sales_text = st.sampled_from(["10.5", "-3", "0", " 7 ", "1e3", "NA", "", "x", "inf", "1e400", "-2e15", "1,5", "(4)"])
records = st.lists(st.tuples(stores_text, depts_text, dates_text, sales_text), min_size=1, max_size=25)
KNOWN = {1, 2}
# Most ids are numbers and most dates are ISO dates: another form among them is a mistake.
PLAIN = [(str(1 + k % 2), str(10 + k), week(k % 3), "2.5") for k in range(12)]


def whole_number(text: str) -> int | None:
    try:
        value = float(text)
        return int(value) if value == int(value) and -(2**31) <= value < 2**31 else None
    except (ValueError, OverflowError):
        return None


def parse(record: tuple[str, ...]) -> tuple[int, int, date, float | None] | None:
    """The values of a row, None where a cell is wrong; missing sales are None."""
    store, dept, day, sales = (cell.strip() for cell in record)
    try:
        when = date.fromisoformat(day.partition(" ")[0])
        amount = None if sales in ("", "NA") else -4.0 if sales == "(4)" else float(sales)
    except ValueError:
        return None
    ids = whole_number(store), whole_number(dept)
    if ids[0] is None or ids[1] is None or when.year < 1990 or (amount is not None and not abs(amount) <= 1e15):
        return None
    return ids[0], ids[1], when, amount


def classify(rows: list[tuple[str, ...]]) -> tuple[dict[tuple[int, int, date], float], set[int], int, int]:
    """Accepted sales by key, the row numbers of what is rejected (the header is row 1), and counts: equal, empty."""
    parsed = {number: parse(record) for number, record in enumerate(rows, start=2)}
    left = {number: values for number, values in parsed.items() if values is not None and values[0] in KNOWN}
    weekdays = Counter(day.weekday() for _, _, day, amount in left.values() if amount is not None)
    grid = min(weekdays, key=lambda day: (-weekdays[day], day), default=None)
    accepted: dict[tuple[int, int, date], float] = {}
    rejected, equal, empty = set(parsed) - set(left), 0, 0
    for number, (store, dept, day, amount) in left.items():
        if amount is None:
            empty += 1
        elif day.weekday() != grid:
            rejected.add(number)
        elif (store, dept, day) not in accepted:
            accepted[store, dept, day] = amount
        elif accepted[store, dept, day] == amount:
            equal += 1
        else:
            rejected.add(number)
    return accepted, rejected, equal, empty


@quick
@given(records)
def test_rows_are_accepted_and_rejected_as_by_a_loop(tmp_path: Path, drawn: list[tuple[str, ...]]) -> None:
    for column in (0, 1):  # else ids are text: `1.0` is not 1 then
        own = {row[column].strip() for row in drawn} - {"", "NA"}
        assume(2 * sum(re.fullmatch(r"[+-]?\d+(\.0*)?", name) is not None for name in own) > len(own))
    rows = [*PLAIN, *drawn]
    accepted, rejected, equal, empty = classify(rows)
    stores = write(tmp_path / "stores.csv", ["Store", "Type", "Size"], [(1, "A", 100), (2, "B", "NA")])
    if rejected:
        with pytest.raises(UserError, match=f"^{len(rejected)} of {len(rows) + 2} rows cannot be used: "):
            run(tmp_path, rows, stores=stores)
    report = run(tmp_path, rows, stores=stores, skip_bad_rows=True)
    assert balanced(report)
    assert set(report.rejected["row"]) == rejected
    assert report.rejected.height == len(rejected)
    assert report.rejected["reason"].null_count() == 0
    assert (report.files[0].merged, report.files[0].empty) == (equal, empty)
    table = dataset.load(tmp_path / "raw").sales.collect()
    assert {(s, d, w): y for s, d, w, y in table.iter_rows()} == accepted
    assert table.equals(table.sort("store_id", "dept_id", "week"))
    assert report.negative == sum(y < 0 for y in accepted.values())
    by_series: dict[tuple[int, int], list[date]] = {}
    for store, dept, day in accepted:
        by_series.setdefault((store, dept), []).append(day)
    span = sum((max(days) - min(days)).days // 7 + 1 for days in by_series.values())
    assert report.gaps == span - len(accepted)
    assert report.dataset.series == len(by_series)
    assert (tmp_path / "raw" / dataset.REJECTED).exists() == bool(rejected)


# --- reasons, one by one ---------------------------------------------------------------------------------------------

GOOD = [(1, 1, week(0), 10), (1, 1, week(1), 11)]
MANY = [(s, d, week(k), 1000) for s in (1, 2) for d in (1, 2) for k in range(30)]
ROUNDED = "is a number that a spreadsheet has rounded, export it as text"
FAR = f"lies more than a year from all others, {week(0)} to {week(29)}"


@pytest.mark.parametrize(
    ("record", "column", "value", "reason"),
    [
        (("", 1, week(2), 1), "Store", "", "Store is missing"),
        (("A7", 1, week(2), 1), "Store", "A7", "Store is not a whole number of 32 bits"),
        ((1, "1.5", week(2), 1), "Dept", "1.5", "Dept is not a whole number of 32 bits"),
        ((1, "4.00638E+12", week(2), 1), "Dept", "4.00638E+12", f"Dept {ROUNDED}"),
        ((1, 1, "26/10/2012", 1), "Date", "26/10/2012", "Date is missing or not a date like 2012-10-26"),
        ((1, 1, "2102-09-22", 1), "Date", "2102-09-22", "Date is not within 1990-01-01 to 2074-12-31"),
        ((1, 1, "2062-09-22", 1), "Date", "2062-09-22", f"Date {FAR}"),
        ((1, 1, "2012-09-20", 1), "Date", "2012-09-20", "Date is not on the weekday of the other weeks"),
        ((1, 1, week(2), "n.a."), "Weekly_Sales", "n.a.", "Weekly_Sales is not a number within +-1e+15"),
        ((1, 1, week(2), "-inf"), "Weekly_Sales", "-inf", "Weekly_Sales is not a number within +-1e+15"),
        ((1, 1, week(1), 12), None, None, "a second row for the same Store, Dept, Date"),
        ((1, 1, week(2)), None, f"1,1,{week(2)}", "not 4 cells as in the header"),
        ((1, 1, week(2), "1\n2"), None, f"1,1,{week(2)},1\n2", "a line break inside quotes"),
    ],
)
def test_a_bad_row_is_reported_with_its_number_cell_and_reason(
    tmp_path: Path, record: tuple[Any, ...], column: str | None, value: str | None, reason: str
) -> None:
    rows = [*MANY, record]
    with pytest.raises(UserError) as refused:
        run(tmp_path, rows)
    advice = "correct them, or import the rest with --skip-bad-rows"
    if "second row" in reason:
        advice = "say --sum if they are parts of one amount; without these rows 0% of the sales would be lost"
    assert str(refused.value) == (
        f"1 of 121 rows cannot be used: sales.csv: 1 x {reason} (first in row 122: {value!r}); all are listed in "
        f"{tmp_path / 'raw' / 'rejected.csv'}; {advice}"
    )
    listed = pl.read_csv(tmp_path / "raw" / "rejected.csv", infer_schema=False).row(0)
    assert listed[1] == "122"
    assert listed[4] == reason
    report = run(tmp_path, rows, skip_bad_rows=True)
    assert report.rejected.rows() == [(str(tmp_path / "sales.csv"), 122, column, value, reason)]
    assert (report.dataset.rows, balanced(report)) == (120, True)


def test_a_row_that_is_not_utf8_is_a_bad_row_where_others_are(tmp_path: Path) -> None:
    path = write(tmp_path / "sales.csv", HEADER, GOOD)
    path.write_bytes(path.read_bytes() + b"1,\xe9,2012-09-21,5\n" + "Zürich,1\n".encode() + b"\xe9\n")
    report = ingest.import_sales(path, None, None, tmp_path / "raw", skip_bad_rows=True)
    assert report.rejected.select("row", "value", "reason").rows() == [
        (4, "1,\ufffd,2012-09-21,5", "not text in UTF-8"),
        (5, "Zürich,1", "not 4 cells as in the header"),
        (6, "\ufffd", "not 4 cells as in the header"),
    ]


def test_a_refused_import_leaves_the_earlier_dataset(tmp_path: Path) -> None:
    run(tmp_path, GOOD)
    before = {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
    with pytest.raises(UserError):
        run(tmp_path, [*GOOD, (1, 1, week(0), 5)])
    after = {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
    assert after.pop(dataset.REJECTED)
    assert after == before
    run(tmp_path, GOOD[:1])
    assert dataset.load(tmp_path / "raw").sales.collect().height == 1
    assert not (tmp_path / "raw" / dataset.REJECTED).exists()


def test_bad_rows_of_the_other_files_are_reported_too(tmp_path: Path) -> None:
    features = write(
        tmp_path / "features.csv",
        ["Store", "Date", "Temperature", "CPI"],
        [
            (1, week(0), 70.5, "NA"),
            (1, week(0), 71, 1),
            (1, week(1), "hot", 2),
            (1, "2012-09-09", 70, 2),
            (1, week(2), 1e39, 1),
        ],
    )
    stores = write(
        tmp_path / "stores.csv", ["Store", "Type", "Size"], [(1, "A", 100), (1, "B", 1), (2, "C", -5), (3, "C", 1.5)]
    )
    report = run(tmp_path, [*GOOD, (8, 1, week(0), 1)], features=features, stores=stores, skip_bad_rows=True)
    assert report.rejected.select("row", "value", "reason").rows() == [
        (4, "8", "Store is not in stores.csv"),
        (3, None, "a second row for the same Store, Date"),
        (4, "hot", "Temperature is not a finite number"),
        (5, "2012-09-09", "Date is not on the weekday of the other weeks"),
        (6, "1e+39", "Temperature is not a finite number"),
        (3, None, "a second row for the same Store"),
        (4, "-5", "Size is not a whole number, 0 or more"),
        (5, "1.5", "Size is not a whole number, 0 or more"),
    ]
    raw = dataset.load(tmp_path / "raw")
    assert raw.store_weeks.rows() == [(1, FRIDAY, 70.5, None, None, None)]
    assert raw.stores.rows() == [(1, "A", 100, None)]
    assert balanced(report)


def test_most_frequent_reasons_come_first_and_the_message_stays_short(tmp_path: Path) -> None:
    bad = [
        ("", 1, week(0), 1),
        (1, "", week(0), 1),
        (1, 1, "", 1),
        (1, 1, week(0), "?"),
        ("x", 1, week(0), 1),
        (1, "x", week(0), 1),
    ]
    with pytest.raises(
        UserError, match=r"^8 of 11 rows .*: 3 x Store is missing .*; and 1 other reasons; all are listed"
    ) as refused:
        run(tmp_path, [(1, 1, week(0), 5), *((k, k, week(0), 5) for k in (2, 3)), *bad, bad[0], bad[0]])
    assert str(refused.value).count(" x ") == 5


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_no_department_is_department_zero(tmp_path: Path) -> None:
    run(tmp_path, [(1, week(0), 5), (2, week(0), 6)], header=["Store", "Date", "Weekly_Sales"])
    assert dataset.load(tmp_path / "raw").sales.collect().rows() == [(1, 0, FRIDAY, 5.0), (2, 0, FRIDAY, 6.0)]


def test_without_a_stores_file_stores_are_known_by_id_only(tmp_path: Path) -> None:
    run(tmp_path, [(7, 1, week(0), 5), (2, 1, week(0), 6)])
    raw = dataset.load(tmp_path / "raw")
    assert raw.stores.rows() == [(2, None, None, None), (7, None, None, None)]
    assert raw.store_weeks.is_empty()


def test_other_column_names_are_mapped(tmp_path: Path) -> None:
    features = write(tmp_path / "features.csv", ["shop", "Date", "temp"], [(1, week(0), 70)])
    report = run(
        tmp_path,
        [(1, 3, week(0), 5, "x")],
        header=["shop", "*", "day", "^r.*$", "note"],
        features=features,
        mapping={"Store": "shop", "Dept": "*", "Date": "day", "Weekly_Sales": "^r.*$", "Temperature": "temp"},
    )
    raw = dataset.load(tmp_path / "raw")
    assert raw.sales.collect().rows() == [(1, 3, FRIDAY, 5.0)]
    assert raw.store_weeks["temperature"].to_list() == [70.0]
    assert [file.ignored_columns for file in report.files] == [("note",), ()]
    with pytest.raises(UserError, match="shop is missing"):
        run(tmp_path, [("", week(0), 5)], header=["shop", "Date", "Weekly_Sales"], mapping={"Store": "shop"})


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    rows = [(1, 1, FRIDAY, 10.5), (1, 2, FRIDAY, -1.0), (2, 1, FRIDAY + timedelta(7), None)]
    typed = pl.DataFrame(
        rows, schema=dict(zip(HEADER, (pl.Int64, pl.Int16, pl.Date, pl.Float64), strict=True)), orient="row"
    )
    variants = [
        typed,
        typed.with_columns(pl.all().cast(pl.String)),
        typed.with_columns(
            pl.col("Date").cast(pl.Datetime("ns")),
            pl.col("Store").cast(pl.Float64),
            pl.col("Weekly_Sales").fill_null(float("nan")),
        ),
        typed.with_columns(pl.col("Date").cast(pl.String).cast(pl.Categorical)),
    ]
    reports = [run(tmp_path, [tuple("" if v is None else v for v in row) for row in rows], skip_bad_rows=True)]
    for variant in variants:
        variant.write_parquet(tmp_path / "sales.parquet")
        reports.append(
            ingest.import_sales(tmp_path / "sales.parquet", None, None, tmp_path / "raw", skip_bad_rows=True)
        )
    assert len({report.dataset.digest for report in reports}) == 1
    assert [report.files[0].empty for report in reports] == [1] * 5
    typed.with_columns(Store=pl.lit([1])).write_parquet(tmp_path / "sales.parquet")
    with pytest.raises(UserError, match=r"holds List\(Int\d+\); give numbers, dates or text"):
        ingest.import_sales(tmp_path / "sales.parquet", None, None, tmp_path / "raw")


# --- planned columns -------------------------------------------------------------------------------------------------


def test_planned_columns_of_both_files_and_rows_of_the_future(tmp_path: Path) -> None:
    features = write(
        tmp_path / "features.csv",
        ["Store", "Date", "School", "known_at", "Colour"],
        [
            (1, week(0), "yes", "", "red"),
            (1, week(3), "NO", "2012-09-01T10:00:00+02:00", "red"),
            (1, week(4), "", "", "red"),
        ],
    )
    report = run(
        tmp_path,
        [
            (1, 1, week(0), 10, 2, 6),
            (1, 1, week(1), 11, "", ""),
            (1, 1, week(2), "", 3.5, 7),
            (1, 1, week(3), "", "", ""),
            (1, 2, week(1), "", 1, 1),
        ],
        header=[*HEADER, "Promo", "Open"],
        features=features,
        planned=["Promo", "School"],
        open_days="Open",
        skip_bad_rows=True,
    )
    # The fourth row has neither sales nor a plan; the fifth is of a week whose sales are unknown.
    assert [(f.rows, f.accepted, f.plan_rows, f.empty) for f in report.files] == [(5, 2, 2, 1), (3, 3, 0, 0)]
    assert report.files[1].ignored_columns == ("Colour",)
    raw = dataset.load(tmp_path / "raw")
    assert (raw.meta.planned, raw.meta.open_days) == (("Promo", "School", "Open"), "Open")
    assert raw.plan is not None
    plan = raw.plan.collect()
    assert plan.columns == ["store_id", "dept_id", "week", "known_at", "Promo", "School", "Open"]
    known_at = datetime(2012, 9, 1, 8, tzinfo=UTC)
    assert plan.rows() == [
        (1, None, FRIDAY, None, None, 1.0, None),
        (1, None, FRIDAY + timedelta(21), known_at, None, 0.0, None),
        (1, 1, FRIDAY, None, 2.0, None, 6.0),
        (1, 1, FRIDAY + timedelta(14), None, 3.5, None, 7.0),
        (1, 2, FRIDAY + timedelta(7), None, 1.0, None, 1.0),
    ]
    assert raw.meta.last_week == FRIDAY + timedelta(7)
    assert raw.sales.collect().height == 2
    assert report.opening == OpeningDays(rows=1, weeks=1, of_rows=2, of_weeks=2, closed=0)


open_cells = st.sampled_from(["", "", "0", "5", "6"])


@quick
@given(st.lists(st.tuples(open_cells, open_cells, open_cells), min_size=1, max_size=6))
def test_known_opening_days_are_counted_as_a_loop_does(tmp_path: Path, cells: list[tuple[str, str, str]]) -> None:
    """Two departments have days of their own in the sales file, or those of the store in the features file."""
    rows = [(1, d, week(k), 10 * (d - 1), cell[d]) for k, cell in enumerate(cells) for d in (1, 2)]
    features = write(tmp_path / "f.csv", ["Store", "Date", "Open"], [(1, week(k), c[0]) for k, c in enumerate(cells)])
    report = run(tmp_path, rows, header=[*HEADER, "Open"], features=features, open_days="Open")
    known = [(k, d, cell[d] or cell[0]) for k, cell in enumerate(cells) for d in (1, 2) if cell[d] or cell[0]]
    expected = OpeningDays(
        rows=len(known),
        weeks=len({k for k, _, _ in known}),
        of_rows=2 * len(cells),
        of_weeks=len(cells),
        closed=sum(d == 2 and days == "0" for _, d, days in known),
    )
    assert report.opening == expected
    assert run(tmp_path, rows, header=[*HEADER, "Open"], features=features).opening is None


def test_the_import_reports_how_many_opening_days_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(1, 1, week(k), 10, 0 if k == 3 else 6 if k else "") for k in range(5)]
    report = run(tmp_path, rows, header=[*HEADER, "Open"], open_days="Open")
    import_report(report, tmp_path / "raw", as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "opening days are known for 4 of 5 rows of sales, in 4 of 5 weeks; the others count as usual" in shown
    assert "1 rows with sales on 0 opening days are not used for training" in shown


def test_plan_is_part_of_the_digest(tmp_path: Path) -> None:
    header = [*HEADER, "Promo"]
    digests = {
        run(tmp_path, [(1, 1, week(0), 1, 1), (1, 1, week(1), "", k)], header=header, planned=["Promo"]).dataset.digest
        for k in (1, 2)
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("cell", "moment", "reason"),
    [
        ("a", "", "Promo is not a finite number"),
        ("1e39", "", "Promo is not a finite number"),
        ("8", "", "Promo is not a number of days, 0 to 7"),
        ("1", "yesterday", "known_at is not an ISO date or time"),
    ],
)
def test_bad_plans_are_bad_rows(tmp_path: Path, cell: str, moment: str, reason: str) -> None:
    days = "Promo" if cell == "8" else None
    with pytest.raises(UserError, match=f"1 x {reason}"):
        run(
            tmp_path,
            [(1, 1, week(0), 1, cell, moment)],
            header=[*HEADER, "Promo", "known_at"],
            planned=["Promo"],
            open_days=days,
        )


def test_a_row_without_sales_and_plan_is_an_unknown_week(tmp_path: Path) -> None:
    report = run(tmp_path, [(1, 1, week(0), 1, 5), (1, 1, week(1), "", 5)], header=[*HEADER, "Promo"])
    assert (report.files[0].empty, report.dataset.rows) == (1, 1)


def test_a_plan_that_changed_has_a_row_for_each_time_at_which_it_was_known(tmp_path: Path) -> None:
    rows = [
        (1, 1, week(0), 10, 1, week(-2)),
        (1, 1, week(1), "", 1, week(-2)),
        (1, 1, week(1), "", 0, week(0)),
        (1, 1, week(0), 10, 0, week(-1)),
    ]
    run(tmp_path, rows, header=[*HEADER, "Promo", "known_at"], planned=["Promo"])
    raw = dataset.load(tmp_path / "raw")
    assert raw.sales.collect().rows() == [(1, 1, FRIDAY, 10.0)]
    assert raw.plan is not None
    assert sorted(raw.plan.collect()["Promo"]) == [0, 0, 1, 1]
    with pytest.raises(UserError, match="a second row for the same Store, Dept, Date"):
        run(
            tmp_path, [*rows, (1, 1, week(0), 11, 0, week(0))], header=[*HEADER, "Promo", "known_at"], planned=["Promo"]
        )


@pytest.mark.parametrize("name", ["is_recent", "recent", "promo_last_year", "_effect", "known_at"])
def test_a_planned_name_that_features_use_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"\['{name}'\] cannot be planned columns, the names have another meaning"):
        run(tmp_path, [(1, 1, week(0), 1, 5)], header=[*HEADER, name], planned=[name])


# --- what a user can get wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            [*HEADER[:2], "Day", HEADER[3]],
            {},
            r"sales.csv has no column 'Date', its columns are \['Store', .*; name the right one with --map Date=COLUMN",
        ),
        (
            HEADER,
            {"mapping": {"Sales": "Weekly_Sales"}},
            r"--map of unknown columns \['Sales'\]; the standard names are \['Store'",
        ),
        (
            HEADER,
            {"mapping": {"Dept": "Department"}},
            r"--map: no file has the columns \['Department'\]; the columns are",
        ),
        (HEADER, {"mapping": {"Store": "Dept", "Dept": "Dept"}}, "--map gives one column two meanings"),
        (HEADER, {"planned": ["Promo"]}, r"--planned: no file has the columns \['Promo'\]"),
        (HEADER, {"open_days": "Open"}, r"--planned: no file has the columns \['Open'\]"),
        (HEADER, {"planned": ["Weekly_Sales"]}, r"\['Weekly_Sales'\] cannot be planned columns"),
        (HEADER, {"country": "XX"}, "no holidays are known for country 'XX'"),
        ([*HEADER[:3], "Date"], {}, "more than one column named 'Date'"),
        (HEADER, {"gaps": "none"}, "--gaps must be one of auto, zero, unknown and is 'none'"),
        (HEADER, {"out_of_stock": "Stock"}, r"--out-of-stock: no file has the columns \['Stock'\]"),
    ],
)
def test_options_and_headers(tmp_path: Path, header: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, [(1, 1, week(0), 1)], header=header, **options)
    assert not (tmp_path / "raw").exists()


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    def imported(path: Path) -> None:
        ingest.import_sales(path, None, None, tmp_path / "raw")

    with pytest.raises(UserError, match=r"nothing.csv is not a file; give the path of a CSV, Excel or Parquet file"):
        imported(tmp_path / "nothing.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="has no files"):
        imported(tmp_path / "folder")
    for name, content, message in (
        ("a.csv", b"", "is empty"),
        ("a.csv", b"Store,Dept,Date,Weekly_Sales", "has no rows; give a file with a header"),
        ("a.csv", b"Store,Dept,Date,Weekly_Sales\n\n\n", "has no rows; give a file with a header"),
        ("a.csv", b"PK\x03\x04\x14\0\x06\0\x08\0", "cannot be read .*; is the file complete"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.csv", b"\0\1\2\3", "is not text; give CSV, Excel or Parquet"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            imported(tmp_path / name)


def test_dates_on_many_weekdays_that_are_said_to_be_weeks_are_refused(tmp_path: Path) -> None:
    days = [(1, 1, FRIDAY + timedelta(k), 5) for k in range(21)]
    with pytest.raises(UserError, match=r"sales.csv is not weekly: its dates lie on 7 different weekdays; say --daily"):
        run(tmp_path, days, weeks=Weeks(daily=False))


def test_a_year_without_rows_shows_as_empty_weeks(tmp_path: Path) -> None:
    assert run(tmp_path, [*GOOD, (1, 1, "2013-09-06", 1)]).empty_weeks == 50


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    sales = write(tmp_path / "sales.csv", HEADER, GOOD)
    for rows_ok, content in ((True, GOOD), (False, [*GOOD, (1, 1, week(0), 5)])):
        write(sales, HEADER, content)
        with pytest.raises(UserError, match=r"cannot write .*/proc/raw: .*; give another folder"):
            ingest.import_sales(sales, None, None, Path("/proc/raw"))
        assert rows_ok == (content is GOOD)
    with pytest.raises(UserError, match="holds other files and no dataset"):
        ingest.import_sales(write(sales, HEADER, GOOD), None, None, tmp_path)


@pytest.mark.skipif(not WALMART.is_dir(), reason="the published sales data are not beside the repository")
def test_published_data_are_imported_unchanged(tmp_path: Path) -> None:
    files = (WALMART / "train.csv", WALMART / "features.csv", WALMART / "stores.csv")
    report = ingest.import_sales(*files, tmp_path / "raw")
    expected = pl.read_csv(files[0], try_parse_dates=True)
    raw = dataset.load(tmp_path / "raw")
    assert_frame_equal(
        raw.sales.collect(),
        expected.select(
            pl.col("Store").cast(pl.Int32).alias("store_id"),
            pl.col("Dept").cast(pl.Int32).alias("dept_id"),
            pl.col("Date").alias("week"),
            pl.col("Weekly_Sales").alias("weekly_sales"),
        ).sort("store_id", "dept_id", "week"),
        check_exact=True,
    )
    assert report.negative == (expected["Weekly_Sales"] < 0).sum()
    assert (report.rejected.height, report.empty_weeks) == (0, 0)
    features = pl.read_csv(files[1], null_values="NA", try_parse_dates=True)
    assert raw.store_weeks["cpi"].null_count() == features["CPI"].null_count() > 0
    assert raw.stores["store_size"].sum() == pl.read_csv(files[2])["Size"].sum()
