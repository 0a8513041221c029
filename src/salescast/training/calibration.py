"""How good a network's forecasts of held-out weeks are, and how to correct its median and intervals by them.

Ranks share only sums and counts, so the result does not depend on how the series are spread over them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from salescast.model.network import QuantileMLP
from salescast.training.distributed import Group
from salescast.training.samples import Batch, Samples

BATCH = 8192
BINS, WIDEST = 4000, 4.0  # the histogram of error ratios: steps of 0.001, the last bin holds all above 4
SHRINKAGE = (0.5, 0.75, 1.0)  # factors of the median that are tried; what one window says of less is mostly noise


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

    With little history the network may be worse than the anchor; shrink its output towards the anchor. Of equally good
    factors the largest is taken. 1 without samples.
    """
    factors = torch.tensor(SHRINKAGE, device=group.device)
    sums = torch.zeros(len(SHRINKAGE), dtype=torch.float64, device=group.device)
    for batch, quantiles in _forecasts(network, samples):
        error = (batch.target[:, None] - quantiles[:, network.median, None] * factors).abs()
        sums += (error * batch.weight[:, None]).sum(dim=0, dtype=torch.float64)
    errors = group.sum(sums.cpu().numpy())
    return max(factor for factor, error in zip(SHRINKAGE, errors, strict=True) if error == errors.min())


def interval_factor(
    network: QuantileMLP, samples: Samples, levels: tuple[float, ...], group: Group, center: float = 1.0
) -> float:
    """Conformal factor of the half-widths of the intervals (after Romano et al. 2019, with ratios as scores).

    `center`: the factor of the median. The smallest factor that brings the nominal share of the labels inside, at least
    1: held-out weeks that were easier than usual are no reason to promise less. One factor for both sides and all
    weeks: in 13 weeks the errors of a side are mostly those of one trend, and the next weeks may have another. 1
    without samples.
    """
    histogram = torch.zeros(BINS, dtype=torch.float64, device=group.device)
    for batch, quantiles in _forecasts(network, samples):
        median = quantiles[:, network.median]
        error = batch.target - center * median
        half = torch.where(error < 0, median - quantiles[:, 0], quantiles[:, -1] - median)
        bins = (error.abs() / half * (BINS / WIDEST)).clamp(max=BINS - 1).long()
        histogram.index_add_(0, bins, torch.ones_like(error, dtype=torch.float64))
    counts = group.sum(histogram.cpu().numpy())
    # The conformal correction: the ceil((n + 1) * share)-th smallest of n scores.
    rank = np.ceil((counts.sum() + 1) * (levels[-1] - levels[0]))
    place = min(int((counts.cumsum() < rank).sum()) + 1, BINS)
    return max(1.0, place * WIDEST / BINS) if counts.any() else 1.0
