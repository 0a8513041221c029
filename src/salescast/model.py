"""The network: a quantile MLP whose ensemble members share one module, and its loss.

A forecast is anchor + unit * output. Standardization is part of the network, so raw inputs go in, in training and
behind the server alike.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Self

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, relu, softplus

from salescast.inputs import Inputs
from salescast.schema import KEY_TYPES, STORE_FEATURES

CLIP = 5.0  # standard deviations
EMBEDDING = {"store_id": 4, "dept_id": 8, "store_type": 2, "region": 2, "horizon": 4}
FIRST_STEP = -3.0  # softplus(-3) = 0.05 units: the distance between quantiles before training


@dataclass(frozen=True)
class Scaler:
    """What the network knows of its inputs, from training rows only.

    `mean`, `scale` (1 / standard deviation; 0 = constant, switched off) and `missing` (True = has a missing indicator)
    are per numeric input in the order of `names`; `vocabulary` holds the sorted values of each category.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    missing: tuple[bool, ...]
    vocabulary: dict[str, tuple[int | str, ...]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`, also from JSON."""
        lists = {name: tuple(values[name]) for name in ("names", "mean", "scale", "missing")}
        return cls(**lists, vocabulary={name: tuple(known) for name, known in values["vocabulary"].items()})

    def encode(self, inputs: Inputs) -> Tensor:
        """The categories of n rows as int32 [n, categories but the horizon]; 0 = unknown or missing."""
        codes = [
            values.replace_strict(list(known), range(1, len(known) + 1), default=0, return_dtype=pl.Int32).to_torch()
            for name, values in categories(inputs).items()
            for known in [self.vocabulary[name]]
        ]
        return torch.stack(codes, dim=1)


def categories(inputs: Inputs) -> dict[str, pl.Series]:
    """The raw categories as typed columns, in the order of the network's embeddings."""
    types = {**KEY_TYPES, **STORE_FEATURES}
    return {name: pl.Series(name, values.tolist(), types[name]) for name, values in inputs.categories.items()}


class QuantileMLP(nn.Module):
    """S members of (Linear, BatchNorm, ReLU, Dropout) x hidden, then quantiles, all in units of the anchor's `unit`.

    The linear layers carry no bias: BatchNorm's shift is one. The median is free, the quantiles beside it are
    cumulative softplus steps away from it, so they cannot cross; the head's weights start at 0 (median = anchor).
    """

    def __init__(
        self, scaler: Scaler, hidden: Sequence[int], quantiles: Sequence[float], *, members: int, dropout: float
    ) -> None:
        super().__init__()
        self.members, self.median, self.outputs = members, quantiles.index(0.5), len(quantiles)
        # Noise in bytes, drawn eight at a time: torch's own dropout would take a third of a step on a CPU.
        self.threshold = round(dropout * 256)
        for name, values in (("mean", scaler.mean), ("scale", scaler.scale)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        indicated = torch.tensor([i for i, flag in enumerate(scaler.missing) if flag], dtype=torch.int64)
        self.register_buffer("indicated", indicated, persistent=False)
        self.embeddings = nn.ParameterList()
        for name, known in scaler.vocabulary.items():
            table = torch.randn(len(known) + 1, members * EMBEDDING[name]) * 0.1
            table[0] = 0.0  # unknown: neutral, and kept so by padding_idx
            self.embeddings.append(table)
        width = len(scaler.names) + len(indicated) + sum(EMBEDDING[name] for name in scaler.vocabulary)
        self.weights, self.norms = nn.ParameterList(), nn.ModuleList()
        for size in hidden:
            self.weights.append(torch.randn(members, width, size) * (2 / width) ** 0.5)
            self.norms.append(nn.BatchNorm1d(members * size))
            width = size
        self.head = nn.Parameter(torch.zeros(members, width, self.outputs))
        bias = torch.full((members, 1, self.outputs), FIRST_STEP)
        bias[..., self.median] = 0.0
        self.bias = nn.Parameter(bias)

    mean: Tensor
    scale: Tensor
    indicated: Tensor

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Raw inputs [B, names] (NaN = missing) and category codes [B, vocabulary] -> quantiles [B, S, Q], float32."""
        batch = len(numeric)
        x = ((numeric - self.mean) * self.scale).nan_to_num(0.0, CLIP, -CLIP).clamp(-CLIP, CLIP)
        if len(self.indicated):
            x = torch.cat([x, numeric.index_select(1, self.indicated).isnan().to(x.dtype)], dim=1)
        parts = [x.unsqueeze(1).expand(batch, self.members, -1)]
        for column, table in enumerate(self.embeddings):
            rows = embedding(codes[:, column], table, padding_idx=0)
            parts.append(rows.view(batch, self.members, -1))
        h = torch.cat(parts, dim=2)
        for weight, norm in zip(self.weights, self.norms, strict=True):
            h = torch.bmm(h.transpose(0, 1), weight).transpose(0, 1).reshape(batch, -1)
            h = self._dropout(relu(norm(h))).view(batch, self.members, -1)
        out = torch.baddbmm(self.bias, h.transpose(0, 1), self.head).transpose(0, 1).float()
        return self._ordered(out)

    def _dropout(self, h: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return h
        words = torch.empty((h.numel() + 7) // 8, dtype=torch.int64, device=h.device).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: h.numel()].view_as(h) >= self.threshold
        return h * (keep.to(h.dtype) * (256 / (256 - self.threshold)))

    def _ordered(self, out: Tensor) -> Tensor:
        """Free median and steps -> increasing quantiles, [B, S, Q]."""
        below, middle, above = out.tensor_split((self.median, self.median + 1), dim=2)
        lower = middle - softplus(below.flip(2)).cumsum(2).flip(2)
        upper = middle + softplus(above).cumsum(2)
        return torch.cat([lower, middle, upper], dim=2)


def pinball(quantiles: Tensor, target: Tensor, weight: Tensor, levels: Tensor) -> Tensor:
    """Weighted sum of pinball losses (Koenker and Bassett 1978), mean over members and levels.

    quantiles [B, S, Q], target [B] (read only where weight > 0), weight [B], levels [Q].
    """
    error = target.view(-1, 1, 1) - quantiles
    loss = torch.maximum(levels * error, (levels - 1) * error).mean(dim=(1, 2))
    return torch.where(weight > 0, loss * weight, 0.0).sum()


class Average:
    """Exponential moving average of a network's weights and BatchNorm statistics; `network` is the averaged copy.

    The decay grows from 0.1 to `decay`, so that a short training is not held back by its random start.
    """

    def __init__(self, live: QuantileMLP, decay: float) -> None:
        self.decay, self.steps, self.network = decay, 0, deepcopy(live).eval()
        copy = self.network
        self._pairs = [
            (mean.detach(), value.detach())
            for mean, value in zip(copy.state_dict().values(), live.state_dict().values(), strict=True)
            if value.is_floating_point()
        ]

    def update(self) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        means, values = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(list(means), list(values), 1 - decay)
