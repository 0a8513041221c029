"""What the report shows, as plain values: from the tables of a run to lists, dictionaries and short tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from salescast import retail_calendar
from salescast.data.dataset import Raw
from salescast.data.ingest import opening_days, reasons
from salescast.evaluation.hierarchy import aggregate
from salescast.evaluation.metrics import coverage, scores, seasonal_scales, wmape
from salescast.schema import KEYS, LABEL, SEASON

HISTORY: Final = 2 * SEASON  # weeks of sales that the charts show
MAX_VALUES: Final = 800_000  # numbers in the file, about nine characters each
MAX_ROWS: Final = 500  # of any one table
WORST: Final = 20
DIGITS: Final = 8  # significant, of the numbers in the charts
ENDED: Final = 4  # weeks without a sale after which a series counts as ended

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Results:
    """What a workdir holds. None and {} stand for what has not been made yet."""

    raw: Raw
    forecasts: pl.DataFrame | None
    backtest: pl.DataFrame | None
    importance: pl.DataFrame | None
    rejected: pl.DataFrame | None
    run: dict[str, Any]

    @property
    def ahead(self) -> list[date]:
        """The forecast weeks."""
        return [] if self.forecasts is None else self.forecasts["week"].unique().sort().to_list()

    @property
    def tested(self) -> pl.DataFrame | None:
        """The backtest's rows with observed sales; None where there is none."""
        seen = None if self.backtest is None else self.backtest.filter(pl.col("y").is_not_null())
        return None if seen is None or seen.is_empty() else seen

    @property
    def model(self) -> str:
        """The product's own model in the backtest."""
        return str(self.run.get("model") or ("" if self.tested is None else self.tested["model"][0]))


def build_view(results: Results) -> dict[str, Any]:
    """Everything the template needs; `data` is what the page's script draws."""
    kept = _kept(results)
    series = _series(results, kept)
    tested = results.tested
    accuracy = None if tested is None else _accuracy(results, tested)
    charts = {} if tested is None else _charts(tested, results.model)
    unused: list[str] = []
    if results.importance is not None:
        groups = results.importance.sort("increase", descending=True)
        used = pl.col("increase") != 0
        charts["importance"] = groups.filter(used).to_dict(as_series=False)
        unused = groups.filter(~used)["group"].to_list()
    return {
        "meta": results.raw.meta,
        "source": Path(results.raw.meta.source).name,
        "run": results.run,
        "model": results.model,
        "ahead": results.ahead,
        "kept": kept.height,
        "single": kept["dept_id"].n_unique() == 1,
        "totals": _totals(series, results.raw.stores),
        "accuracy": accuracy,
        "unused": unused,
        "quality": _quality(results.raw),
        "rejected": [] if results.rejected is None else reasons(results.rejected).to_dicts(),
        "data": {"model": results.model, **series, "charts": charts},
    }


