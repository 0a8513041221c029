"""The seasonal view: the components of seasonal forecasts, each known before the week of its row.

`prepare` reads the dataset once and computes dense histories, sums by department and store, and low-rank
reconstructions for every base week. `rows` computes the rows of some series, so the complete table never has to fit
into memory. Time and memory are linear in the number of series.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from salescast.errors import UserError
from salescast.features.history import (
    TRACK,
    WEEK,
    Denoised,
    Floats,
    Ints,
    at,
    cumulative_sums,
    denoise,
    dense,
    group_sums,
    mean,
    paired,
    ratio,
    window_deviation,
    window_mean,
    window_median,
    window_sums,
)
from salescast.features.outliers import bounded, without_mistakes
from salescast.features.persistence import persistence, pooled_slope, shifted
from salescast.features.plan_effects import effects, log_factor, terms
from salescast.features.planned import PlanVersions, log_ratio, plan_versions, prices, usual_open_days, usual_prices
from salescast.schema import KEYS, SEASON, SEASONAL_FEATURES, TIMESTAMP, TIMESTAMP_TYPE, WINDOWS

if TYPE_CHECKING:
    from salescast.data.dataset import Chunk, Raw


# Features that compare years are null in the first SEASON + LEAD_IN weeks: with less history before last year's target
# week they are mostly noise.
LEAD_IN = 4
THIS_YEAR = (
    "scale", "deviation", "market_level", "lowest", "recent", "level", "level_median", "denoise_error", "shifted",
    "persistence", "dept_persistence", "total_persistence",
)  # fmt: skip
GROWTH_WINDOW = 13  # weeks over which last year is compared with the year before it
EFFECT_WINDOW = 13  # recent weeks that a planned input is compared with


@dataclass(frozen=True)
class Planned:
    """What is planned for n series, T weeks and the horizon."""

    plan: PlanVersions
    prices: dict[int, Floats]  # place of an input that is a price -> [n, T + 1]: its usual value in each base week
    effect: Floats  # [departments, T + 1, terms of the inputs but the open days]
    open_days: int | None  # place of the opening days among the planned inputs
    usual: Floats | None  # [n, T + 1]: the usual open days, for weeks whose open days are not known
    sales: Floats  # [n, T]: sales per open day, if there are opening days, without the effects of the other inputs


@dataclass(frozen=True)
class Panel:
    """All series of a dataset: n series, T weeks, base weeks 0..T (T = the upcoming one)."""

    series: pl.DataFrame  # keys and row, in key order
    first_week: np.datetime64
    horizon: int
    sales: Floats  # [n, T], without the effects of the plan, NaN = not observed or closed
    begins: Ints  # [n]: first observed week
    dept: Ints  # [n]: department of the series, 0, 1, ...
    store: Ints
    dept_sales: Floats  # [departments, T]
    store_sales: Floats
    total_sales: Floats  # [1, T], of bounded series
    growth: dict[str, tuple[Floats, Floats]]  # own, dept, store, total -> paired sales of both years
    slope: Floats  # [T + 1]: how much of last year comes back in all series together
    denoised: Denoised
    planned: Planned | None


def prepare(
    sales: pl.DataFrame, plan: pl.DataFrame | None = None, horizon: int = 8, open_days: str | None = None
) -> Panel:
    """Compute what needs all series, from `sales` (RAW_SALES) and `plan` (keys, week, known_at, planned inputs).

    `open_days` names the planned input with the number of open days. Raises UserError when there are no sales or the
    horizon is not in 1..52.
    """
    if not 1 <= horizon <= SEASON:
        raise UserError(f"the horizon must be 1 to {SEASON} weeks, got {horizon}; give another one")
    if sales.is_empty():
        raise UserError("there are no sales to make features of; generate or import data first")
    observed = dense(sales)
    series, first, matrix = observed.series.with_row_index("row"), observed.first_week, observed.sales
    begins = np.argmax(np.isfinite(matrix), axis=1)
    dept, store = (series[key].rank("dense").cast(pl.Int64).to_numpy() - 1 for key in ("dept_id", "store_id"))
    planned = None if plan is None else _planned(plan, series, first, matrix, dept, horizon, open_days)
    matrix = without_mistakes(matrix if planned is None else planned.sales, dept)
    now, ago = paired(matrix)
    total = np.zeros_like(dept)
    return Panel(
        series=series,
        first_week=first,
        horizon=horizon,
        sales=matrix,
        begins=begins,
        dept=dept,
        store=store,
        dept_sales=group_sums(matrix, dept),
        store_sales=group_sums(matrix, store),
        total_sales=group_sums(bounded(matrix), total),
        growth={"": (now, ago)}
        | {
            name: (group_sums(now, groups), group_sums(ago, groups))
            for name, groups in (("dept_", dept), ("store_", store), ("total_", total))
        },
        slope=pooled_slope(now, ago),
        denoised=denoise(matrix, dept, horizon),
        planned=planned,
    )


def _planned(
    plan: pl.DataFrame,
    series: pl.DataFrame,
    first: np.datetime64,
    sales: Floats,
    dept: Ints,
    horizon: int,
    open_days: str | None,
) -> Planned:
    """The versions of the plan and the effects of its inputs on `sales`, [n, T] from week `first` on."""
    names = tuple(name for name in plan.columns if name not in (*KEYS, "week", "known_at"))
    versions = plan_versions(plan, names, series, first, sales.shape[1] + horizon)
    history = versions.history(sales.shape[1])
    place = None if open_days is None else names.index(open_days)
    usual = None
    if place is not None:
        usual = usual_open_days(history[place])
        days = np.where(np.isfinite(history[place]), history[place], usual[:, :-1])
        sales = np.where(days > 0, ratio(sales, days), np.nan)
    priced = {i: usual_prices(history[i]) for i in prices(history) if i != place}
    for i, values in priced.items():
        history[i] = log_ratio(history[i], values[:, :-1])
    own = np.delete(history, [] if place is None else place, axis=0)
    term = terms(own)
    effect = effects(term, sales, dept)
    without = sales / np.exp(log_factor(term, effect[dept, 1:]))
    return Planned(versions, priced, effect, place, usual, without)


def seasonal_features(
    sales: pl.DataFrame, plan: pl.DataFrame | None = None, horizon: int = 8, open_days: str | None = None
) -> pl.DataFrame:
    """Keys, event_timestamp, SEASONAL_FEATURES and the planned columns on the full weekly grid of every series."""
    panel = prepare(sales, plan, horizon, open_days)
    return rows(panel, np.arange(panel.series.height))


def view(raw: "Raw", horizon: int) -> "Callable[[Chunk], pl.DataFrame]":
    """For `features.build`: the whole dataset once, then the rows of some stores at a time."""
    plan = None if raw.plan is None else raw.plan.collect()
    panel = prepare(raw.sales.collect(), plan, horizon, raw.meta.open_days)

    def chunk_rows(chunk: "Chunk") -> pl.DataFrame:
        wanted = panel.series.join(chunk.sales.select(KEYS).unique(), on=KEYS, how="semi", maintain_order="left")
        return rows(panel, wanted["row"].to_numpy().astype(np.int64))

    return chunk_rows


def rows(panel: Panel, chosen: Ints) -> pl.DataFrame:
    """The rows of the chosen series (sorted): from the first observed week of each one to the upcoming week."""
    weeks, horizon = panel.sales.shape[1], panel.horizon
    lengths = weeks + 1 - panel.begins[chosen]
    local = np.repeat(np.arange(len(chosen)), lengths)
    base = np.arange(len(local)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + panel.begins[chosen][local]
    row = chosen[local]
    ahead = base[:, None] + np.arange(horizon)
    around = base[:, None] - SEASON + np.arange(-1, horizon + 1)
    year_before, a_year_ago = around - SEASON, np.maximum(base - SEASON, 0)
    around[around >= base[:, None]] = -1  # with a horizon of 52 weeks it includes the base week, which is not known
    sales, dept, store, total = panel.sales[chosen], panel.dept[row], panel.store[row], np.zeros_like(row)
    now, ago = panel.growth[""]
    columns: dict[str, Floats] = {
        "scale": window_mean(np.abs(sales), SEASON)[local, base],
        "deviation": window_deviation(sales, SEASON)[local, base],
        "market_level": _market(panel)[base],
        "lowest": _lowest(sales)[local, base],
        "recent": at(sales, local, base[:, None] - np.arange(1, 5)),
        "level": _windows(sales, local, base),
        "level_median": np.stack([window_median(sales, weeks)[local, base] for weeks in WINDOWS], axis=1),
        "last_year": at(sales, local, around),
        "denoised_last_year": panel.denoised.around[row, base],
        "denoised_year_before": np.where(
            base[:, None] >= SEASON, panel.denoised.around[row, a_year_ago], np.float32(np.nan)
        ),
        "denoise_error": panel.denoised.error[row, base],
        "dept_last_year": at(panel.dept_sales, dept, around),
        "dept_year_before": at(panel.dept_sales, dept, year_before),
        "dept_before": _windows(panel.dept_sales, dept, base - SEASON),
        "store_last_year": at(panel.store_sales, store, around),
        "store_year_before": at(panel.store_sales, store, year_before),
        "store_before": _windows(panel.store_sales, store, base - SEASON),
        "shifted": shifted(sales, local, base),
        "total_last_year": at(panel.total_sales, total, around),
        "total_year_before": at(panel.total_sales, total, year_before),
        "total_before": _windows(panel.total_sales, total, base - SEASON),
        "persistence": persistence(now[chosen], ago[chosen], panel.slope)[local, base],
        "dept_persistence": _group_persistence(*panel.growth["dept_"])[dept, base],
        "total_persistence": _group_persistence(*paired(panel.total_sales))[total, base],
    }
    groups = {"": local, "dept_": dept, "store_": store, "total_": total}
    two_years = base >= 2 * SEASON + GROWTH_WINDOW
    for name, group in groups.items():
        for year, pairs in zip(("now", "ago"), panel.growth[name], strict=True):
            values = pairs[chosen] if name == "" else pairs
            columns[f"{name}growth_{year}"] = _windows(values, group, base)
            before = window_mean(values, GROWTH_WINDOW)[group, a_year_ago]
            columns[f"{name}growth_before_{year}"] = np.where(two_years, before, np.nan)
    columns |= _naive_errors(panel, row, base, columns)
    for name, values in columns.items():
        if name not in THIS_YEAR:
            values[base < SEASON + LEAD_IN] = np.nan
    table = {name: columns[name] for name in SEASONAL_FEATURES} | _planned_columns(panel, row, base, ahead)
    timestamp = (panel.first_week + base * WEEK).astype("datetime64[us]")
    keys = panel.series[row].select(KEYS)
    return keys.with_columns(
        pl.Series(TIMESTAMP, timestamp).dt.replace_time_zone("UTC").cast(TIMESTAMP_TYPE),
        *(_series(name, values) for name, values in table.items()),
    )


def _series(name: str, values: NDArray[np.floating]) -> pl.Series:
    """Float32 for [m], List(Float32) for [m, K]; NaN becomes null."""
    narrow = np.ascontiguousarray(values, dtype=np.float32)
    flat = pa.array(narrow.ravel(), mask=~np.isfinite(narrow).ravel())
    if narrow.ndim == 2:
        offsets = np.arange(len(narrow) + 1, dtype=np.int64) * narrow.shape[1]
        flat = pa.LargeListArray.from_arrays(pa.array(offsets), flat)
    return pl.Series(name, flat)


def _windows(values: Floats, row: Ints, base: Ints) -> Floats:
    """Mean of the observed weeks before each base week, [m, WINDOWS]; NaN where there are none."""
    inside = np.maximum(base, 0)
    return np.stack([window_mean(values, weeks)[row, inside] for weeks in WINDOWS], axis=1)


def _lowest(sales: Floats) -> Floats:
    """[n, T + 1]: the least observed value before each week; NaN before the first one."""
    unknown = np.full((len(sales), 1), np.nan)
    return np.concatenate([unknown, np.fmin.accumulate(sales, axis=1)], axis=1)


def _group_persistence(now: Floats, ago: Floats) -> Floats:
    return persistence(now, ago, pooled_slope(now, ago))


def _market(panel: Panel) -> Floats:
    """[T + 1]: mean |y| over all series and the last 52 weeks."""
    seen = np.isfinite(panel.sales)
    sums = (np.where(seen, part, 0.0).sum(axis=0, keepdims=True) for part in (np.abs(panel.sales), np.ones(seen.shape)))
    return np.asarray(ratio(*(window_sums(cumulative_sums(part), SEASON) for part in sums))[0])


def _naive_errors(panel: Panel, row: Ints, base: Ints, columns: dict[str, Floats]) -> dict[str, Floats]:
    """Recent errors of the seasonal naive forecast: 13-week growth times last year's reconstruction."""
    place = WINDOWS.index(EFFECT_WINDOW)
    growth = ratio(columns["growth_now"][:, place], columns["growth_ago"][:, place])
    growth = np.where(growth > 0, np.clip(growth, 0.3, 3.0), 1.0)
    actual = at(panel.sales, row, base[:, None] - np.arange(TRACK, 0, -1))
    error = actual - panel.denoised.before[row, base] * growth[:, None]
    return {"naive_error": mean(np.abs(error)), "naive_bias": mean(error[:, -4:])}


