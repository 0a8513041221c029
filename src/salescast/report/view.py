"""Everything the report shows, as typed values: the input of the template and of the page's script."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypedDict

import polars as pl

from salescast.data.dataset import GENERATED, Dataset
from salescast.data.import_report import reasons
from salescast.report.accuracy import Accuracy, BacktestCharts, build_accuracy
from salescast.report.columns import Packed, pack
from salescast.report.quality import Quality, build_quality
from salescast.report.results import Results, RunRecord
from salescast.report.series import SeriesData, build_series
from salescast.report.totals import Exceptions, Totals, build_exceptions, build_totals


@dataclass(frozen=True)
class Importance:
    """Groups of features by the increase of the WMAPE when one is shuffled, the largest first; others are unused."""

    increase: dict[str, float]
    unused: list[str]


class Part(TypedDict):
    """Entries from `first` on, in the text of the same position in `View.packed`; see `columns.Packed.layout`."""

    first: int
    layout: dict[str, tuple[int, int]]


class PageData(TypedDict):
    """What report.js reads as JSON; the numbers are in `View.packed`."""

    model: str
    weeks: list[date]
    ahead: list[date]
    cutoff: date | None
    tested: list[date]
    holidays: dict[str, str]
    places: list[str]
    names: dict[str, dict[int, str]]  # "store", "dept" -> own ids that are not the number, by number
    facts: dict[str, str]  # by place: words that the search looks in, such as region and type of a store
    place: list[int]  # by entry: index into `places`
    dept: list[int | None]
    parts: list[Part]
    charts: BacktestCharts | None


@dataclass(frozen=True)
class View:
    meta: Dataset
    made: datetime
    source: str
    run: RunRecord
    model: str
    series: SeriesData
    single: bool  # one department only: the page does not speak of departments
    totals: Totals | None
    exceptions: Exceptions | None
    accuracy: Accuracy | None
    importance: Importance | None
    quality: Quality
    rejected: list[tuple[str, int]]
    packed: list[str]
    data: PageData


def build_view(results: Results) -> View:
    series = build_series(results)
    tested = results.tested
    accuracy = None if tested is None else build_accuracy(results, tested)
    packed = _packed(series)
    source = results.raw.meta.source
    return View(
        meta=results.raw.meta,
        made=datetime.now(UTC),
        source="demo data" if source == GENERATED else Path(source).name,
        run=results.run,
        model=results.model,
        series=series,
        single=not series.entries["dept_id"].has_nulls(),
        totals=build_totals(series, results.raw.stores) if series.has_forecasts else None,
        exceptions=None if results.forecasts is None else build_exceptions(results, results.forecasts),
        accuracy=accuracy,
        importance=_importance(results.importance),
        quality=build_quality(results.raw),
        rejected=[] if results.rejected is None else reasons(results.rejected).select("reason", "rows").rows(),
        packed=[part.text for part in packed.values()],
        data=_page_data(results, series, packed, None if accuracy is None else accuracy.charts),
    )


def _packed(series: SeriesData) -> dict[int, Packed]:
    """The columns by first entry: sums of stores, which the page opens with, apart from stores and series."""
    names = series.entries["place"]
    split = names.len() - int(names.str.starts_with("s:").sum())
    bounds = ((0, split), (split, names.len()))
    return {first: pack({name: values[first:end] for name, values in series.columns.items()}) for first, end in bounds}


def _importance(table: pl.DataFrame | None) -> Importance | None:
    if table is None:
        return None
    groups = table.sort("increase", descending=True).select("group", "increase").rows()
    used = {group: increase for group, increase in groups if increase}
    return Importance(used, [group for group, increase in groups if not increase])


def _page_data(
    results: Results, series: SeriesData, packed: dict[int, Packed], charts: BacktestCharts | None
) -> PageData:
    names = series.entries["place"]
    places = names.unique(maintain_order=True).to_list()
    index = {place: i for i, place in enumerate(places)}
    facts = {
        f"s:{store}": " ".join(part for part in (region, f"type {kind}" if kind else None) if part)
        for store, region, kind in results.raw.stores.select("store_id", "region", "store_type").iter_rows()
    }
    return {
        "model": results.model,
        "weeks": series.weeks,
        "ahead": series.ahead,
        "cutoff": series.cutoff,
        "tested": series.tested,
        "holidays": series.holidays,
        "places": places,
        "names": {
            kind: other
            for kind, entity in (("store", "store_id"), ("dept", "dept_id"))
            if (other := results.shown(entity))
        },
        "facts": {place: words for place, words in facts.items() if words and place in index},
        "place": [index[place] for place in names],
        "dept": series.entries["dept_id"].to_list(),
        "parts": [{"first": first, "layout": part.layout} for first, part in packed.items()],
        "charts": charts,
    }