def _kept(results: Results) -> pl.DataFrame:
    """The keys of the series that the file holds: all, or those with the largest sales of the last year."""
    values = HISTORY + 4 * len(results.ahead)
    since = results.raw.meta.last_week - timedelta(weeks=SEASON)
    return (
        results.raw.sales.group_by(KEYS)
        .agg(pl.col(LABEL).filter(pl.col("week") > since).sum())
        .top_k(MAX_VALUES // values, by=LABEL)
        .select(KEYS)
        .sort(KEYS)
        .collect(engine="streaming")
    )


def _sums(
    results: Results, kept: pl.DataFrame, rows: pl.LazyFrame, by: Sequence[str], sums: Sequence[str]
) -> pl.DataFrame:
    """The columns `sums` of `rows` added up for everything that can be picked: place, dept_id, `by`, `sums`.

    Places are "*" (everything), "r:REGION" and "s:STORE"; dept_id is null for all departments together. Stores and
    series only as far as they are `kept`. A sum is over what was observed and is absent where nothing was.
    """
    regions = results.raw.stores.select("store_id", "region").lazy()
    rows = rows.join(regions, on="store_id", how="left")
    depts = ("dept_id",) if kept["dept_id"].n_unique() == 1 else (None, "dept_id")
    parts = []
    for prefix, of in (("*", None), ("r:", "region"), ("s:", "store_id")):
        for dept in depts:
            keys = [key for key in (of, dept) if key]
            part = rows.filter(pl.col("region").is_not_null()) if of == "region" else rows
            if of == "store_id":
                part = part.join(kept.select(keys).unique().lazy(), on=keys, how="semi")
            place = pl.concat_str(pl.lit(prefix), pl.col(of)) if of else pl.lit(prefix)
            named = (place.alias("place"), pl.col("dept_id") if dept else pl.lit(None, pl.Int32).alias("dept_id"))
            parts.append(part.group_by(*keys, *by).agg(pl.col(*sums).sum()).select(*named, *by, *sums))
    return pl.concat(pl.collect_all(parts, engine="streaming"))


def _grid(rows: pl.DataFrame, picks: pl.DataFrame, dates: Sequence[date], value: str) -> list[list[float | None]]:
    """One list over `dates` for each row of `picks` (place, dept_id); None where there is no value."""
    keys = ["place", "dept_id"]
    cells = picks.join(pl.DataFrame({"week": dates}, schema={"week": pl.Date}), how="cross", maintain_order="left")
    filled = cells.join(
        rows.select(*keys, "week", value), on=[*keys, "week"], how="left", nulls_equal=True, maintain_order="left"
    )
    lists = filled.group_by(keys, maintain_order=True).agg(pl.col(value).round_sig_figs(DIGITS))
    return lists[value].to_list()


def _series(results: Results, kept: pl.DataFrame) -> dict[str, Any]:
    """History, forecast fan and last tested forecast of everything that can be picked, column by column."""
    last, ahead = results.raw.meta.last_week, results.ahead
    past = [last - timedelta(weeks=back) for back in reversed(range(HISTORY))]
    sales = _sums(results, kept, results.raw.sales.filter(pl.col("week") >= past[0]), ["week"], [LABEL])
    picks = sales.select("place", "dept_id").unique().sort("place", "dept_id")
    found: dict[str, Any] = {
        "weeks": past,
        "ahead": ahead,
        "holidays": _holidays(results.raw.meta.country, np.array([*past, *ahead], "datetime64[D]")),
        "place": picks["place"].to_list(),
        "dept": picks["dept_id"].to_list(),
        "sales": _grid(sales, picks, past, LABEL),
    }
    if results.forecasts is not None:
        summed = _sums(results, kept, results.forecasts.lazy(), ["week"], ["forecast"])
        ranges = _ranges(results, results.forecasts, None if picks["dept_id"].has_nulls() else picks["dept_id"][0])
        found["mid"] = _grid(summed, picks, ahead, "forecast")
        found["low"], found["high"] = (_grid(ranges, picks, ahead, column) for column in ("p10", "p90"))
    if results.tested is not None:
        own = results.tested.filter(pl.col("model") == results.model)
        tested = _sums(results, kept, own.lazy(), ["cutoff", "week"], ["y", "yhat"])
        latest = tested.filter(pl.col("cutoff") == pl.col("cutoff").max())
        dates = latest["week"].unique().sort().to_list()
        error = tested.group_by("place", "dept_id").agg(wmape=wmape().round_sig_figs(4))
        missed = picks.join(error, on=["place", "dept_id"], how="left", nulls_equal=True, maintain_order="left")
        found |= {"cutoff": latest["cutoff"].max(), "tested": dates, "test": _grid(latest, picks, dates, "yhat")}
        found["missed"] = missed["wmape"].replace([np.inf, np.nan], None).to_list()
    return found


def _ranges(results: Results, forecasts: pl.DataFrame, only: int | None) -> pl.DataFrame:
    """place, dept_id, week, p10, p90 of every series and, after a backtest, of stores, regions and the total.

    The range of a sum is not the sum of the ranges: sums of some departments have none. `only` is the one department
    of sales that have no departments, else None.
    """
    columns = ("place", "dept_id", "week", "p10", "p90")
    series = forecasts.with_columns(place=pl.concat_str(pl.lit("s:"), "store_id")).select(columns)
    if results.tested is None:
        return series
    errors = results.tested.filter(pl.col("model") == results.model)
    new = forecasts.rename({"forecast": "yhat"}).with_columns(cutoff=pl.lit(results.raw.meta.last_week))
    levels = {"region": pl.concat_str(pl.lit("r:"), "group"), "total": pl.lit("*")}
    levels |= {"store": pl.concat_str(pl.lit("s:"), "group")} if only is None else {}
    sums = aggregate(new, errors, results.raw.stores).with_columns(dept_id=pl.lit(only, pl.Int32))
    named = [sums.filter(pl.col("level") == level).with_columns(place=place) for level, place in levels.items()]
    return pl.concat([series, *(part.select(columns) for part in named)])


def _holidays(country: str, dates: NDArray[np.datetime64]) -> dict[str, str]:
    """The names of the holidays of each week that holds a headline one."""
    cal = retail_calendar.calendar(country)
    held = retail_calendar.holidays_in_week(dates, cal)[:, 1:]
    headline = retail_calendar.is_holiday(dates, cal) > 0
    return {
        str(week): ", ".join(np.array(cal.names[1:])[row])
        for week, row in zip(dates[headline], held[headline], strict=True)
    }


def _total(values: Sequence[float | None]) -> float | None:
    observed = [value for value in values if value is not None]
    return sum(observed) if observed else None


def _totals(series: dict[str, Any], stores: pl.DataFrame) -> dict[str, Any]:
    """The forecast weeks of every region and store beside the last weeks and the same weeks of the year before."""
    if "mid" not in series:
        return {}
    ago = [series["weeks"].index(week - timedelta(weeks=SEASON)) for week in series["ahead"]]
    top = series["dept"][series["place"].index("*")]
    static = {f"s:{row['store_id']}": row for row in stores.to_dicts()}
    rows: Rows = []
    for place, dept, sales, mid in zip(*(series[name] for name in ("place", "dept", "sales", "mid")), strict=True):
        if dept == top:
            year = _total([sales[i] for i in ago])
            next_weeks = _total(mid)
            change = next_weeks / year - 1 if next_weeks is not None and year else None
            rows.append(
                {"place": place, "last": _total(sales[-len(ago) :]), "next": next_weeks, "year": year, "change": change}
                | static.get(place, {"region": place.removeprefix("r:")})
            )
    rows.sort(key=lambda row: row["next"] or 0, reverse=True)
    every = {kind: [row for row in rows if row["place"].startswith(kind)] for kind in "*rs"}
    found = {kind: part[:MAX_ROWS] for kind, part in every.items()}
    known = [name for name in ("store_type", "region") if stores[name].count()]
    regions = len(every["r"])
    return {"all": found["*"], "regions": found["r"], "stores": found["s"], "known": known, "region_count": regions}


def _accuracy(results: Results, tested: pl.DataFrame) -> dict[str, Any]:
    """The backtest in tables: overall and by cutoff, holiday week, store and department, and the worst series."""
    model, cal = results.model, retail_calendar.calendar(results.raw.meta.country)
    known = tested["week"].unique().sort()
    flags = pl.DataFrame({"week": known, "is_holiday": retail_calendar.is_holiday(known.to_numpy(), cal) > 0})
    keys = tested.select(KEYS).unique()
    sales = results.raw.sales.join(keys.lazy(), on=KEYS, how="semi").collect()
    cutoffs = tested["cutoff"].unique().sort().to_list()
    scales = seasonal_scales(sales, cutoffs)
    marked = tested.join(flags, on="week")
    models = scores(marked.join(scales, on=[*KEYS, "cutoff"], how="left"))
    rivals = [name for name in models["model"] if name != model]
    own = tested.filter(pl.col("model") == model).with_columns(
        off=pl.when(pl.col("y") != 0).then(((pl.col("y") - pl.col("yhat")) / pl.col("y")).abs())
    )
    steps = own.group_by("horizon").agg(half=pl.col("off").median(), within=coverage()).sort("horizon")
    pair = tested.filter(pl.col("model").is_in([model, *rivals[:1]]))
    return {
        "cutoffs": cutoffs,
        "models": models.to_dicts(),
        "own": models.row(by_predicate=pl.col("model") == model, named=True),
        "rival": models.row(by_predicate=pl.col("model") == rivals[0], named=True) if rivals else None,
        "steps": steps.to_dicts(),
        "tested": {
            "stores": _count(own, "store_id"),
            "departments": _count(own, "dept_id"),
            "series": _count(own, *KEYS),
        },
        "across": _across(marked, ["cutoff", "is_holiday"]),
        "by_store": _beside(pair, model, ["store_id"]),
        "by_dept": _beside(pair, model, ["dept_id"]),
        "worst": _beside(pair, model, list(KEYS))[:WORST],
    }


def _count(rows: pl.DataFrame, *keys: str) -> int:
    return rows.select(keys).n_unique()


def _across(tested: pl.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """WMAPE with a row for every model, best first, and a column for every value of each of `columns`."""
    wide = scores(tested).select("model")
    for column in columns:
        part = scores(tested, ["model", column]).pivot(column, index="model", values="wmape", sort_columns=True)
        wide = wide.join(part, on="model", how="left", maintain_order="left")
    return {"columns": wide.columns[1:], "rows": [(row[0], row[1:]) for row in wide.iter_rows()]}


def _beside(pair: pl.DataFrame, model: str, by: list[str]) -> Rows:
    """Scores of `model` by `by` beside the WMAPE of the other model in `pair`, the largest missed sales first."""
    seen = pair.with_columns(sold=pl.col("y").abs(), off=(pl.col("y") - pl.col("yhat")).abs())
    mine = pl.col("model") == model
    size = seen.filter(mine).group_by(by).agg(pl.col("sold", "off").sum())
    table = scores(seen, ["model", *by])
    other = table.filter(~mine).select(*by, rival="wmape")
    found = table.filter(mine).join(size, on=by).join(other, on=by, how="left").sort("off", descending=True)
    return found.with_columns(share=pl.col("off") / pl.col("off").sum()).head(MAX_ROWS).to_dicts()


def _charts(tested: pl.DataFrame, model: str) -> dict[str, Any]:
    """By horizon: WMAPE of every model, and how many sales lay at or below each quantile of the own model."""
    errors = scores(tested, ["model", "horizon"]).sort("horizon")
    order = scores(tested)["model"].to_list()
    below = {name: (pl.col("y") <= pl.col(name)).filter(pl.col(name).is_not_null()).mean() for name in _QUANTILES}
    own = tested.filter(pl.col("model") == model).group_by("horizon").agg(**below, within=coverage()).sort("horizon")
    return {
        "horizon": errors["horizon"].unique().sort().to_list(),
        "error": {name: _finite(errors.filter(pl.col("model") == name)["wmape"]) for name in order},
        "below": {name: _finite(own[name]) for name in (*_QUANTILES, "within")},
    }


_QUANTILES: Final = {"p10": 0.1, "yhat": 0.5, "p90": 0.9}


def _finite(values: pl.Series) -> list[float | None]:
    return [None if value is None or not np.isfinite(value) else round(value, 5) for value in values]


def _quality(raw: Raw) -> dict[str, Any]:
    """Counts of what a planner would ask about: gaps, returns, zeros, young and ended series, missing conditions."""
    one = raw.sales.group_by(KEYS).agg(
        rows=pl.len(),
        first=pl.col("week").min(),
        last=pl.col("week").max(),
        negative=(pl.col(LABEL) < 0).sum(),
        zero=(pl.col(LABEL) == 0).sum(),
    )
    one = one.with_columns(gaps=(pl.col("last") - pl.col("first")).dt.total_days() // 7 + 1 - pl.col("rows"))
    last = raw.meta.last_week
    counts = one.select(
        pl.col("negative", "zero", "gaps").sum(),
        with_gaps=(pl.col("gaps") > 0).sum(),
        ended=(pl.col("last") <= last - timedelta(weeks=ENDED)).sum(),
        young=(pl.col("first") > last - timedelta(weeks=SEASON)).sum(),
    )
    seen = raw.store_weeks.filter(pl.col("week") <= last)
    conditions = seen.select(pl.exclude("store_id", "week").is_null().mean()).row(0, named=True)
    missing = {name: share for name, share in conditions.items() if share}
    found = counts.collect(engine="streaming").row(0, named=True) | {"missing": missing}
    if raw.plan is None or raw.meta.open_days is None:
        return found | {"opening": None}
    return found | {"opening": opening_days(raw.sales, raw.plan, raw.meta.open_days)}
