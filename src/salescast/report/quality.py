"""Data quality: counts of what a planner would ask about."""

from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from salescast.data.dataset import Raw
from salescast.data.import_report import OpeningDays, opening_days
from salescast.report.totals import ENDED
from salescast.schema import KEYS, LABEL, SEASON


@dataclass(frozen=True)
class Quality:
    gaps: int  # missing weeks inside series
    with_gaps: int  # series
    negative: int  # weeks
    zero: int  # weeks
    ended: int  # series without a row in the last ENDED weeks
    young: int  # series of less than a year
    missing: dict[str, float]  # share of rows without a condition, by name
    opening: OpeningDays | None  # None: opening days are not used


def build_quality(raw: Raw) -> Quality:
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
        pl.col("gaps").sum(),
        (pl.col("gaps") > 0).sum().alias("with_gaps"),
        pl.col("negative", "zero").sum(),
        (pl.col("last") <= last - timedelta(weeks=ENDED)).sum().alias("ended"),
        (pl.col("first") > last - timedelta(weeks=SEASON)).sum().alias("young"),
    ).collect(engine="streaming")
    observed = raw.store_weeks.filter(pl.col("week") <= last)
    conditions = observed.select(pl.exclude("store_id", "week").is_null().mean()).row(0, named=True)
    missing = {name: share for name, share in conditions.items() if share}
    opening = None
    if raw.plan is not None and raw.meta.open_days is not None:
        opening = opening_days(raw.sales, raw.plan, raw.meta.open_days)
    return Quality(**counts.row(0, named=True), missing=missing, opening=opening)
