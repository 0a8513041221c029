"""Whether a model becomes champion: its backtest against the baselines and the current champion."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from salescast.evaluation.metrics import scores
from salescast.schema import KEYS

if TYPE_CHECKING:
    pass


logger = logging.getLogger(__name__)
ROW: Final = (*KEYS, "cutoff", "horizon")
PEAK: Final = 1.2


@dataclass(frozen=True)
class Verdict:
    """Whether a model may serve, and the sentence that says why."""

    champion: bool
    reason: str


def judge(backtest: pl.DataFrame, model: str, champion: pl.DataFrame | None) -> Verdict:
    """Compare `model` with every other model of its backtest and with the champion's backtest on the rows both have.

    The model must have the lower WMAPE pooled, at every cutoff and in the peak weeks. A champion without a common row
    (its data are older than every cutoff) cannot be compared and gives way.
    """
    lost = _lost(backtest, model)
    if lost:
        return Verdict(False, lost)
    won = "beats every baseline, pooled, at every cutoff and in the peak weeks"
    if champion is None:
        return Verdict(True, f"{won}; there was no champion")
    mine = backtest.filter(pl.col("model") == model)
    theirs = mine.drop("yhat", "p10", "p90", "model").join(champion.select(*ROW, "yhat", "p10", "p90"), on=ROW)
    if theirs.is_empty():
        return Verdict(True, f"{won}; the champion was tested on other cutoffs and cannot be compared")
    theirs = theirs.with_columns(model=pl.lit("the champion")).select(mine.columns)
    both = pl.concat([mine.join(theirs, on=ROW, how="semi"), theirs])
    lost = _lost(both, model)
    if lost:
        return Verdict(False, f"{lost}, on the same rows")
    new, old = (scores(both).filter(pl.col("model") == name)["wmape"].item() for name in (model, "the champion"))
    return Verdict(True, f"{won}, and the champion: WMAPE {new:.2%} against {old:.2%} on the same rows")


def _lost(backtest: pl.DataFrame, model: str) -> str | None:
    """Where `model` does not have the least WMAPE of all; None if it has it everywhere."""
    for place, rows in _places(backtest, model):
        table = scores(rows)
        mine = table.filter(pl.col("model") == model)["wmape"]
        better = table.filter((pl.col("model") != model) & (pl.col("wmape") <= mine.first()))
        if better.height:
            name, other = better.select("model", "wmape").row(0)
            return f"{place}: WMAPE {mine.item():.2%} does not beat {name} with {other:.2%}"
    return None


def _places(backtest: pl.DataFrame, model: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows that must be won: all together, those of each cutoff, and those of the peak weeks.

    Peak weeks: weeks of a cutoff in which all series together sold PEAK times the median week of the backtest, or more.
    There may be none.
    """
    yield "pooled", backtest
    for (cutoff,), rows in backtest.partition_by("cutoff", as_dict=True, maintain_order=True).items():
        yield f"at cutoff {cutoff}", rows
    sold = backtest.filter(pl.col("model") == model).group_by("cutoff", "week").agg(pl.col("y").sum())
    peaks = sold.filter(pl.col("y") >= PEAK * pl.col("y").median()).select("cutoff", "week")
    if peaks.height:
        yield "in the peak weeks", backtest.join(peaks, on=["cutoff", "week"], how="semi")
