"""How good a network's forecasts of held-out weeks are, and how to correct its median and intervals by them.

Ranks share only sums and counts, so the result does not depend on how the series are spread over them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salescast.model.network import QuantileMLP
from salescast.training.distributed import Group
from salescast.training.samples import Batch, Samples

BATCH = 8192
BINS, WIDEST = 4000, 4.0  # the histogram of error ratios: steps of 0.001, the last bin holds all above 4
SHRINKAGE = (0.0, 0.25, 0.5, 0.75, 1.0)  # factors of the median that are tried
TOLERANCE = 0.05  # relative error above the least one that still counts as best
BOUNDS = (0.8, 1.6)  # a factor outside says more about the held-out weeks than about the interval


def _forecasts(network: QuantileMLP, samples: Samples) -> Iterator[tuple[Batch, Tensor]]:
    """Batches with their quantiles [B, Q], the mean of the heads."""
    if samples.size:
        with torch.inference_mode():
            for batch in samples.pairs(BATCH):
                yield batch, network(batch.numeric, batch.codes).mean(dim=1)


def wmape(network: QuantileMLP, samples: Samples, group: Group) -> float:
    """sum |y - median| / sum |y| over the samples of all ranks."""
    sums = torch.zeros(2, dtype=torch.float64, device=group.device)
    for batch, quantiles in _forecasts(network, samples):
        errors = (batch.target - quantiles[:, network.median]) * batch.unit
        sums += torch.stack([values.abs().sum(dtype=torch.float64) for values in (errors, batch.label)])
    error, total = group.sum(sums.cpu().numpy())
    return float(error / total) if total > 0 else float("nan")


def shrinkage(network: QuantileMLP, samples: Samples, group: Group) -> float:
    """The factor of the network's median, 0 (forecast the anchor) to 1, that is best on `samples`.

    With little history the network may be worse than the anchor; shrink its output towards the anchor. Of the factors
    with an error up to TOLERANCE above the least, the largest is taken: the network that forecasts has also learned
    from the held-out weeks and is better than the one tried here. 1 without samples.
    """
    factors = torch.tensor(SHRINKAGE, device=group.device)
    sums = torch.zeros(len(SHRINKAGE), dtype=torch.float64, device=group.device)
    for batch, quantiles in _forecasts(network, samples):
        error = (batch.target[:, None] - quantiles[:, network.median, None] * factors).abs()
        sums += (error * batch.weight[:, None]).sum(dim=0, dtype=torch.float64)
    errors = group.sum(sums.cpu().numpy())
    return max(
        factor for factor, error in zip(SHRINKAGE, errors, strict=True) if error <= (1 + TOLERANCE) * errors.min()
    )


def interval_factors(
    network: QuantileMLP,
    samples: Samples,
    levels: tuple[float, ...],
    group: Group,
    last: int,
    weeks: int,
    center: float = 1.0,
) -> NDArray[np.float64]:
    """Conformal factors [2] for the lower and upper half-widths (after Romano et al. 2019, with ratios as scores).

    `last`: the day number of the last held-out week; `weeks`: how many there are; `center`: the factor of the median.

    For each week and each side of the median, the factor is the smallest one that brings the nominal share of the
    labels inside the interval. The result is the median over the weeks: sales of one week are correlated, and if labels
    were pooled, one odd week (Easter, a storm) would widen all intervals. Clipped to BOUNDS; 1 where a side has no
    sample.
    """
    histogram = torch.zeros(weeks * 2 * BINS, dtype=torch.float64, device=group.device)
    for batch, quantiles in _forecasts(network, samples):
        median = quantiles[:, network.median]
        error = batch.target - center * median
        half = torch.where(error < 0, median - quantiles[:, 0], quantiles[:, -1] - median)
        bins = (error.abs() / half * (BINS / WIDEST)).clamp(max=BINS - 1).long()
        back = (last - batch.day) // 7
        index = (2 * back + (error > 0)) * BINS + bins
        histogram.index_add_(0, index, torch.ones_like(error, dtype=torch.float64))
    counts = group.sum(histogram.view(weeks, 2, BINS).cpu().numpy())
    shares = np.array([(0.5 - levels[0]) / 0.5, (levels[-1] - 0.5) / 0.5])
    total = counts.sum(axis=2)
    # The conformal correction: the ceil((n + 1) * share)-th smallest of n scores.
    rank = np.ceil((total + 1) * shares)
    factors = ((counts.cumsum(axis=2) < rank[:, :, None]).sum(axis=2) + 1) * (WIDEST / BINS)
    typical = [np.median(side[seen > 0]) if seen.any() else 1.0 for side, seen in zip(factors.T, total.T, strict=True)]
    return np.clip(typical, *BOUNDS)