def _plan_at(planned: Planned, row: Ints, base: Ints, week: Ints) -> Floats:
    """The plan of `week` [m, K] as known in base weeks, [P, m, K]; prices as the logarithm of their ratio to the usual.

    Unknown opening days are the usual ones. A store whose known opening days of the last weeks are all 0 is assumed to
    stay closed.
    """
    values = planned.plan.at(row, base, week)
    for i, usual in planned.prices.items():
        values[i] = log_ratio(values[i], usual[row, base][:, None])
    if planned.open_days is not None and planned.usual is not None:
        past = base[:, None] - np.arange(EFFECT_WINDOW, 0, -1)
        shut = np.fmax.reduce(planned.plan.at(row, base, past)[planned.open_days], axis=1) == 0
        usual = np.where(shut[:, None] & (week >= base[:, None]), 0.0, planned.usual[row, base][:, None])
        unknown = (week >= 0) & (week < planned.plan.known.shape[2]) & np.isnan(values[planned.open_days])
        values[planned.open_days] = np.where(unknown, usual, values[planned.open_days])
    return values


def _planned_columns(panel: Panel, row: Ints, base: Ints, ahead: Ints) -> dict[str, Floats]:
    """Planned inputs as known in each base week: over the horizon, last year, and in the recent weeks.

    `planned__lift`: estimated effect (log) of the plan; `planned__open_days`: opening days.
    """
    planned = panel.planned
    if planned is None:
        return {}
    target, last_year = (_plan_at(planned, row, base, week) for week in (ahead, ahead - SEASON))
    recent = mean(_plan_at(planned, row, base, base[:, None] - np.arange(EFFECT_WINDOW, 0, -1)))  # [P, m]
    own = np.delete(target, [] if planned.open_days is None else planned.open_days, axis=0)
    effect = planned.effect[panel.dept[row], base][:, None]
    out = {"planned__lift": log_factor(terms(own), effect)}
    if planned.open_days is not None:
        out["planned__open_days"] = target[planned.open_days]
    for i, name in enumerate(planned.plan.names):
        out |= {
            f"planned_{name}": target[i],
            f"planned_{name}_last_year": last_year[i],
            f"planned_{name}_recent": recent[i],
        }
    return out
