"""What a week without a row means: a zero, because tills export only what was sold, or an unknown amount."""

from typing import Final

import polars as pl

from salescast.errors import UserError
from salescast.schema import KEYS, LABEL

GAPS: Final = ("auto", "zero", "unknown")
_MANY: Final = 0.1  # share of the weeks of a series; below it, gaps are exceptions
_ENOUGH: Final = 100  # weeks without a row; fewer are no evidence
_WRITTEN: Final = 0.1  # written zeros per gap; above it, a zero would have been written


def check(gaps: str) -> None:
    """Raises UserError for another word than those of GAPS."""
    if gaps not in GAPS:
        raise UserError(f"--gaps must be one of {', '.join(GAPS)} and is {gaps!r}")


def missing(sales: pl.DataFrame) -> pl.DataFrame:
    """The weeks (store_id, dept_id, week) without a row in which the store sold other things.

    They lie between the first row of a series and the last week of all: an article is listed until the data end.
    `sales` is as RAW_SALES, one row a series and week.
    """
    listed = sales.group_by(KEYS).agg(first=pl.col("week").min())
    open_weeks = sales.select("store_id", "week").unique()
    grid = listed.join(open_weeks, on="store_id").filter(pl.col("week") >= pl.col("first"))
    return grid.select(*KEYS, "week").join(sales, on=[*KEYS, "week"], how="anti")


def decide(sales: pl.DataFrame, without_row: int) -> tuple[str, str]:
    """`zero` or `unknown` for the `without_row` weeks that `missing` counts, and the reason."""
    zeros = int((sales[LABEL] == 0).sum())
    share = without_row / (sales.height + without_row)
    if share < _MANY or without_row < _ENOUGH:
        return "unknown", f"only {share:.1%} of the weeks have no row while the store sold other things"
    if zeros >= _WRITTEN * without_row:
        return "unknown", f"zeros are written ({zeros:,} rows), so a week without a row is something else"
    return (
        "zero",
        f"{share:.0%} of the weeks have no row while the store sold other things, and zeros are hardly written",
    )


def filled(sales: pl.DataFrame, weeks: pl.DataFrame) -> pl.DataFrame:
    """The sales with zero in these weeks, sorted by series and week."""
    zeros = weeks.with_columns(pl.lit(0.0).alias(LABEL)).select(sales.columns)
    return pl.concat([sales, zeros.cast(pl.Schema(sales.schema))]).sort(*KEYS, "week")
