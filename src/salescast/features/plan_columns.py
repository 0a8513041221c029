"""The planned columns of the seasonal view, and the sales without the effects of the plan."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from salescast.features.history import Floats, Ints, mean, ratio
from salescast.features.plan_effects import effects, log_factor, terms
from salescast.features.planned import PlanVersions, log_ratio, plan_versions, prices, usual_open_days, usual_prices
from salescast.schema import KEYS, SEASON

RECENT: Final = 13  # weeks before a base week that a planned input is compared with


@dataclass(frozen=True)
class Planned:
    """What is planned for n series, T weeks and the horizon."""

    plan: PlanVersions
    prices: dict[int, Floats]  # place of an input that is a price -> [n, T + 1]: its usual value in each base week
    effect: Floats  # [departments, T + 1, terms of the inputs but the open days]
    open_days: int | None  # place of the opening days among the planned inputs
    usual: Floats | None  # [n, T + 1]: the usual open days, for weeks whose open days are not known
    sales: Floats  # [n, T]: sales per open day, if there are opening days, without the effects of the other inputs


def prepare_plan(
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


def _plan_at(planned: Planned, row: Ints, base: Ints, week: Ints) -> Floats:
    """The plan of `week` [m, K] as known in base weeks, [P, m, K]; prices as the logarithm of their ratio to the usual.

    Unknown opening days are the usual ones. A store whose known opening days of the last weeks are all 0 is assumed to
    stay closed.
    """
    values = planned.plan.at(row, base, week)
    for i, usual in planned.prices.items():
        values[i] = log_ratio(values[i], usual[row, base][:, None])
    if planned.open_days is not None and planned.usual is not None:
        past = base[:, None] - np.arange(RECENT, 0, -1)
        shut = np.fmax.reduce(planned.plan.at(row, base, past)[planned.open_days], axis=1) == 0
        usual = np.where(shut[:, None] & (week >= base[:, None]), 0.0, planned.usual[row, base][:, None])
        unknown = (week >= 0) & (week < planned.plan.known.shape[2]) & np.isnan(values[planned.open_days])
        values[planned.open_days] = np.where(unknown, usual, values[planned.open_days])
    return values


def planned_columns(planned: Planned, dept: Ints, row: Ints, base: Ints, ahead: Ints) -> dict[str, Floats]:
    """Planned inputs as known in each base week: over the horizon, last year, and in the recent weeks.

    `dept`, `row`, `base`: department, series and base week of m rows; `ahead` [m, H]: the weeks of the horizon.
    `planned__lift`: estimated effect (log) of the plan; `planned__open_days`: opening days.
    """
    target, last_year = (_plan_at(planned, row, base, week) for week in (ahead, ahead - SEASON))
    recent = mean(_plan_at(planned, row, base, base[:, None] - np.arange(RECENT, 0, -1)))  # [P, m]
    own = np.delete(target, [] if planned.open_days is None else planned.open_days, axis=0)
    effect = planned.effect[dept, base][:, None]
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
