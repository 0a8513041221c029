"""Sales, forecasts and backtest of everything that can be selected, as arrays with one row per selectable entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast import retail_calendar
from salescast.evaluation.hierarchy import aggregate
from salescast.evaluation.metrics import wmape
from salescast.report.results import Results
from salescast.schema import KEYS, LABEL, SEASON

MAX_HISTORY: Final = 2 * SEASON  # weeks of sales in the charts; fewer if there are very many series
MAX_VALUES: Final = 6_000_000  # numbers in the file, about 3.5 bytes each

Floats = NDArray[np.float64]
ENTRY: Final = ("place", "dept_id")


@dataclass(frozen=True)
class SeriesData:
    """One row per entry, in the order of `entries`; NaN where a value is missing.

    An entry is a place ("*" all stores, "c:CATEGORY", "r:REGION", "s:STORE") and a department (null: all together).
    """

    entries: pl.DataFrame  # place, dept_id
    series: int  # how many single series the entries hold
    weeks: list[date]
    ahead: list[date]
    cutoff: date | None  # of the last backtest
    tested: list[date]
    holidays: dict[str, str]  # names by ISO date of the week
    columns: dict[str, Floats]  # sales (weeks); mid, low, high (ahead); test (tested); missed (1)

    @property
    def has_forecasts(self) -> bool:
        return "mid" in self.columns

    def year_before(self) -> Floats:
        """Sales 52 weeks before each forecast week, (entries, ahead)."""
        at = [self.weeks.index(week - timedelta(weeks=SEASON)) for week in self.ahead]
        return self.columns["sales"][:, at]


def build_series(results: Results) -> SeriesData:
    """Every series, and its sums by store, department, category, region and all together."""
    last, ahead = results.raw.meta.last_week, results.ahead
    kept, history = _kept(results)
    past = [last - timedelta(weeks=back) for back in reversed(range(history))]
    sales = _sums(results, kept, results.raw.sales.filter(pl.col("week") >= past[0]), ["week"], [LABEL])
    entries = sales.select(ENTRY).unique().sort(ENTRY)
    columns = {"sales": _grid(sales, entries, past, LABEL)}
    if results.forecasts is not None:
        only = None if entries["dept_id"].has_nulls() else entries["dept_id"][0]
        ranges = _ranges(results, results.forecasts, only)
        known = results.forecasts.lazy()
        summed = _sums(results, kept, known, ["week"], ["forecast", "mean"])
        columns["mid"] = _grid(summed.with_columns(_point("forecast")), entries, ahead, "forecast")
        columns |= {name: _grid(ranges, entries, ahead, of) for name, of in (("low", "p10"), ("high", "p90"))}
    cutoff, tested = None, []
    if results.own is not None:
        rows = _sums(results, kept, results.own.lazy(), ["cutoff", "week"], ["y", "yhat", "mean"]).with_columns(
            _point("yhat")
        )
        latest = rows.filter(pl.col("cutoff") == pl.col("cutoff").max())
        cutoff, tested = latest["cutoff"].max(), latest["week"].unique().sort().to_list()
        columns["test"] = _grid(latest, entries, tested, "yhat")
        columns["missed"] = _errors(rows, entries)
    assert cutoff is None or isinstance(cutoff, date)
    holidays = _holidays(results.raw.meta.country, np.array([*past, *ahead], "datetime64[D]"))
    return SeriesData(entries, kept.height, past, ahead, cutoff, tested, holidays, columns)


def _kept(results: Results) -> tuple[pl.DataFrame, int]:
    """Keys of the series that the file holds, and its weeks of history.

    All series whenever one year of history fits into MAX_VALUES; else those with the largest sales of the last year.
    """
    since = results.raw.meta.last_week - timedelta(weeks=SEASON)
    sizes = results.raw.sales.group_by(KEYS).agg(pl.col(LABEL).filter(pl.col("week") > since).sum())
    ranked = sizes.collect(engine="streaming")
    extra = 5 * len(results.ahead)
    history = min(MAX_HISTORY, max(SEASON, MAX_VALUES // ranked.height - extra))
    return ranked.top_k(MAX_VALUES // (history + extra), by=LABEL).select(KEYS).sort(KEYS), history


def _sums(
    results: Results, kept: pl.DataFrame, rows: pl.LazyFrame, by: Sequence[str], sums: Sequence[str]
) -> pl.DataFrame:
    """The columns `sums` of `rows` added up for every entry: place, dept_id, `by`, `sums`.

    Stores and series only as far as they are `kept`. A sum is over what was observed and is absent where nothing was.
    """
    regions = results.raw.stores.select("store_id", "region").lazy()
    category = pl.col("dept_id").replace_strict(results.categories, default=None, return_dtype=pl.String)
    rows = rows.join(regions, on="store_id", how="left").with_columns(category=category)
    depts = ("dept_id",) if kept["dept_id"].n_unique() == 1 else (None, "dept_id")
    parts = []
    for prefix, of in (("*", None), ("c:", "category"), ("r:", "region"), ("s:", "store_id")):
        for dept in depts if of != "category" else (None,) if results.categories and None in depts else ():
            keys = [key for key in (of, dept) if key]
            part = rows.filter(pl.col(of).is_not_null()) if of else rows
            if of == "store_id":
                part = part.join(kept.select(keys).unique().lazy(), on=keys, how="semi")
            place = pl.concat_str(pl.lit(prefix), pl.col(of)) if of else pl.lit(prefix)
            named = (place.alias("place"), pl.col("dept_id") if dept else pl.lit(None, pl.Int32).alias("dept_id"))
            parts.append(part.group_by(*keys, *by).agg(pl.col(*sums).sum()).select(*named, *by, *sums))
    return pl.concat(pl.collect_all(parts, engine="streaming"))


def _point(median: str) -> pl.Expr:
    """The column `median` of single series, and the sum of means of everything that is a sum."""
    single = pl.col("place").str.starts_with("s:") & pl.col("dept_id").is_not_null()
    return pl.when(single).then(median).otherwise("mean").alias(median)


def _grid(rows: pl.DataFrame, entries: pl.DataFrame, weeks: Sequence[date], value: str) -> Floats:
    """`value` as an array (entries, weeks); NaN where there is none."""
    at = pl.DataFrame({"week": weeks}, schema={"week": pl.Date}).with_row_index("column")
    cells = rows.join(entries.with_row_index("row"), on=ENTRY, nulls_equal=True).join(at, on="week")
    grid = np.full((entries.height, len(weeks)), np.nan)
    grid[cells["row"].to_numpy(), cells["column"].to_numpy()] = cells[value].cast(pl.Float64).to_numpy()
    return grid


def _errors(rows: pl.DataFrame, entries: pl.DataFrame) -> Floats:
    """WMAPE of each entry in the backtest, (entries, 1)."""
    errors = rows.group_by(ENTRY).agg(wmape=wmape())
    joined = entries.join(errors, on=ENTRY, how="left", nulls_equal=True, maintain_order="left")
    values = joined["wmape"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)[:, None]


def _ranges(results: Results, forecasts: pl.DataFrame, only: int | None) -> pl.DataFrame:
    """place, dept_id, week, p10, p90 of every series and, after a backtest, of its sums.

    The range of a sum is not the sum of the ranges: sums over one department have none. `only` is the department of
    sales that have a single one, else None.
    """
    columns = ("place", "dept_id", "week", "p10", "p90")
    series = forecasts.with_columns(place=pl.concat_str(pl.lit("s:"), "store_id")).select(columns)
    if results.own is None:
        return series
    new = forecasts.rename({"forecast": "yhat"}).with_columns(cutoff=pl.lit(results.raw.meta.last_week))
    levels = {"region": pl.concat_str(pl.lit("r:"), "group"), "total": pl.lit("*")}
    levels |= {"category": pl.concat_str(pl.lit("c:"), "group")} if results.categories and only is None else {}
    levels |= {"store": pl.concat_str(pl.lit("s:"), "group")} if only is None else {}
    sums = aggregate(new, results.own, results.raw.stores, results.categories).with_columns(
        dept_id=pl.lit(only, pl.Int32)
    )
    named = [sums.filter(pl.col("level") == level).with_columns(place=place) for level, place in levels.items()]
    return pl.concat([series, *(part.select(columns) for part in named)])


def _holidays(country: str, weeks: NDArray[np.datetime64]) -> dict[str, str]:
    """The names of the holidays of each week that holds a headline one."""
    cal = retail_calendar.calendar(country)
    held = retail_calendar.holidays_in_week(weeks, cal)[:, 1:]
    headline = retail_calendar.is_holiday(weeks, cal) > 0
    return {
        str(week): ", ".join(np.array(cal.names[1:])[row])
        for week, row in zip(weeks[headline], held[headline], strict=True)
    }
