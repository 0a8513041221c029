"""Tables of totals, and the exceptions: the series that a planner should look at first."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import polars as pl

from salescast.evaluation.metrics import bias
from salescast.report.results import Results
from salescast.report.series import Floats, SeriesData
from salescast.schema import KEYS, LABEL, SEASON

MAX_ROWS: Final = 500  # of one table
TOP: Final = 5  # series of one kind of exception
ENDED: Final = 4  # weeks without a sale after which a series counts as ended


@dataclass(frozen=True)
class TotalRow:
    """Sums of an entry; None where nothing was observed. `change`: share of the year before."""

    place: str
    dept: int | None
    last: float | None  # the last weeks, as many as forecast weeks
    next: float | None  # the forecast weeks
    year: float | None  # the same weeks a year before
    change: float | None
    first: float | None  # the first forecast week, with its range
    low: float | None
    high: float | None
    store_type: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class Totals:
    every: TotalRow
    categories: list[TotalRow]
    regions: list[TotalRow]
    stores: list[TotalRow]
    departments: list[TotalRow]
    static: list[str]  # which of store_type and region are known
    counts: dict[str, int]  # rows before the cut at MAX_ROWS: categories, regions, departments


def build_totals(data: SeriesData, stores: pl.DataFrame) -> Totals:
    """Forecast weeks beside the last weeks and the same weeks of the year before, the largest forecast first."""
    place, dept = data.entries["place"].to_list(), data.entries["dept_id"].to_list()
    top = dept[place.index("*")]
    sales, mid, year = data.columns["sales"], data.columns["mid"], data.year_before()
    static = {f"s:{row['store_id']}": row for row in stores.select("store_id", "store_type", "region").to_dicts()}

    def row(at: int) -> TotalRow:
        then, now = _total(year[at]), _total(mid[at])
        known = static.get(place[at], {})
        first, low, high = (_number(data.columns[name][at, 0]) for name in ("mid", "low", "high"))
        return TotalRow(
            place=place[at],
            dept=dept[at],
            last=_total(sales[at, -len(data.ahead) :]),
            next=now,
            year=then,
            change=now / then - 1 if now is not None and then else None,
            first=first,
            low=low,
            high=high,
            store_type=known.get("store_type"),
            region=known.get("region"),
        )

    def rows(prefix: str) -> list[TotalRow]:
        chosen = [row(i) for i, name in enumerate(place) if name.startswith(prefix) and dept[i] == top]
        return sorted(chosen, key=lambda one: one.next or 0, reverse=True)

    by_dept = [row(i) for i, name in enumerate(place) if name == "*" and dept[i] != top]
    by_dept.sort(key=lambda one: one.next or 0, reverse=True)
    categories, regions = rows("c:"), rows("r:")
    known = [name for name in ("store_type", "region") if stores[name].count()]
    counts = {"categories": len(categories), "regions": len(regions), "departments": len(by_dept)}
    return Totals(
        rows("*")[0],
        categories[:MAX_ROWS],
        regions[:MAX_ROWS],
        rows("s:")[:MAX_ROWS],
        by_dept[:MAX_ROWS],
        known,
        counts,
    )


def _total(values: Floats) -> float | None:
    return None if np.isnan(values).all() else float(np.nansum(values))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class Exceptional:
    """A series in a list of exceptions: `share` is what it is ranked by, `now` and `then` the numbers behind it."""

    place: str
    dept: int
    share: float | None
    now: float | None
    then: float | None


@dataclass(frozen=True)
class Exceptions:
    """The first TOP series of each kind, and how many have no sales. None: not known without a backtest."""

    change: list[Exceptional]  # share: change on the year before; now, then: sums of the forecast weeks
    width: list[Exceptional]  # share: high minus low over the forecast; now, then: low and high of the first week
    bias: list[Exceptional] | None  # share: bias since the last cutoff; now: forecast, then: sold
    silent: list[Exceptional]  # now: sum of the forecast weeks
    silent_count: int


def build_exceptions(results: Results, forecasts: pl.DataFrame) -> Exceptions:
    """Exceptions among all series.

    Ranked by shares, and shares of small numbers are large: change, range and bias therefore leave out the half of the
    series with the smaller forecasts.
    """
    week = pl.col("week")
    ago = results.raw.sales.select(*KEYS, week + timedelta(weeks=SEASON), year=LABEL)
    weeks = forecasts.lazy().join(ago, on=[*KEYS, "week"], how="left")
    series = weeks.sort(*KEYS, "week").group_by(KEYS, maintain_order=True).agg(
        pl.col("forecast").sum(),
        change=pl.when(pl.col("year").is_not_null().all()).then(pl.col("year").sum()),
        width=(pl.col("p90") - pl.col("p10")).sum(),
        low=pl.col("p10").first(),
        high=pl.col("p90").first(),
    ).collect()  # fmt: skip
    large = series.filter((pl.col("forecast") >= pl.col("forecast").median()) & (pl.col("forecast") > 0))
    then = pl.col("change")
    change = large.filter(then > 0).select(*KEYS, share=pl.col("forecast") / then - 1, now="forecast", then=then)
    width = large.select(*KEYS, share=pl.col("width") / pl.col("forecast"), now="low", then="high")
    silent = series.join(_silent(results), on=KEYS, how="semi")
    return Exceptions(
        _top(change),
        _top(width),
        None if results.own is None else _top(_bias(results.own.join(large, on=KEYS, how="semi"))),
        _top(silent.select(*KEYS, share="forecast", now="forecast", then=pl.lit(None, pl.Float64))),
        silent.height,
    )


def _bias(own: pl.DataFrame) -> pl.DataFrame:
    latest = own.filter(pl.col("cutoff") == pl.col("cutoff").max())
    return latest.group_by(KEYS).agg(share=bias(), now=pl.col("yhat").sum(), then=pl.col("y").sum())


def _silent(results: Results) -> pl.DataFrame:
    """Keys of the series without a sale in the last ENDED weeks."""
    since = results.raw.meta.last_week - timedelta(weeks=ENDED)
    sold = (pl.col("week") > since) & (pl.col(LABEL) != 0)
    return results.raw.sales.group_by(KEYS).agg(sold=sold.any()).filter(~pl.col("sold")).select(KEYS).collect()


def _top(rows: pl.DataFrame) -> list[Exceptional]:
    finite = rows.filter(pl.col("share").is_finite()).sort(
        pl.col("share").abs(), *KEYS, descending=[True, False, False]
    )
    return [Exceptional(f"s:{row[0]}", *row[1:]) for row in finite.head(TOP).iter_rows()]
