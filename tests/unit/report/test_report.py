"""The report against plain loops: sums, gaps, totals, exceptions, accuracy; missing parts; escaping."""

import base64
import gzip
import json
import math
import re
import statistics
from collections import defaultdict
from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salescast import retail_calendar
from salescast.data import dataset
from salescast.data.attributes import Attributes
from salescast.errors import UserError
from salescast.evaluation import hierarchy
from salescast.report import accuracy, series, totals
from salescast.report.build import build_report, day, number, percent, title_of
from salescast.report.columns import Packed, pack
from salescast.report.results import Results
from salescast.report.view import build_view
from salescast.schema import RAW_SALES, RAW_STORE_WEEKS, RAW_STORES
from salescast.workdir import Workdir

LAST = date(2012, 10, 26)
HORIZON = 3
WEEKS = [LAST - timedelta(weeks=back) for back in reversed(range(60))]
AHEAD = [LAST + timedelta(weeks=h) for h in range(1, HORIZON + 1)]
Sales = dict[tuple[int, int, date], float]


def raw_of(sales: Sales, regions: dict[int, str | None], categories: dict[int, str] | None = None) -> dataset.Raw:
    rows = [(store, dept, week, value) for (store, dept, week), value in sorted(sales.items())]
    frame = pl.DataFrame(rows, schema=RAW_SALES, orient="row")
    keys = {(store, dept) for store, dept, _ in sales}
    stores = sorted({store for store, _ in keys})
    meta = dataset.Dataset("folder/sales.csv", len(rows), len(keys), len(stores), WEEKS[0], LAST, digest="d" * 64)
    static = [(store, "A", 100, regions.get(store)) for store in stores]
    return dataset.Raw(
        meta,
        frame.lazy(),
        pl.DataFrame(schema=RAW_STORE_WEEKS),
        pl.DataFrame(static, schema=RAW_STORES, orient="row"),
        None,
        attributes_of(categories or {}),
    )


def attributes_of(categories: dict[int, str]) -> Attributes:
    rows = pl.DataFrame(list(categories.items()), {"dept_id": pl.Int32, "category": pl.String}, orient="row")
    return Attributes.of([("dept_id", rows)])


def forecasts_of(raw: dataset.Raw) -> pl.DataFrame:
    keys = raw.sales.select("store_id", "dept_id").unique().sort("store_id", "dept_id").collect()
    steps = pl.DataFrame({"week": AHEAD, "horizon": range(1, HORIZON + 1)})
    mid = 100.0 * pl.col("store_id") + 10 * pl.col("dept_id") + pl.col("horizon")
    return keys.join(steps, how="cross").with_columns(p10=mid - 5, forecast=mid, p90=mid + 7, mean=mid + 1)


