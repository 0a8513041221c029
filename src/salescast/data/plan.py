"""The plan of a dataset: what is known ahead, opening days, and weeks outside the assortment."""

import polars as pl

from salescast.data import weeks as week_rules
from salescast.data.dataset import PLAN_KEYS
from salescast.data.raw_tables import conform, of_stores, with_keys
from salescast.data.records import OPEN_DAYS, Records
from salescast.data.validation import PLANNED, Source
from salescast.schema import KEYS


def _outside(records: Records, sales: pl.DataFrame) -> pl.DataFrame:
    """Weeks in which a series is not in the assortment, as weeks without open days: keys, week, open days."""
    series = sales.select(KEYS).unique()
    bounds = sales.select(first=pl.col("week").min(), last=pl.col("week").max()).row(0)
    found = records.attributes.closed(series, *bounds)
    if found.height and records.open_days is None:
        records.open_days, records.planned = OPEN_DAYS, (*records.planned, OPEN_DAYS)
    if found.height:
        count = found.select(KEYS).n_unique()
        records.decisions.append(f"{count:,} series are outside the assortment in some weeks, which count as closed")
    return found.with_columns(pl.lit(0.0, pl.Float32).alias(records.open_days or OPEN_DAYS))


def plan_table(records: Records, sales: pl.DataFrame) -> pl.DataFrame | None:
    """The content of plan.parquet, sorted; None when nothing is planned. `sales`: the result of `sales`."""
    outside = _outside(records, sales)
    if not records.planned:
        return None
    sources = [source for source in (records.sold, records.conditions) if source is not None and source.planned]
    plans = [_planned_rows(records, source) for source in sources]
    if records.derived is not None:
        schema = {**PLAN_KEYS, **dict.fromkeys(records.planned, pl.Float32())}
        plans.append(of_stores(conform(records.derived, schema)))
    if outside.height:
        closed = conform(outside, {**PLAN_KEYS, **dict.fromkeys(records.planned, pl.Float32())})
        plans = [*(plan.join(closed, on=[*KEYS, "week"], how="anti") for plan in plans), closed]
    return pl.concat(plans).sort(*KEYS, "week", nulls_last=False)


def _planned_rows(records: Records, source: Source) -> pl.DataFrame:
    """The rows of a file that have a planned value, in the form of plan.parquet; the mean of the days of a week."""
    rows = source.rows.rename({PLANNED + name: name for name in source.planned}, strict=True)
    rows = rows.filter(pl.any_horizontal(pl.col(name).is_not_null() for name in source.planned))
    if "store_id" not in rows.columns and source is not records.sold:
        rows = rows.join(with_keys(records.sold.rows).select("store_id").unique(), how="cross")
    keys = [name for name in ("store_id", "dept_id", "known_at") if name in rows.columns]
    week = week_rules.week_of(pl.col("week"), records.dated.last_day)
    daily = records.dated.daily
    values = [
        pl.col(name).sum() if daily and name == records.open_days else pl.col(name).mean() for name in source.planned
    ]
    found = rows.group_by(*keys, week).agg(values) if records.dated.moved or records.summed else rows
    table = conform(found, {**PLAN_KEYS, **dict.fromkeys(records.planned, pl.Float32())})
    every = source is not records.sold and "dept_id" not in source.label
    return of_stores(table) if every else table
