"""What a file of sales cannot mean: amounts in two currencies, a date far from all others."""

from datetime import date
from typing import Final

import polars as pl

from salescast.data.validation import Source
from salescast.errors import UserError

_CURRENCY: Final = ("currency", "currency_code", "curr", "ccy", "waehrung", "währung", "devise", "moneda")
_FAR: Final = 53 * 7  # days without any row, as no history has them inside
_FEW: Final = 0.01  # of the rows: more than these are no mistyped date


def check_currency(sold: Source) -> None:
    """Raises UserError when a column of currencies has two of them."""
    for column in sold.ignored():
        if column.casefold() in _CURRENCY:
            found = sorted(sold.values(column).drop_nulls().unique())
            if len(found) > 1:
                raise UserError(
                    f"{sold.path}: column {column!r} has {' and '.join(found[:3])}; convert the sales to one currency"
                )


def reject_far_dates(sold: Source) -> None:
    """Reject the few rows whose date lies more than a year from all others, as after a mistyped year."""
    days = sold.rows["week"].unique().sort()
    if days.len() < 3:
        return
    breaks = days.diff().dt.total_days() > _FAR
    block = breaks.fill_null(False).cum_sum()
    sizes = sold.rows.join(pl.DataFrame({"week": days, "block": block}), on="week")["block"].value_counts()
    kept = sizes.filter(pl.col("count") > _FEW * sold.rows.height)["block"]
    if kept.len() < sizes.height and kept.len() > 0:
        near = days.filter(block.is_in(kept.implode()))
        first, last = near.min(), near.max()
        assert isinstance(first, date) and isinstance(last, date)
        reason = f"{sold.label['week']} lies more than a year from all others, {first} to {last}"
        sold.keep(pl.col("week").is_in(near.implode()), reason, "week")
