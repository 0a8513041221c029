"""The network, a quantile MLP, its loss, and the scaler of its inputs.

A forecast is anchor + unit * output. The network standardizes its inputs itself, so that training and serving both
give it raw inputs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, relu, softplus

from salescast.features.columns import categories
from salescast.model.inputs import Inputs

CLIP = 5.0  # standard deviations
EMBEDDING = 8  # dimensions of a category, including the horizon
NOISE = 1 << 20  # dropout factors drawn for an epoch, besides those of one layer
INITIAL_STEP = -3.0  # softplus(-3) = 0.05 units: the distance between quantiles before training


@dataclass(frozen=True)
class Scaler:
    """Statistics of the inputs over the training rows.

    `mean`, `scale` (1 / standard deviation; 0 switches a constant input off) and `missing` (True: has a missing
    indicator) are per numeric input in the order of `names`; `vocabulary` holds the sorted values of each category.
    `low` and `high` are the bounds of each input's training values (() in bundles written without them).
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    missing: tuple[bool, ...]
    vocabulary: dict[str, tuple[int | str, ...]]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`, also from JSON."""
        lists = {name: tuple(values[name]) for name in ("names", "mean", "scale", "missing")}
        lists |= {name: tuple(values.get(name, ())) for name in ("low", "high")}
        return cls(**lists, vocabulary={name: tuple(known) for name, known in values["vocabulary"].items()})

    @property
    def codes(self) -> int:
        """Number of category codes without 0."""
        return sum(len(known) for known in self.vocabulary.values())

    @cached_property
    def _known(self) -> dict[str, tuple[int, pa.Array]]:
        """The first code and the values of each category; codes count from 1 over all categories."""
        first = accumulate((len(values) for values in self.vocabulary.values()), initial=1)
        types = categories(self.vocabulary)
        arrays = {name: pl.Series(values, dtype=types.get(name)) for name, values in self.vocabulary.items()}
        return {name: (start, values.to_arrow()) for start, (name, values) in zip(first, arrays.items(), strict=False)}

    def code(self, name: str, values: pa.Array) -> NDArray[np.int64]:
        """The codes of a category's values [n]; 0 stands for unknown and missing."""
        start, known = self._known[name]
        return np.asarray(pc.index_in(values, known).fill_null(-start).to_numpy() + start, np.int64)

    def encode(self, inputs: Inputs) -> Tensor:
        """The categories of n rows as int64 [n, categories but the horizon]."""
        codes = [self.code(name, values) for name, values in inputs.categories.items()]
        return torch.from_numpy(np.stack(codes, axis=1))

    def outside(self, base: NDArray[np.float32], step: NDArray[np.float32], codes: Tensor) -> dict[str, int]:
        """Counts, by input, of values [n, Fb], [n, H, Fs] outside their training range and of unknown categories.

        A missing number is not outside. Inputs with a count of 0 are left out.
        """
        if not self.low:
            return {}
        low, high = self._bounds
        width = base.shape[1]
        below_or_above = ((base < low[:width]) | (base > high[:width])).sum(axis=0)
        ahead = ((step < low[width:]) | (step > high[width:])).sum(axis=(0, 1))
        unknown = (codes == 0).sum(dim=0).numpy()
        coded = [name for name in self.vocabulary if name != "horizon"]
        known = [len(self.vocabulary[name]) > 0 for name in coded]  # False: always missing in training
        counts = np.concatenate([below_or_above, ahead, unknown * known])
        names = (*self.names, *coded)
        return {names[place]: int(counts[place]) for place in np.flatnonzero(counts)}

    @cached_property
    def _bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    def horizons(self, weeks: int) -> Tensor:
        """The codes of horizons 0 .. weeks - 1, int64 [weeks]."""
        return torch.arange(weeks) + self._known["horizon"][0]


class QuantileMLP(nn.Module):
    """(Linear, BatchNorm, ReLU, Dropout) x hidden, then quantiles, all in units of the anchor's `unit`.

    With `linear`, a second head is a linear model of the same inputs, trained on the same batches. It generalizes
    better to weeks unlike the training weeks, and the mean of both heads is better than either (docs/LOG.md). Hidden
    layers have no bias: BatchNorm has a shift. The median is free; the other quantiles are cumulative softplus steps
    away from it, so they cannot cross. The weights of the heads start at 0, so the median starts at the anchor.
    """

    mean: Tensor
    scale: Tensor
    indicated: Tensor
    median_only: Tensor
    steps: Tensor

    def __init__(
        self, scaler: Scaler, hidden: Sequence[int], quantiles: Sequence[float], *, dropout: float, linear: bool
    ) -> None:
        super().__init__()
        self.dropout, self.median = dropout, list(quantiles).index(0.5)
        count = len(quantiles)
        indicated = [i for i, flag in enumerate(scaler.missing) if flag]
        self._constant("mean", torch.tensor(scaler.mean, dtype=torch.float32))
        self._constant("scale", torch.tensor(scaler.scale, dtype=torch.float32))
        self._constant("indicated", torch.tensor(indicated, dtype=torch.int64))
        self._constant("median_only", torch.arange(count) == self.median)
        self._constant("steps", _quantile_steps(count, self.median))
        self._noise = torch.empty(0)
        # One table for all categories; row 0 (unknown) stays 0 because of padding_idx.
        self.table = nn.Parameter(torch.randn(scaler.codes + 1, EMBEDDING) * 0.1)
        self.table.data[0] = 0.0
        inputs = width = len(scaler.names) + len(indicated) + EMBEDDING * len(scaler.vocabulary)
        self.heads, self.biases = nn.ParameterList(), nn.ParameterList()
        self.weights, self.norms = nn.ParameterList(), nn.ModuleList()
        for size in hidden:
            self.weights.append(torch.randn(width, size) * (2 / width) ** 0.5)
            self.norms.append(nn.BatchNorm1d(size))
            width = size
        for size in (width, inputs) if linear else (width,):
            bias = torch.full((count,), INITIAL_STEP)
            bias[self.median] = 0.0
            self.heads.append(torch.zeros(size, count))
            self.biases.append(bias)

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The parameters that weight decay applies to."""
        return [*self.weights, *self.heads]

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Raw inputs [B, names] (NaN = missing) and category codes [B, vocabulary] -> float32 quantiles [B, heads, Q].

        Heads: the network and, with `linear`, the linear model. The forecast is their mean.
        """
        x = ((numeric - self.mean) * self.scale).nan_to_num(0.0, CLIP, -CLIP).clamp(-CLIP, CLIP)
        missing = numeric.index_select(1, self.indicated).isnan().to(x.dtype)
        embedded = embedding(codes, self.table, padding_idx=0).flatten(1)
        inputs = h = torch.cat([x, missing, embedded], dim=1)
        for weight, norm in zip(self.weights, self.norms, strict=True):
            h = self._dropped(norm(h @ weight)).relu_()
        layers = zip(self.biases, (h, inputs), self.heads, strict=False)
        out = torch.stack([torch.addmm(bias, values, head) for bias, values, head in layers]).transpose(0, 1).float()
        with torch.autocast(out.device.type, enabled=False):  # bf16 is too coarse for sums of quantile steps
            return torch.where(self.median_only, out, softplus(out)) @ self.steps

    def renew_noise(self, batch: int) -> None:
        """Draw the dropout noise of an epoch of batches of `batch` samples: factors 0 or 1 / (1 - dropout)."""
        if self.table.device.type != "cpu":
            return
        size = NOISE + batch * max(weight.shape[1] for weight in self.weights)
        self._noise = torch.empty(size).bernoulli_(1 - self.dropout).div_(1 - self.dropout)

    def _dropped(self, h: Tensor) -> Tensor:
        """Dropout. On a CPU a random window of the epoch's noise: drawing new noise takes a third of a step."""
        if not self.training or self.dropout == 0:
            return h
        if h.device.type != "cpu":
            return dropout(h, self.dropout)
        start = int(torch.randint(len(self._noise) - h.numel(), ()))
        return h.mul_(self._noise[start : start + h.numel()].view_as(h))


def _quantile_steps(count: int, median: int) -> Tensor:
    """Matrix [Q, Q] from (steps below, median, steps above) to quantiles: sums of the steps, negative below."""
    above = torch.ones(count, count).triu()
    steps = torch.where(torch.arange(count)[:, None] < median, -above.T, above)
    steps[:median, median:] = steps[median + 1 :, : median + 1] = 0
    steps[median] = 1
    return steps


def pinball(quantiles: Tensor, target: Tensor, weight: Tensor, levels: Tensor) -> Tensor:
    """Weighted sum of pinball losses (Koenker and Bassett 1978), mean over heads and levels.

    quantiles [B, heads, Q], target [B], weight [B], levels [Q].
    """
    error = target.view(-1, 1, 1) - quantiles
    return weight @ (levels * error + relu(-error)).mean(dim=(1, 2))