def backtest_of(raw: dataset.Raw) -> pl.DataFrame:
    """Two cutoffs, two models; the rival is 30 % too high, the own model's errors are drawn."""
    sales = raw.sales.collect()
    rng = np.random.default_rng(1)
    frames = []
    for cutoff in (WEEKS[-10], WEEKS[-4]):
        rows = sales.with_columns(
            cutoff=pl.lit(cutoff), horizon=((pl.col("week") - pl.lit(cutoff)).dt.total_days() // 7).cast(pl.Int32)
        ).filter(pl.col("horizon").is_between(1, HORIZON))
        own = rows["weekly_sales"] * np.exp(rng.normal(0, 0.1, rows.height))
        for model, yhat in (("salescast", own), ("seasonal_naive", rows["weekly_sales"] * 1.3)):
            frames.append(
                rows.select(
                    "store_id", "dept_id", "cutoff", "horizon", "week", y="weekly_sales", yhat=yhat,
                    p10=yhat * 0.9, p90=yhat * 1.1, model=pl.lit(model), mean=yhat,
                )
            )  # fmt: skip
    return pl.concat(frames)


def results_of(raw: dataset.Raw, *, tested: bool = False) -> Results:
    backtest = backtest_of(raw) if tested else None
    return Results(raw, forecasts_of(raw), backtest, None, None, {"model": "salescast"})


def write(work: Workdir, results: Results) -> None:
    """The files that the other stages would have written."""
    work.raw.mkdir(parents=True)
    results.raw.sales.collect().write_parquet(work.raw / dataset.SALES)
    results.raw.store_weeks.write_parquet(work.raw / dataset.STORE_WEEKS)
    results.raw.stores.write_parquet(work.raw / dataset.STORES)
    (work.raw / dataset.META).write_text(results.raw.meta.to_json())
    for frame, path in ((results.forecasts, work.forecasts), (results.backtest, work.backtest)):
        if frame is not None:
            frame.write_parquet(path)


def complete(stores: int = 2, depts: int = 2) -> Sales:
    return {
        (store, dept, week): 1000.0 * store + 100 * dept + i
        for store in range(1, stores + 1)
        for dept in range(1, depts + 1)
        for i, week in enumerate(WEEKS)
    }


class _Text(HTMLParser):
    """What a person reads, without style and script."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def text_of(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    return " ".join(" ".join(parser.parts).split())


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def unpack(packed: Packed, rows: int) -> dict[str, np.ndarray]:
    """The arrays of `pack`, read as report.js reads them."""
    planes = np.frombuffer(gzip.decompress(base64.b64decode(packed.text)), np.uint8).reshape(4, -1)
    flat = np.ascontiguousarray(planes.T).view("<f4").ravel()
    return {name: flat[at : at + rows * width].reshape(rows, width) for name, (at, width) in packed.layout.items()}


def columns_of(page: str) -> dict[str, np.ndarray]:
    """The arrays in the page, as its script reads them."""
    texts = re.findall(r'<script id="columns-\d" type="text/plain">(.*?)</script>', page)
    data = data_of(page)
    firsts = [part["first"] for part in data["parts"]]
    sizes = np.diff([*firsts, len(data["place"])])
    parts = [
        unpack(Packed(text, part["layout"]), size) for text, part, size in zip(texts, data["parts"], sizes, strict=True)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def entries_of(data: series.SeriesData) -> list[tuple[str, int | None]]:
    return data.entries.rows()


@st.composite
def sparse_sales(draw: st.DrawFn) -> Sales:
    keys = st.tuples(st.integers(1, 3), st.integers(0, 2), st.sampled_from(WEEKS))
    amounts = st.floats(-1e4, 1e6, allow_nan=False).map(lambda value: round(value, 2))
    sales = draw(st.dictionaries(keys, amounts, min_size=1, max_size=40))
    return sales | {(1, 1, LAST): 5.0}


regions = st.dictionaries(st.integers(1, 3), st.sampled_from(["North", "South", None]))


def members(place: str, regions: dict[int, str | None]) -> set[int]:
    if place == "*":
        return {1, 2, 3}
    if place.startswith("s:"):
        return {int(place[2:])}
    return {store for store, region in regions.items() if region == place[2:]}


@settings(max_examples=40, deadline=None)
@given(sparse_sales(), regions, st.dictionaries(st.integers(1, 3), st.sampled_from(["bread", "cake"])))
def test_every_pick_is_the_sum_of_what_was_observed(
    sales: Sales, regions: dict[int, str | None], categories: dict[int, str]
) -> None:
    shown = series.build_series(results_of(raw_of(sales, regions, categories)))
    single = len({dept for _, dept, _ in sales}) == 1
    expected: dict[tuple[str, int | None], dict[date, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (store, dept, week), value in sales.items():
        region = regions.get(store)
        for place in ("*", f"s:{store}", *([f"r:{region}"] if region else [])):
            for pick in [dept] if single else [None, dept]:
                expected[place, pick][week].append(value)
        if dept in categories and not single:
            expected[f"c:{categories[dept]}", None][week].append(value)
    entries = entries_of(shown)
    assert len(entries) == len(set(entries))
    assert set(entries) == set(expected)
    for entry, values in zip(entries, shown.columns["sales"], strict=True):
        for week, value in zip(shown.weeks, values, strict=True):
            parts = expected[entry].get(week)
            if parts is None:
                assert math.isnan(value)  # a gap is not a zero
            else:
                assert value == pytest.approx(math.fsum(parts), rel=1e-6, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(sparse_sales(), regions)
def test_forecasts_add_up_and_only_series_have_a_range(sales: Sales, regions: dict[int, str | None]) -> None:
    raw = raw_of(sales, regions)
    shown = series.build_series(results_of(raw))
    low, middle, high = (shown.columns[name] for name in ("low", "mid", "high"))
    depts = {dept for _, dept, _ in sales}
    for i, (place, dept) in enumerate(entries_of(shown)):
        keys = {(s, d) for s, d, _ in sales if s in members(place, regions) and dept in (None, d)}
        for h in range(HORIZON):
            is_series = place.startswith("s:") and (dept is not None or len(depts) == 1)
            mid = math.fsum(100 * store + 10 * number + h + 1 + (not is_series) for store, number in keys)
            assert middle[i, h] == pytest.approx(mid)  # medians of series, sums of means
            expected = (mid - 5, mid + 7) if is_series else (math.nan, math.nan)
            assert (low[i, h], high[i, h]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("depts", [1, 2])
def test_stores_regions_and_the_total_have_the_range_of_their_level_after_a_backtest(depts: int) -> None:
    results = results_of(raw_of(complete(3, depts), {1: "North", 2: "North"}), tested=True)
    shown = series.build_series(results)
    assert results.forecasts is not None and results.backtest is not None
    new = results.forecasts.rename({"forecast": "yhat"}).with_columns(cutoff=pl.lit(LAST))
    own = results.backtest.filter(model="salescast")
    expected = {
        (
            {"store": "s:", "region": "r:", "total": "*"}[row["level"]] + row["group"] * (row["level"] != "total"),
            row["horizon"],
        ): row
        for row in hierarchy.aggregate(new, own, results.raw.stores).to_dicts()
    }
    seen = 0
    for i, (place, dept) in enumerate(entries_of(shown)):
        for h in range(1, HORIZON + 1):
            low, mid, high = (shown.columns[name][i, h - 1] for name in ("low", "mid", "high"))
            if place.startswith("s:") and (dept is not None or depts == 1):
                assert (mid - low, high - mid) == (5, 7)
            elif dept is None or depts == 1:
                row = expected[place, h]
                assert (low, mid, high) == pytest.approx((row["p10"], row["yhat"], row["p90"]))
                seen += 1
            else:
                assert np.isnan([low, high]).all()
    assert seen == HORIZON * (2 if depts == 1 else 5)


def test_totals_compare_with_the_year_before_and_leave_the_unknown_out() -> None:
    sales = complete()
    ago = [week - timedelta(weeks=52) for week in AHEAD]
    sales = {key: value for key, value in sales.items() if not (key[0] == 2 and key[2] in ago)}
    raw = raw_of(sales, {1: "North", 2: "North"})
    shown = totals.build_totals(series.build_series(results_of(raw)), raw.stores)
    stores = {row.place: row for row in shown.stores}
    for store in (1, 2):
        mine = {key[1:]: value for key, value in sales.items() if key[0] == store}
        row = stores[f"s:{store}"]
        assert row.last == pytest.approx(sum(mine[d, w] for d in (1, 2) for w in WEEKS[-HORIZON:]))
        assert row.next == pytest.approx(sum(100 * store + 10 * d + h + 1 for d in (1, 2) for h in (1, 2, 3)))
        assert row.first == pytest.approx(sum(100 * store + 10 * d + 2 for d in (1, 2)))
        assert (row.low, row.high, row.region) == (None, None, "North")
    year = sum(sales[1, d, week] for d in (1, 2) for week in ago)
    assert stores["s:1"].next is not None
    assert (stores["s:1"].year, stores["s:1"].change) == pytest.approx((year, stores["s:1"].next / year - 1))
    assert (stores["s:2"].year, stores["s:2"].change) == (None, None)
    assert [row.place for row in shown.stores] == ["s:2", "s:1"]  # the largest forecast first
    assert shown.regions[0].next == pytest.approx(shown.every.next)
    assert [(row.place, row.dept) for row in shown.departments] == [("*", 2), ("*", 1)]
    assert sum(row.next or 0 for row in shown.departments) == pytest.approx(shown.every.next)


def test_exceptions_are_the_extreme_ones_among_the_larger_series() -> None:
    sales = complete(4, 2)
    ago = [week - timedelta(weeks=52) for week in AHEAD]
    sales |= {(4, 1, week): 100.0 for week in ago} | {(1, 1, week): 0.001 for week in ago}  # the second one is small
    sales = {key: value for key, value in sales.items() if key[:2] != (3, 1) or key[2] < WEEKS[-4]}
    sales |= {(2, 2, week): 0.0 for week in WEEKS[-4:]}
    results = results_of(raw_of(sales, {}), tested=True)
    assert results.forecasts is not None and results.own is not None
    wide = pl.when(store_id=3, dept_id=2).then(90.0).otherwise(0.0)
    forecasts = results.forecasts.with_columns(pl.col("p90") + wide)
    shown = totals.build_exceptions(results, forecasts)
    large = {(3, 1), (3, 2), (4, 1), (4, 2)}
    first = shown.change[0]
    expected = sum(410 + h for h in (1, 2, 3))
    assert (first.place, first.dept, first.now, first.then) == ("s:4", 1, expected, 300.0)
    assert first.share == pytest.approx(expected / 300 - 1)
    assert (shown.width[0].place, shown.width[0].dept) == ("s:3", 2)
    assert shown.width[0].share == pytest.approx(3 * 102 / sum(320 + h for h in (1, 2, 3)))
    assert (shown.width[0].now, shown.width[0].then) == (316, 418)
    assert {(int(one.place[2:]), one.dept) for one in (*shown.change, *shown.width)} <= large
    assert {(one.place, one.dept) for one in shown.silent} == {("s:3", 1), ("s:2", 2)}
    assert shown.silent_count == 2
    by_series: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for row in results.own.filter(cutoff=WEEKS[-4]).to_dicts():
        by_series[row["store_id"], row["dept_id"]].append((row["yhat"], row["y"]))
    bias = {
        key: sum(yhat - y for yhat, y in rows) / sum(y for _, y in rows)
        for key, rows in by_series.items()
        if key in large
    }
    assert shown.bias is not None
    assert [(int(one.place[2:]), one.dept) for one in shown.bias] == sorted(bias, key=lambda key: -abs(bias[key]))
    assert [one.share for one in shown.bias] == pytest.approx(sorted(bias.values(), key=abs, reverse=True))


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (0.72, "Ranges too narrow: 72% of weeks were inside, 80% promised"),
        (0.81, "Ranges right: 81% of weeks were inside, 80% promised"),
        (0.9, "Ranges wider than needed: 90% of weeks were inside, 80% promised"),
        (None, "The forecasts had no ranges"),
    ],
)
def test_the_coverage_has_a_verdict(inside: float | None, said: str) -> None:
    assert accuracy.verdict(inside) == said


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    values = st.lists(st.floats(width=32), min_size=rows * width, max_size=rows * width)
    return np.array(draw(values)).reshape(rows, width)


@given(arrays())
def test_packed_columns_keep_every_float32(values: np.ndarray) -> None:
    columns = {"a": values, "b": np.full((len(values), 1), np.nan)}
    found = unpack(pack(columns), len(values))
    for name, array in columns.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32))


def test_accuracy_is_what_plain_loops_find() -> None:
    results = results_of(raw_of(complete(3, 2), {}), tested=True)
    tested = results.tested
    assert results.backtest is not None and tested is not None
    shown = accuracy.build_accuracy(results, tested)
    own = [row for row in results.backtest.to_dicts() if row["model"] == "salescast"]
    for step in shown.steps:
        errors = [abs(row["y"] - row["yhat"]) / row["y"] for row in own if row["horizon"] == step.horizon]
        assert step.half == pytest.approx(statistics.median(errors))
    missed = sum(abs(row["y"] - row["yhat"]) for row in own) / sum(row["y"] for row in own)
    assert shown.own.wmape == pytest.approx(missed)
    assert shown.rival is not None
    assert shown.rival.wmape == pytest.approx(0.3)
    by_series: dict[tuple[int, int], float] = defaultdict(float)
    for row in own:
        by_series[row["store_id"], row["dept_id"]] += abs(row["y"] - row["yhat"])
    worst = [(row.store_id, row.dept_id) for row in shown.worst]
    assert worst == sorted(by_series, key=by_series.__getitem__, reverse=True)
    below = [row["y"] <= row["p10"] for row in own if row["horizon"] == 2]
    assert shown.charts["below"]["p10"][1] == pytest.approx(sum(below) / len(below), abs=1e-5)
    latest = [row for row in own if row["cutoff"] == WEEKS[-4] and (row["store_id"], row["dept_id"]) == (2, 1)]
    data = series.build_series(results)
    at = entries_of(data).index(("s:2", 1))
    assert data.columns["test"][at].tolist() == pytest.approx([row["yhat"] for row in latest])
    mine = [row for row in own if (row["store_id"], row["dept_id"]) == (2, 1)]
    share = sum(abs(row["y"] - row["yhat"]) for row in mine) / sum(row["y"] for row in mine)
    assert data.columns["missed"][at, 0] == pytest.approx(share)


def test_quality_counts_gaps_returns_and_ended_series() -> None:
    sales = complete(1, 3)
    del sales[1, 1, WEEKS[10]], sales[1, 1, WEEKS[11]]
    sales[1, 2, WEEKS[20]] = -3.0
    sales[1, 2, WEEKS[21]] = 0.0
    sales = {key: value for key, value in sales.items() if key[1] != 3 or key[2] < WEEKS[-6]}
    quality = build_view(results_of(raw_of(sales, {}))).quality
    assert {name: getattr(quality, name) for name in ("gaps", "with_gaps", "negative", "zero", "ended", "young")} == {
        "gaps": 2, "with_gaps": 1, "negative": 1, "zero": 1, "ended": 1, "young": 0,
    }  # fmt: skip


def test_series_that_ended_are_pointed_out_beside_the_totals(tmp_path: Path) -> None:
    sales = {key: value for key, value in complete(1, 3).items() if key[1] != 3 or key[2] < WEEKS[-6]}
    work = Workdir(tmp_path)
    write(work, results_of(raw_of(sales, {})))
    assert "1 series had no sale in the last weeks" in text_of(build_report(work).read_text())


def test_holidays_are_named_in_history_and_forecast_weeks() -> None:
    holidays = series.build_series(results_of(raw_of(complete(), {}))).holidays
    assert holidays["2012-09-07"] == "Labor Day"
    assert "Thanksgiving Day" in holidays["2011-11-25"]
    assert "2012-08-31" not in holidays


def test_the_report_says_for_how_many_rows_opening_days_are_known(tmp_path: Path) -> None:
    raw = raw_of(complete(1, 1), {})
    days = [(1, None, week, None, 6.0 if i % 3 else None) for i, week in enumerate(WEEKS)]
    plan = pl.DataFrame(days, schema={**dataset.PLAN_KEYS, "Open": pl.Float32}, orient="row")
    raw = replace(raw, meta=replace(raw.meta, planned=("Open",), open_days="Open"), plan=plan.lazy())
    work = Workdir(tmp_path)
    write(work, results_of(raw))
    plan.write_parquet(work.raw / dataset.PLAN)
    text = text_of(build_report(work).read_text())
    assert "opening days (the others count as usual) 40 of 60, in 40 of 60 weeks" in text


def test_many_series_shorten_the_history_and_very_many_leave_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(raw_of(complete(3, 2), {}), tested=True)
    extra = 5 * HORIZON
    monkeypatch.setattr(series, "MAX_VALUES", 6 * (55 + extra))
    shown = series.build_series(results)
    assert len(shown.weeks) == 55 and shown.series == 6
    monkeypatch.setattr(series, "MAX_VALUES", 2 * (52 + extra) + 1)
    shown = series.build_series(results)
    assert len(shown.weeks) == 52 and shown.series == 2
    entries = entries_of(shown)
    assert [entry for entry in entries if entry[0] in ("s:1", "s:2", "s:3")] == [("s:3", None), ("s:3", 1), ("s:3", 2)]
    everything = sum(100 * s + 10 * d + 2 for s in (1, 2, 3) for d in (1, 2))
    assert shown.columns["mid"][entries.index(("*", None)), 0] == everything
    work = Workdir(tmp_path)
    write(work, results)
    text = text_of(build_report(work).read_text())
    assert "The 2 series with the largest sales of the last year can be selected, out of 6" in text
    assert "salescast forecast --all --out forecasts.csv writes the forecasts of all series" in text
    assert "The table holds the 1 stores with the largest forecasts" in text


def test_every_table_that_is_cut_says_of_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workdir(tmp_path)
    write(work, results_of(raw_of(complete(3, 4), {1: "North", 2: "South", 3: "West"}), tested=True))
    whole = text_of(build_report(work).read_text())
    monkeypatch.setattr(totals, "MAX_ROWS", 2)
    monkeypatch.setattr(accuracy, "MAX_ROWS", 2)
    monkeypatch.setattr(accuracy, "WORST", 2)
    text = text_of(build_report(work).read_text())
    for said in (
        "Of 3 regions it holds the 2 with the largest forecasts",
        "The table holds the 2 stores with the largest forecasts",
        "The 2 with the most missed sales, of 4.",
        "The 2 with the most missed sales, of 3.",
        "Of 4 departments it holds the 2 with the largest forecasts",
        "The 2 series with the most missed sales, of 12.",
    ):
        assert said in text
        assert said not in whole


def test_a_whole_page_has_every_part_and_its_numbers(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    write(work, results_of(raw_of(complete(), {1: "North"}), tested=True))
    groups = pl.DataFrame({"group": ["lags", "economics"], "wmape": [0.2, 0.1], "increase": [0.1, 0.0]})
    groups.write_parquet(tmp_path / "importance.parquet")
    (work.raw / dataset.REJECTED).write_text("file,row,column,value,reason\na.csv,3,Date,x,Date is no date\n")
    run = {
        "model": "salescast",
        "version": 7,
        "champion": False,
        "reason": "loses",
        "seconds": {"data": 1.0, "training": 3.0},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert build_report(work) == work.report
    page = work.report.read_text()
    text = text_of(page)
    for part in (
        "2 stores, 4 series, sales through the week ending 26 Oct 2012",
        "model version 7", "not the champion", "Not the champion: loses.",
        "By region", "By store", "How good are these forecasts?",
        "“same week last year”, missed 30.0%",
        "Rejected: Date is no date 1", "4.0 s", "Not used: economics.", "Store Type Region Last",
    ):  # fmt: skip
        assert part in text
    assert "salescast run" not in text
    assert "lags +10.0%" in text
    assert re.search(
        r"made on \d+ \w{3} \d{4}, \d\d:\d\d UTC data: sales.csv, to 26 Oct 2012 unit: sales per week", text
    )


def test_parts_that_are_not_there_name_the_command(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    write(work, replace(results_of(raw_of(complete(), {})), forecasts=None))
    text = text_of(build_report(work).read_text())
    for sentence in (
        "There are no forecasts yet. Run salescast forecast --all , then salescast report .",
        "The forecasts have not been tested against known sales yet. Run salescast backtest ,",
        "The importance of the feature groups has not been measured. Run salescast run ,",
        "No timings have been kept. Run salescast run ,",
    ):
        assert sentence in text


def test_a_column_of_the_stores_that_nobody_knows_is_left_out(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    write(work, results_of(raw_of(complete(), {}), tested=True))
    text = text_of(build_report(work).read_text())
    assert "Store Type Last" in text and "Region" not in text


def test_models_are_compared_by_cutoff_and_in_holiday_weeks() -> None:
    results = results_of(raw_of(complete(), {}), tested=True)
    assert results.tested is not None
    shown = accuracy.build_accuracy(results, results.tested)
    holidays = retail_calendar.is_holiday(results.tested["week"].to_numpy(), retail_calendar.calendar("US")) > 0
    parts = {"true": holidays, "false": ~holidays}
    for model, values in shown.across.rows:
        for name, value in zip(shown.across.columns, values, strict=True):
            inside = parts.get(name, (results.tested["cutoff"].cast(pl.String) == name).to_numpy())
            rows = results.tested.filter(inside & (results.tested["model"] == model).to_numpy())
            missed = sum(abs(row["y"] - row["yhat"]) for row in rows.to_dicts())
            assert value == pytest.approx(missed / sum(abs(row["y"]) for row in rows.to_dicts()))
    assert [model for model, _ in shown.across.rows] == [row.model for row in shown.models]


def test_sales_without_departments_show_none(tmp_path: Path) -> None:
    sales = {(store, 0, week): value for (store, _, week), value in complete(3, 1).items()}
    work = Workdir(tmp_path)
    write(work, results_of(raw_of(sales, {}), tested=True))
    page = build_report(work).read_text()
    assert "department" not in text_of(page).lower()
    assert data_of(page)["dept"] == [0, 0, 0, 0]


def test_names_from_the_data_are_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><b>&\"'"
    work = Workdir(tmp_path)
    results = results_of(raw_of(complete(), {1: evil, 2: evil}))
    write(
        work, replace(results, raw=replace(results.raw, meta=replace(results.raw.meta, source=evil.replace("/", "|"))))
    )
    page = build_report(work).read_text()
    assert "alert(1)</script>" not in page
    assert "<b>&" not in page
    assert f"r:{evil}" in data_of(page)["places"]


def test_the_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    write(work, results_of(raw_of(complete(), {})))
    page = build_report(work).read_text()
    assert "default-src 'none'" in page
    assert not re.findall(r'<(?:link|img|script|iframe)[^>]*(?:src|href)="(?!data:)', page)


def test_a_page_of_630_series_holds_every_number_in_less_than_a_megabyte(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    dataset.generate(work.raw, stores=45, depts=14)
    raw = dataset.load(work.raw)
    keys = raw.sales.select("store_id", "dept_id").unique().collect()
    steps = pl.DataFrame({"horizon": range(1, 9)}).with_columns(
        week=pl.lit(raw.meta.last_week) + pl.duration(weeks=pl.col("horizon"))
    )
    mid = pl.col("store_id") * 1234.56789
    keys.join(steps, how="cross").with_columns(p10=mid * 0.9, forecast=mid, p90=mid * 1.1, mean=mid).write_parquet(
        work.forecasts
    )
    page = build_report(work)
    assert page.stat().st_size < 1e6
    expected = series.build_series(Results(raw, pl.read_parquet(work.forecasts), None, None, None, {}))
    for name, values in columns_of(page.read_text()).items():
        np.testing.assert_allclose(values, expected.columns[name], rtol=1e-6)  # the order of sums may differ


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", r"run\.json cannot be read \(Expecting property name.*\); run `salescast run` again"),
        ("backtest.parquet", "no", r"backtest\.parquet is damaged .*; run `salescast backtest` again"),
        ("data/raw/dataset.json", "{}", r"dataset\.json cannot be used"),
    ],
)
def test_an_unreadable_file_is_named_and_the_earlier_report_stays(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    work = Workdir(tmp_path)
    write(work, results_of(raw_of(complete(), {})))
    before = build_report(work).read_bytes()
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        build_report(work)
    assert work.report.read_bytes() == before


def test_forecasts_of_other_sales_are_refused(tmp_path: Path) -> None:
    work = Workdir(tmp_path)
    results = results_of(raw_of(complete(), {}))
    write(work, results)
    assert results.forecasts is not None
    results.forecasts.with_columns(pl.col("week") + timedelta(weeks=1)).write_parquet(work.forecasts)
    with pytest.raises(UserError, match="does not begin after the last week of the sales, 2012-10-26; run the stages"):
        build_report(work)


def test_no_sales_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset in .*; run `salescast data generate` or `salescast data import`"):
        build_report(Workdir(tmp_path))
    assert not (tmp_path / "report.html").exists()


@given(st.floats(-1e12, 1e12, allow_nan=False))
def test_numbers_keep_their_value(value: float) -> None:
    shown = number(value)
    assert re.fullmatch(r"-?\d{1,3}(,\d{3})*(\.\d\d)?", shown)
    assert float(shown.replace(",", "")) == pytest.approx(
        value, abs=0.500001 if abs(value) >= 100 else 0.005001
    )  # a tie, as a float


def test_missing_numbers_are_dashes() -> None:
    assert [number(None), percent(None), percent(math.nan), percent(math.inf)] == ["–"] * 4
    assert [percent(0.1234), percent(0.1, True), day(LAST)] == ["12.3%", "+10.0%", "26 Oct 2012"]
    assert [title_of("naive"), title_of("other")] == ["last week repeated", "other"]
