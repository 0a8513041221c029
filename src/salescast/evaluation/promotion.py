"""The promotion rule: a model becomes champion if its backtest beats the baselines and the current champion."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl

from salescast.evaluation.metrics import scores
from salescast.schema import KEYS

ROW: Final = (*KEYS, "cutoff", "horizon")
CHAMPION: Final = "the champion"  # the champion's name in the comparison
PEAK: Final = 1.2  # times the median week's sales


@dataclass(frozen=True)
class Promotion:
    """The decision whether a model becomes champion, and its reason in one sentence."""

    promoted: bool
    reason: str


def decide(backtest: pl.DataFrame, model: str, champion: pl.DataFrame | None) -> Promotion:
    """Compare `model` with the other models of its backtest, and with the champion's backtest on their common rows.

    The model must have the lowest WMAPE pooled, at every cutoff and in the peak weeks. Rows without an observed `y` do
    not count. A champion without a common row (its data end before every cutoff) cannot be compared and is replaced.
    """
    backtest = backtest.filter(pl.col("y").is_not_null())
    defeat = _defeat(backtest, model)
    if defeat:
        return Promotion(False, defeat)
    won = "beats every baseline, pooled, at every cutoff and in the peak weeks"
    if champion is None:
        return Promotion(True, f"{won}; there was no champion")
    candidate = backtest.filter(pl.col("model") == model)
    forecasts = champion.select(*ROW, "yhat", "p10", "p90")
    common = candidate.drop("yhat", "p10", "p90", "model", "mean", strict=False).join(forecasts, on=ROW)
    if common.is_empty():
        return Promotion(True, f"{won}; the champion was tested on other cutoffs and cannot be compared")
    common = common.with_columns(model=pl.lit(CHAMPION)).select(candidate.columns)
    both = pl.concat([candidate.join(common, on=ROW, how="semi"), common])
    defeat = _defeat(both, model)
    if defeat:
        return Promotion(False, f"{defeat}, on the same rows")
    new, old = (scores(both).filter(pl.col("model") == name)["wmape"].item() for name in (model, CHAMPION))
    return Promotion(True, f"{won}, and the champion: WMAPE {new:.2%} against {old:.2%} on the same rows")


def _defeat(backtest: pl.DataFrame, model: str) -> str | None:
    """The first subset in which `model` does not have the lowest WMAPE, as a sentence; None if there is none."""
    for name, rows in _subsets(backtest, model):
        table = scores(rows)
        own = table.filter(pl.col("model") == model)["wmape"].to_list()
        if not own or own[0] is None or math.isnan(own[0]):
            return f"{name}: no forecasts to compare"
        better = table.filter((pl.col("model") != model) & (pl.col("wmape") <= own[0]))
        if better.height:
            other, wmape = better.select("model", "wmape").row(0)
            return f"{name}: WMAPE {own[0]:.2%} does not beat {other} with {wmape:.2%}"
    return None


def _subsets(backtest: pl.DataFrame, model: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The subsets in which a model must win: all rows, the rows of each cutoff, and those of the peak weeks.

    In a peak week all series of a cutoff together sold at least PEAK times the median week of the backtest. There may
    be none.
    """
    yield "pooled", backtest
    for (cutoff,), rows in backtest.partition_by("cutoff", as_dict=True, maintain_order=True).items():
        yield f"at cutoff {cutoff}", rows
    sold = backtest.filter(pl.col("model") == model).group_by("cutoff", "week").agg(pl.col("y").sum())
    peaks = sold.filter(pl.col("y") >= PEAK * pl.col("y").median()).select("cutoff", "week")
    if peaks.height:
        yield "in the peak weeks", backtest.join(peaks, on=["cutoff", "week"], how="semi")
