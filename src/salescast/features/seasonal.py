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

from salescast.data.attributes import Attributes
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
from salescast.features.plan_columns import Planned, planned_columns, prepare_plan
from salescast.features.siblings import LEAD_IN, Siblings
from salescast.schema import KEYS, SEASON, SEASONAL_FEATURES, TIMESTAMP, TIMESTAMP_TYPE, WINDOWS, product_columns

if TYPE_CHECKING:
    from salescast.data.dataset import Chunk, Raw


THIS_YEAR = (
    "scale", "deviation", "market_level", "lowest", "recent", "level", "level_median", "denoise_error", "shifted",
    "persistence", "dept_persistence", "total_persistence",
)  # fmt: skip
GROWTH_WINDOW = 13  # weeks over which last year is compared with the year before it


@dataclass(frozen=True)
class Panel:
    """All series of a dataset: n series, T weeks, base weeks 0..T (T = the upcoming one)."""

    series: pl.DataFrame  # keys, row and known attributes of the product, in key order
    first_week: np.datetime64
    horizon: int
    sales: Floats  # [n, T], without the effects of the plan, NaN = not observed or closed
    begins: Ints  # [n]: first observed week
    siblings: Siblings
    store: Ints  # [n]: store of the series, 0, 1, ...
    dept_sales: Floats  # [groups of `siblings`, T]
    store_sales: Floats
    total_sales: Floats  # [1, T], of bounded series
    growth: dict[str, tuple[Floats, Floats]]  # own, dept, store, total -> paired sales of both years
    slope: Floats  # [T + 1]: how much of last year comes back in all series together
    denoised: Denoised
    planned: Planned | None


def prepare(
    sales: pl.DataFrame,
    plan: pl.DataFrame | None = None,
    horizon: int = 8,
    open_days: str | None = None,
    attributes: Attributes | None = None,
) -> Panel:
    """Compute what needs all series, from `sales` (RAW_SALES) and `plan` (keys, week, known_at, planned inputs).

    `open_days` names the planned input with the number of open days; `attributes`: of products.

    Raises UserError when there are no sales or the horizon is not in 1..52.
    """
    if not 1 <= horizon <= SEASON:
        raise UserError(f"the horizon must be 1 to {SEASON} weeks, got {horizon}; give another one")
    if sales.is_empty():
        raise UserError("there are no sales to make features of; generate or import data first")
    observed = dense(sales)
    series, first, matrix = observed.series.with_row_index("row"), observed.first_week, observed.sales
    begins = np.argmax(np.isfinite(matrix), axis=1)
    known = attributes or Attributes.of([])
    siblings = Siblings.of(series["dept_id"], begins, known.values("dept_id", "category"))
    dept, store = siblings.dept, series["store_id"].rank("dense").cast(pl.Int64).to_numpy() - 1
    planned = None if plan is None else prepare_plan(plan, series, first, matrix, dept, horizon, open_days)
    matrix = without_mistakes(matrix if planned is None else planned.sales, dept)
    now, ago = paired(matrix)
    total = np.zeros_like(dept)
    return Panel(
        series=series.hstack(known.of_products(series["dept_id"])),
        first_week=first,
        horizon=horizon,
        sales=matrix,
        begins=begins,
        siblings=siblings,
        store=store,
        dept_sales=siblings.sums(matrix),
        store_sales=group_sums(matrix, store),
        total_sales=group_sums(bounded(matrix), total),
        growth={"": (now, ago), "dept_": (siblings.sums(now), siblings.sums(ago))}
        | {
            name: (group_sums(now, groups), group_sums(ago, groups))
            for name, groups in (("store_", store), ("total_", total))
        },
        slope=pooled_slope(now, ago),
        denoised=denoise(matrix, dept, horizon),
        planned=planned,
    )


def seasonal_features(
    sales: pl.DataFrame, plan: pl.DataFrame | None = None, horizon: int = 8, open_days: str | None = None
) -> pl.DataFrame:
    """Keys, event_timestamp, SEASONAL_FEATURES and the planned columns on the full weekly grid of every series."""
    panel = prepare(sales, plan, horizon, open_days)
    return rows(panel, np.arange(panel.series.height))


def view(raw: "Raw", horizon: int) -> "Callable[[Chunk], pl.DataFrame]":
    """For `features.build`: the whole dataset once, then the rows of some stores at a time."""
    plan = None if raw.plan is None else raw.plan.collect()
    panel = prepare(raw.sales.collect(), plan, horizon, raw.meta.open_days, raw.attributes)

    def chunk_rows(chunk: "Chunk") -> pl.DataFrame:
        wanted = panel.series.join(chunk.sales.select(KEYS).unique(), on=KEYS, how="semi", maintain_order="left")
        return rows(panel, wanted["row"].to_numpy().astype(np.int64))

    return chunk_rows


@dataclass(frozen=True)
class _Rows:
    """m rows of the chosen series."""

    chosen: Ints  # the series
    local: Ints  # [m]: place of the row's series in `chosen`
    row: Ints  # [m]: series
    base: Ints  # [m]: base week
    groups: dict[str, Ints]  # own (in `chosen`), dept, store, total -> [m]: the row's group

    @property
    def a_year_ago(self) -> Ints:
        return np.maximum(self.base - SEASON, 0)


