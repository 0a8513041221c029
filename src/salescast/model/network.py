"""The network: a quantile MLP whose ensemble members share one module, and its loss.

A forecast is anchor + unit * output. Standardization is part of the network, so raw inputs go in, in training and
behind the server alike.
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

from salescast.features.columns import CATEGORIES
from salescast.model.inputs import Inputs

CLIP = 5.0  # standard deviations
EMBEDDING = 8  # dimensions of a category, including the horizon
NOISE = 1 << 20  # dropout factors drawn for an epoch, besides those of one layer
FIRST_STEP = -3.0  # softplus(-3) = 0.05 units: the distance between quantiles before training


@dataclass(frozen=True)
class Scaler:
    """What the network knows of its inputs, from training rows only.

    `mean`, `scale` (1 / standard deviation; 0 = constant, switched off) and `missing` (True = has a missing indicator)
    are per numeric input in the order of `names`; `vocabulary` holds the sorted values of each category. `low` and
    `high` are the bounds of each input's training values (() in bundles that do not say).
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
        """How many codes there are besides 0."""
        return sum(len(known) for known in self.vocabulary.values())

    @cached_property
    def _known(self) -> dict[str, tuple[int, pa.Array]]:
        """By category its first code and its values; codes 1, 2, ... go on over all categories."""
        first = accumulate((len(values) for values in self.vocabulary.values()), initial=1)
        arrays = {name: pl.Series(values, dtype=CATEGORIES.get(name)) for name, values in self.vocabulary.items()}
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
        """How many values [n, Fb], [n, H, Fs] are beyond their training values, and categories unknown, by input.

        A missing number is not beyond anything. Inputs without such values are left out.
        """
        if not self.low:
            return {}
        low, high = self._bounds
        width = base.shape[1]
        beyond = ((base < low[:width]) | (base > high[:width])).sum(axis=0)
        ahead = ((step < low[width:]) | (step > high[width:])).sum(axis=(0, 1))
        unknown = (codes == 0).sum(dim=0).numpy()
        told = [len(self.vocabulary[name]) > 0 for name in CATEGORIES]  # in training it was always missing
        counts = np.concatenate([beyond, ahead, unknown * told])
        names = (*self.names, *CATEGORIES)
        return {names[place]: int(counts[place]) for place in np.flatnonzero(counts)}

    @cached_property
    def _bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    def horizons(self, weeks: int) -> Tensor:
        """The codes of horizons 0 .. weeks - 1, int64 [weeks]."""
        return torch.arange(weeks) + self._known["horizon"][0]


