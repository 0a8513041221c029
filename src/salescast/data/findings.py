"""What looks wrong in weekly sales although every row is valid. Each finding is one sentence of the import's report."""

import re
from datetime import date
from typing import Final

import polars as pl

from salescast.data.names import Names
from salescast.retail_calendar import WEEK
from salescast.schema import KEYS, LABEL

_NEARLY_ALL: Final = 0.9  # of the weeks
_SUM_TOLERANCE: Final = 1e-3  # of the total, in every week
_LOW: Final = 0.5  # of the weeks before: a last week below it, in most series, is incomplete
_MANY_TIMES: Final = 50  # the largest amounts of a series are this often its usual one when a point was misplaced
_SHOWN: Final = 3
_TOTAL_NAME: Final = r"(?i)^total|total$|^(all|sum|summe|gesamt|alle|tous|todos|totale)$"


def findings(sales: pl.DataFrame, names: Names, today: date) -> list[str]:
    """Sentences on `sales` (RAW_SALES, one row a series and week): ids, totals, the last weeks, single amounts."""
    found = [
        _similar_ids(sales, names),
        *_totals(sales, names),
        _future(sales, today),
        _low_end(sales),
        _huge(sales, names),
    ]
    return [sentence for sentence in found if sentence]


def series_name(names: Names, store: int, dept: int) -> str:
    return f"store {names.name_of('store_id', store)}, department {names.name_of('dept_id', dept)}"


def _similar_ids(sales: pl.DataFrame, names: Names) -> str | None:
    """Ids that differ only by case, blanks or leading zeros."""
    alike = []
    for entity in KEYS:
        own = pl.Series([str(names.name_of(entity, id_)) for id_ in sales[entity].unique().sort()], dtype=pl.String)
        bare = own.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars().str.replace(r"^0+(\d)", "${1}")
        groups = pl.DataFrame({"own": own, "bare": bare}).group_by("bare", maintain_order=True).agg("own")
        alike += [" and ".join(map(repr, sorted(ids))) for ids in groups["own"].to_list() if len(ids) > 1]
    return f"ids that look alike are different ones: {', '.join(alike[:_SHOWN])}" if alike else None


def _totals(sales: pl.DataFrame, names: Names) -> list[str]:
    """Stores (and departments of all stores) whose sales are the sum of all others in every week."""
    found, advice = [], "leave its rows out, or all totals count twice"
    for entity, kind in (("store_id", "store"), ("dept_id", "department")):
        if sales[entity].n_unique() < 3:
            continue
        weekly = sales.group_by(entity, "week").agg(pl.col(LABEL).sum())
        total = weekly.group_by("week").agg(pl.col(LABEL).sum().alias("total"))
        others = pl.col("total") - pl.col(LABEL)
        parts = (
            weekly.join(total, on="week")
            .group_by(entity)
            .agg(
                equal=((pl.col(LABEL) - others).abs() <= _SUM_TOLERANCE * pl.col("total").abs()).mean(),
                above=(pl.col(LABEL) >= others).mean(),
                weeks=pl.len(),
                size=pl.col("total").abs().sum(),
            )
            .filter((pl.col("weeks") > 3) & (pl.col("size") > 0))
            .sort(entity)
        )
        for id_, equal, above in parts.select(entity, "equal", "above").iter_rows():
            name = names.name_of(entity, id_)
            if equal > _NEARLY_ALL:
                found.append(f"{kind} {name} is the sum of the other {kind}s; {advice}")
            elif above > _NEARLY_ALL and re.search(_TOTAL_NAME, str(name)):
                found.append(f"{kind} {name} is named like a total and sells more than all others together; {advice}")
    return found


def _future(sales: pl.DataFrame, today: date) -> str | None:
    """Weeks after today, or weeks at the end in which every amount is zero."""
    last = sales.group_by("week").agg((pl.col(LABEL) == 0).all().alias("zero")).sort("week", descending=True)
    empty = int(last["zero"].cum_prod().sum())
    later = last.filter(pl.col("week") > today + WEEK).height
    if later:
        zero = ", all of them zero" if empty >= later else ""
        return f"{later} weeks lie after today ({today}){zero}; sales of the future are unknown, leave these rows out"
    if 0 < empty < last.height:
        first = last["week"][empty - 1]
        return f"all sales are zero in the last {empty} weeks, from {first}; if they are unknown, leave these rows out"
    return None


def _low_end(sales: pl.DataFrame) -> str | None:
    """A last week far below the weeks before it in most series."""
    last = sales["week"].max()
    if not isinstance(last, date):
        return None
    before = pl.col("week").is_between(last - 4 * WEEK, last - WEEK)
    now = pl.col(LABEL).filter(pl.col("week") == last).sum()
    series = sales.group_by(KEYS).agg(now=now, usual=pl.col(LABEL).filter(before).mean()).filter(pl.col("usual") > 0)
    low = series.filter(pl.col("now") < _LOW * pl.col("usual"))
    usual = float(series["usual"].sum())
    if series.height < 2 or 5 * low.height < 4 * series.height or float(series["now"].sum()) > _LOW * usual:
        return None
    share = float(series["now"].sum()) / usual
    return (
        f"the last week, {last}, has {share:.0%} of the sales of the weeks before; "
        "if it is not complete, leave its rows out"
    )


def _huge(sales: pl.DataFrame, names: Names) -> str | None:
    """Single amounts a hundred times the usual one of their series, as after a misplaced decimal point."""
    usual = pl.col(LABEL).abs().median().over(KEYS)
    typical = pl.col(LABEL).abs().quantile(0.95).over(KEYS)
    huge = sales.filter(
        (usual > 0) & (pl.col(LABEL).abs() > _MANY_TIMES * usual) & (pl.col(LABEL).abs() > 10 * typical)
    )
    if huge.is_empty():
        return None
    store, dept, week, amount = huge.select(*KEYS, "week", LABEL).row(0)
    return (
        f"{huge.height} amounts are over {_MANY_TIMES} times what is usual for their series, "
        f"such as {amount:,.2f} of {series_name(names, store, dept)} in {week}; is the decimal point right?"
    )