def rows(panel: Panel, chosen: Ints) -> pl.DataFrame:
    """The rows of the chosen series (sorted): from the first observed week of each one to the upcoming week."""
    lengths = panel.sales.shape[1] + 1 - panel.begins[chosen]
    local = np.repeat(np.arange(len(chosen)), lengths)
    base = np.arange(len(local)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + panel.begins[chosen][local]
    row = chosen[local]
    groups = {
        "": local,
        "dept_": panel.siblings.group(row, base),
        "store_": panel.store[row],
        "total_": np.zeros_like(row),
    }
    of = _Rows(chosen, local, row, base, groups)
    columns = _this_year(panel, of) | _years(panel, of) | _growth(panel, of)
    columns |= _naive_errors(panel, row, base, columns)
    for name, values in columns.items():
        if name not in THIS_YEAR:
            values[base < SEASON + LEAD_IN] = np.nan
    table = {name: columns[name] for name in SEASONAL_FEATURES}
    if panel.planned is not None:
        ahead = base[:, None] + np.arange(panel.horizon)
        table |= planned_columns(panel.planned, panel.siblings.dept[row], row, base, ahead)
    timestamp = (panel.first_week + base * WEEK).astype("datetime64[us]")
    return (
        panel.series[row]
        .select(*KEYS, *product_columns(panel.series.columns))
        .with_columns(
            pl.Series(TIMESTAMP, timestamp).dt.replace_time_zone("UTC").cast(TIMESTAMP_TYPE),
            *(_series(name, values) for name, values in table.items()),
        )
    )


def _this_year(panel: Panel, of: _Rows) -> dict[str, Floats]:
    """Size, level and noise in the last weeks, and how much of last year comes back."""
    local, base, sales = of.local, of.base, panel.sales[of.chosen]
    now, ago = panel.growth[""]
    return {
        "scale": window_mean(np.abs(sales), SEASON)[local, base],
        "deviation": window_deviation(sales, SEASON)[local, base],
        "market_level": _market(panel)[base],
        "lowest": _lowest(sales)[local, base],
        "recent": at(sales, local, base[:, None] - np.arange(1, 5)),
        "level": _windows(sales, local, base),
        "level_median": np.stack([window_median(sales, weeks)[local, base] for weeks in WINDOWS], axis=1),
        "denoise_error": panel.denoised.error[of.row, base],
        "shifted": shifted(sales, local, base),
        "persistence": persistence(now[of.chosen], ago[of.chosen], panel.slope)[local, base],
        "dept_persistence": _group_persistence(*panel.growth["dept_"])[of.groups["dept_"], base],
        "total_persistence": _group_persistence(*paired(panel.total_sales))[of.groups["total_"], base],
    }


def _years(panel: Panel, of: _Rows) -> dict[str, Floats]:
    """Sales of last year and of the year before it, of the series and of its groups."""
    base = of.base[:, None]
    around = base - SEASON + np.arange(-1, panel.horizon + 1)
    year_before = around - SEASON
    around[around >= base] = -1  # with a horizon of 52 weeks it includes the base week, which is not known
    columns: dict[str, Floats] = {
        "last_year": at(panel.sales[of.chosen], of.local, around),
        "denoised_last_year": panel.denoised.around[of.row, of.base].astype(np.float64),
        "denoised_year_before": np.where(
            base >= SEASON, panel.denoised.around[of.row, of.a_year_ago], np.float32(np.nan)
        ),
    }
    sums = {"dept_": panel.dept_sales, "store_": panel.store_sales, "total_": panel.total_sales}
    for name, values in sums.items():
        group = of.groups[name]
        columns[f"{name}last_year"] = at(values, group, around)
        columns[f"{name}year_before"] = at(values, group, year_before)
        columns[f"{name}before"] = _windows(values, group, of.base - SEASON)
    return columns


def _growth(panel: Panel, of: _Rows) -> dict[str, Floats]:
    """Sales of this year and of the same weeks last year, by window, and as they were a year ago."""
    columns: dict[str, Floats] = {}
    two_years = of.base >= 2 * SEASON + GROWTH_WINDOW
    for name, group in of.groups.items():
        for year, pairs in zip(("now", "ago"), panel.growth[name], strict=True):
            values = pairs[of.chosen] if name == "" else pairs
            columns[f"{name}growth_{year}"] = _windows(values, group, of.base)
            before = window_mean(values, GROWTH_WINDOW)[group, of.a_year_ago]
            columns[f"{name}growth_before_{year}"] = np.where(two_years, before, np.nan)
    return columns


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
    place = WINDOWS.index(GROWTH_WINDOW)
    growth = ratio(columns["growth_now"][:, place], columns["growth_ago"][:, place])
    growth = np.where(growth > 0, np.clip(growth, 0.3, 3.0), 1.0)
    actual = at(panel.sales, row, base[:, None] - np.arange(TRACK, 0, -1))
    error = actual - panel.denoised.before[row, base] * growth[:, None]
    return {"naive_error": mean(np.abs(error)), "naive_bias": mean(error[:, -4:])}