class QuantileMLP(nn.Module):
    """S members of (Linear, BatchNorm, ReLU, Dropout) x hidden, then quantiles, all in units of the anchor's `unit`.

    With `linear`, each member has a linear model of the same inputs beside its network, trained on the same batches:
    it errs elsewhere (less in weeks unlike those learned from), and their mean errs less than either (docs/LOG.md).
    The linear layers carry no bias: BatchNorm's shift is one. The median is free, the quantiles beside it are
    cumulative softplus steps away from it, so they cannot cross; the head's weights start at 0 (median = anchor).
    """

    mean: Tensor
    scale: Tensor
    indicated: Tensor
    median_only: Tensor
    steps: Tensor

    def __init__(
        self,
        scaler: Scaler,
        hidden: Sequence[int],
        quantiles: Sequence[float],
        *,
        members: int,
        dropout: float,
        linear: bool,
    ) -> None:
        super().__init__()
        self.members, self.dropout, self.median = members, dropout, list(quantiles).index(0.5)
        count = len(quantiles)
        indicated = [i for i, flag in enumerate(scaler.missing) if flag]
        # Quantile q = median + the sum of the steps between, negative below it: a triangle on each side.
        above = torch.ones(count, count).triu()
        steps = torch.where(torch.arange(count)[:, None] < self.median, -above.T, above)
        steps[: self.median, self.median :] = steps[self.median + 1 :, : self.median + 1] = 0
        steps[self.median] = 1
        self._constant("mean", torch.tensor(scaler.mean, dtype=torch.float32))
        self._constant("scale", torch.tensor(scaler.scale, dtype=torch.float32))
        self._constant("indicated", torch.tensor(indicated, dtype=torch.int64))
        self._constant("median_only", torch.arange(count) == self.median)
        self._constant("steps", steps)
        self._noise = torch.empty(0)
        # One table for all categories; row 0 (unknown) is neutral and kept so by padding_idx.
        self.table = nn.Parameter(torch.randn(scaler.codes + 1, members * EMBEDDING) * 0.1)
        self.table.data[0] = 0.0
        width = len(scaler.names) + len(indicated) + EMBEDDING * len(scaler.vocabulary)
        # Heads, one a voice of each member: the network's and, beside it, a linear model of the same inputs.
        self.heads, self.biases = nn.ParameterList(), nn.ParameterList()
        inputs = width
        self.weights, self.norms = nn.ParameterList(), nn.ModuleList()
        for size in hidden:
            self.weights.append(torch.randn(members, width, size) * (2 / width) ** 0.5)
            self.norms.append(nn.BatchNorm1d(members * size))
            width = size
        for size in (width, inputs) if linear else (width,):
            bias = torch.full((members, 1, count), FIRST_STEP)
            bias[..., self.median] = 0.0
            self.heads.append(torch.zeros(members, size, count))
            self.biases.append(bias)

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The parameters that weight decay applies to."""
        return [*self.weights, *self.heads]

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Raw inputs [B, names] (NaN = missing) and category codes [B, vocabulary] -> float32 quantiles [B, voices, Q].

        Voices: the S networks, then the S linear models if there are any. The forecast is their mean.
        """
        batch = len(numeric)
        x = ((numeric - self.mean) * self.scale).nan_to_num(0.0, CLIP, -CLIP).clamp(-CLIP, CLIP)
        parts = [x, numeric.index_select(1, self.indicated).isnan().to(x.dtype)]
        x = torch.cat(parts, dim=1).unsqueeze(1).expand(batch, self.members, -1)
        looked_up = embedding(codes, self.table, padding_idx=0).view(batch, -1, self.members, EMBEDDING)
        first = h = torch.cat([x, looked_up.transpose(1, 2).flatten(2)], dim=2)
        for weight, norm in zip(self.weights, self.norms, strict=True):
            h = torch.bmm(h.transpose(0, 1), weight).transpose(0, 1).reshape(batch, -1)
            h = self._dropped(norm(h)).relu_().view(batch, self.members, -1)
        layers = zip(self.biases, (h, first), self.heads, strict=False)
        voices = [torch.baddbmm(bias, values.transpose(0, 1), head) for bias, values, head in layers]
        out = torch.cat(voices).transpose(0, 1).float()
        with torch.autocast(out.device.type, enabled=False):  # sums of quantile steps need more than 8 bits
            return torch.where(self.median_only, out, softplus(out)) @ self.steps

    def renew_noise(self, batch: int) -> None:
        """Draw the dropout noise of an epoch of batches of `batch` samples: factors 0 or 1 / (1 - dropout)."""
        if self.table.device.type != "cpu":
            return
        size = NOISE + batch * max(weight[:, 0].numel() for weight in self.weights)
        self._noise = torch.empty(size).bernoulli_(1 - self.dropout).div_(1 - self.dropout)

    def _dropped(self, h: Tensor) -> Tensor:
        """Dropout. On CPU, where drawing takes a third of a step, from random places of the epoch's noise."""
        if not self.training or self.dropout == 0:
            return h
        if h.device.type != "cpu":
            return dropout(h, self.dropout)
        start = int(torch.randint(len(self._noise) - h.numel(), ()))
        return h.mul_(self._noise[start : start + h.numel()].view_as(h))


def pinball(quantiles: Tensor, target: Tensor, weight: Tensor, levels: Tensor) -> Tensor:
    """Weighted sum of pinball losses (Koenker and Bassett 1978), mean over members and levels.

    quantiles [B, S, Q], target [B], weight [B], levels [Q].
    """
    error = target.view(-1, 1, 1) - quantiles
    return weight @ (levels * error + relu(-error)).mean(dim=(1, 2))
