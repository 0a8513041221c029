"""From the retrieved training set to batches: each rank's own rows, as tensors in memory.

A sample is a base row (the features of week b) with one horizon h; its label is the sales of week b + h.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from salescast.errors import UserError
from salescast.features.columns import categories
from salescast.features.training_set import scan
from salescast.model.arrays import LEVEL
from salescast.model.config import TrainConfig
from salescast.model.inputs import Inputs, build
from salescast.model.network import Scaler
from salescast.retail_calendar import Calendar
from salescast.schema import KEYS, LABEL, TIMESTAMP
from salescast.training.distributed import Group

logger = logging.getLogger(__name__)

ENOUGH = 0.25  # share of the samples with a seasonal anchor from which on only these are learned from
CHUNK = 1 << 17  # rows turned into inputs at a time: bounds what is needed beside the tensors
HEAVIEST = 100.0  # largest weight of a sample, in median units: one huge series does not decide for all
UNIT_EDGES = np.arange(-100.0, 100.0, 0.01)  # log2 of the units that the median is found among
EPOCH_DAY = date(1970, 1, 1)


def series_start(frame: pl.LazyFrame, row: int, rows: int, look: int = 2048) -> int:
    """The first row >= `row` at which a series begins, or `rows`; reads only the keys around it."""
    if row == 0:
        return 0
    while row < rows:
        keys = frame.select(pl.struct(KEYS)).slice(row - 1, look).collect().to_series()
        changed = (keys != keys.shift(1)).fill_null(False).arg_true()
        if len(changed):
            return row - 1 + int(changed[0])
        row += max(len(keys) - 1, 1)
    return rows


def shard_bounds(frame: pl.LazyFrame, rank: int, world: int) -> tuple[int, int]:
    """Rows [start, stop) of `rank`: an equal part moved to the next start of a series, so no series is shared.

    Every rank finds its own bounds; neighbours find the same one. A rank gets no row if there are too few series.
    """
    rows = int(frame.select(pl.len()).collect().item())
    start, stop = (series_start(frame, part * rows // world, rows) for part in (rank, rank + 1))
    return start, stop


@dataclass(frozen=True)
class Table:
    """What batches are gathered from, on the device that trains: n rows, each with H horizons."""

    base: Tensor  # float32 [n, Fb]
    step: Tensor  # float32 [n * H, Fs]
    target: Tensor  # float32 [n * H]
    unit: Tensor  # float32 [n * H]
    label: Tensor  # float32 [n * H]
    day: Tensor  # int32 [n]


@dataclass(frozen=True)
class Shard:
    """The rows of one rank, n of them, each with H horizons, in the host's memory. Days are days since 1970-01-01."""

    base: Tensor  # float32 [n, Fb], NaN = missing
    step: Tensor  # float32 [n, H, Fs], NaN = missing
    label: Tensor  # float32 [n, H], sales; NaN = not known
    target: Tensor  # float32 [n, H], (label - anchor) / unit; NaN where there is no finite one
    unit: Tensor  # float32 [n, H]
    fallback: NDArray[np.int8]  # [n, H], the kind of anchor, see Inputs
    day: NDArray[np.int32]  # [n], the base week
    history: NDArray[np.int32]  # [n], weeks from the first row of the series
    names: tuple[str, ...]  # of base, then step
    codes: dict[str, NDArray[np.int32]]  # category -> [n], 0 = missing, i = values[i - 1]
    values: dict[str, list[int | str]]
    _tables: dict[torch.device, Table] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def horizon(self) -> int:
        return self.target.shape[1]

    def table(self, device: torch.device) -> Table:
        """The rows on `device`, brought there once. Raises UserError when they do not fit into its memory."""
        if device not in self._tables:
            day = torch.from_numpy(self.day)
            tensors = (self.base, self.step.flatten(0, 1), self.target.flatten(), self.unit.flatten())
            try:
                self._tables[device] = Table(*(part.to(device) for part in (*tensors, self.label.flatten(), day)))
            except torch.OutOfMemoryError:
                size = sum(part.nbytes for part in tensors) / 2**30
                raise UserError(
                    f"the {len(day)} rows of this process need {size:.1f} GiB on {device}, which has less; "
                    "train with more processes and GPUs, or set SALESCAST_DEVICE to cpu"
                ) from None
        return self._tables[device]


def load_shard(folder: Path, config: TrainConfig, calendar: Calendar, rank: int, world: int) -> Shard:
    """Read and prepare this rank's part of the training set. A rank without series gets one row without labels.

    Raises UserError when the set is missing, empty, unsorted or holds a week of a series twice.
    """
    frame = scan(folder)
    start, stop = shard_bounds(frame, rank, world)
    if start == stop:
        frame = frame.head(1).with_columns(pl.lit(None, pl.Float32).alias(LABEL))
        start, stop = 0, 1
    rows = frame.slice(start, stop - start).select(
        *KEYS, pl.col(TIMESTAMP).dt.epoch("d").cast(pl.Int32).alias("day"), pl.col(LABEL).cast(pl.Float32)
    )
    index = rows.with_columns(pl.struct(KEYS).rle_id().alias("series")).collect()
    if index.is_empty():
        raise UserError(f"the training set {folder} has no rows; import or generate data and retrieve again")
    series, day = index["series"].to_numpy(), index["day"].to_numpy()
    if series[-1] + 1 != index.select(pl.struct(KEYS).n_unique()).item():
        raise UserError(f"the training set {folder} is not sorted by {KEYS}; retrieve it again")
    label = _labels(series, day, index[LABEL].fill_null(np.nan).to_numpy(), config.horizon)
    chunks = (frame.slice(at, min(CHUNK, stop - at)).collect() for at in range(start, stop, CHUNK))
    inputs = (build(chunk, config.feature_service, config.horizon, calendar) for chunk in chunks)
    return _assemble(inputs, series, day, label)


def _labels(
    series: NDArray[np.uint32], day: NDArray[np.int32], sales: NDArray[np.float32], horizon: int
) -> NDArray[np.float32]:
    """Sales of the same series h weeks later, [n, horizon], matched on the date; NaN = no such row or no sales."""
    span = int(day.max()) - int(day.min()) + 7 * horizon + 1
    moment = series.astype(np.int64) * span + (day - day.min())
    if (np.diff(moment) <= 0).any():
        raise UserError("the training set holds a week of a series twice or not in order; retrieve it again")
    label = np.full((len(day), horizon), np.nan, dtype=np.float32)
    for h in range(horizon):
        at = np.searchsorted(moment, moment + 7 * h)
        found = at < len(moment)
        found[found] = moment[at[found]] == moment[found] + 7 * h
        label[found, h] = sales[at[found]]
    return label


def _assemble(
    chunks: Iterator[Inputs], series: NDArray[np.uint32], day: NDArray[np.int32], label: NDArray[np.float32]
) -> Shard:
    """Fill the tensors chunk by chunk; nothing is held twice."""
    n, horizon = label.shape
    target, unit, fallback = np.empty_like(label), np.empty_like(label), np.empty(label.shape, dtype=np.int8)
    raw: dict[str, list[pl.Series]] = {}
    at = 0
    for part in chunks:
        if at == 0:
            base = np.empty((n, len(part.base_names)), dtype=np.float32)
            step = np.empty((n, horizon, len(part.step_names)), dtype=np.float32)
            names = (*part.base_names, *part.step_names)
        here = slice(at, at + len(part.base))
        base[here], step[here], unit[here], fallback[here] = part.base, part.step, part.unit, part.anchor_kind
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            target[here] = (label[here] - part.anchor) / part.unit
        for name, column in part.categories.items():
            raw.setdefault(name, []).append(pl.Series(name, column))
        at = here.stop
    usable = np.isfinite(target) & np.isfinite(unit)
    lost = int((np.isfinite(label) & ~usable).sum())
    if lost:
        logger.warning("%d labels have no finite anchor, unit or value and are not learned from", lost)
    target[~usable] = np.nan
    starts = np.flatnonzero(np.diff(series, prepend=series[0] + 1) != 0)
    first = np.repeat(day[starts], np.diff(starts, append=n))
    columns = {name: pl.concat(parts) for name, parts in raw.items()}
    return Shard(
        base=torch.from_numpy(base),
        step=torch.from_numpy(step),
        label=torch.from_numpy(label),
        target=torch.from_numpy(target),
        unit=torch.from_numpy(unit),
        fallback=fallback,
        day=day,
        history=(day - first) // 7,
        names=names,
        codes={name: c.rank("dense").fill_null(0).cast(pl.Int32).to_numpy() for name, c in columns.items()},
        values={name: c.drop_nulls().unique().sort().to_list() for name, c in columns.items()},
    )


@dataclass(frozen=True)
class Batch:
    """B samples: raw inputs [B, F], category codes [B, C], and [B] each: the others; `day` is that of its week."""

    numeric: Tensor
    codes: Tensor
    target: Tensor
    unit: Tensor
    weight: Tensor  # in the loss: the unit, bounded
    label: Tensor
    day: Tensor


@dataclass(frozen=True)
class Samples:
    """Samples of a shard: base rows [m] and which horizons of each are used, as the first `count` of `order`.

    All tensors are on the device that trains, and nothing that gathers a batch waits for it.
    """

    table: Table
    rows: Tensor  # int64 [m]
    order: Tensor  # uint8 [m, H]
    count: Tensor  # int64 [m]
    codes: Tensor  # int64 [n, C - 1], of the categories but the horizon
    horizons: Tensor  # int64 [H], the horizons' codes
    size: int  # samples; 0 on a rank that only keeps step with the others
    largest: float  # weight of a sample
    weight_sum: float  # of the samples

    def batches(self, rows: Tensor, horizon: Tensor, batch: int) -> Iterator[Batch]:
        """The samples (rows, horizon), both int64, in batches of at most `batch`."""
        table = self.table
        places = rows * len(self.horizons) + horizon
        horizon_code = self.horizons[horizon].unsqueeze(1)
        day = table.day[rows] + 7 * horizon
        for at in range(0, len(rows), batch):
            row, place = rows[at : at + batch], places[at : at + batch]
            numeric = torch.cat([table.base.index_select(0, row), table.step.index_select(0, place)], dim=1)
            codes = torch.cat([self.codes.index_select(0, row), horizon_code[at : at + batch]], dim=1)
            target, unit, label = (part.index_select(0, place) for part in (table.target, table.unit, table.label))
            weight = unit.clamp(max=self.largest)
            yield Batch(numeric, codes, target, unit, weight, label, day[at : at + batch])

    def epoch(self, epoch: int, seed: int, batch: int, steps: int) -> Iterator[Batch]:
        """`steps` batches of `batch` samples: every row once with one of its horizons, then again from the start.

        The horizon rotates from epoch to epoch, so that a row shows each of them equally often. Rows start at
        different horizons: with equal ones a week would always meet the same horizon in every series.
        """
        offset = torch.randint(0, 1 << 30, self.rows.shape, generator=torch.Generator().manual_seed(seed))
        picks = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed + 1 + epoch))
        picks = picks.repeat(-(-steps * batch // len(picks)))[: steps * batch]
        # Drawn on the host, so that every device sees the same samples; two uploads an epoch.
        offset, picks = offset[picks].to(self.rows.device), picks.to(self.rows.device)
        turn = (offset + epoch) % self.count[picks]
        return self.batches(self.rows[picks], self.order[picks, turn].long(), batch)

    def pairs(self, batch: int) -> Iterator[Batch]:
        """Every sample (row, horizon) once, on a rank that has some."""
        device = self.rows.device
        # With its size known beforehand nobody waits for the counts.
        row = torch.arange(len(self.rows), device=device).repeat_interleave(self.count, output_size=self.size)
        turn = torch.arange(self.size, device=device) - (self.count.cumsum(0) - self.count)[row]
        return self.batches(self.rows[row], self.order[row, turn].long(), batch)


def day_number(day: date) -> int:
    return (day - EPOCH_DAY).days


def window_mask(shard: Shard, first: int | None, last: int, min_history: int) -> NDArray[np.bool_]:
    """Samples [n, H] with base week > `first` (None: any), label week <= `last` and enough history."""
    weeks = shard.day[:, None] + 7 * np.arange(shard.horizon)
    rows = shard.history >= min_history
    if first is not None:
        rows &= shard.day > first
    return np.asarray(rows[:, None] & (weeks <= last) & torch.isfinite(shard.target).numpy())


def learned(shard: Shard, mask: NDArray[np.bool_], group: Group) -> NDArray[np.bool_]:
    """The samples of `mask` to learn from: those with an anchor from last year, if these are enough of them.

    How sales differ from a mere level says nothing of how they differ from a seasonal anchor.
    """
    seasonal = np.asarray(mask & (shard.fallback < LEVEL))
    total, found = group.sum([mask.sum(), seasonal.sum()])
    return seasonal if found >= ENOUGH * total else mask


def largest_weight(shard: Shard, mask: NDArray[np.bool_], group: Group) -> float:
    """HEAVIEST times the median unit of the samples with sales, of all ranks; infinite without such a sample."""
    units = shard.unit.numpy()[mask & (shard.label.numpy() > 0)]
    counts = group.sum(np.histogram(np.log2(units), UNIT_EDGES)[0])
    if counts.sum() == 0:
        return math.inf
    median = UNIT_EDGES[np.searchsorted(counts.cumsum(), counts.sum() / 2) + 1]
    return float(HEAVIEST * 2.0**median)


def build_samples(shard: Shard, mask: NDArray[np.bool_], scaler: Scaler, group: Group) -> Samples:
    """The samples of `mask`; a rank without any keeps its first row, to weigh nothing."""
    device, largest = group.device, largest_weight(shard, mask, group)
    rows = np.flatnonzero(mask.any(axis=1))
    used = mask[rows]
    if not len(rows):
        rows, used = np.zeros(1, dtype=np.int64), np.ones((1, shard.horizon), dtype=bool)
    codes = []
    types = categories(shard.codes)
    for name, local in shard.codes.items():
        table = scaler.code(name, pl.Series(shard.values[name], dtype=types[name]).to_arrow())
        codes.append(np.concatenate([[0], table])[local])
    return Samples(
        shard.table(device),
        torch.from_numpy(rows).to(device),
        torch.from_numpy(np.argsort(~used, axis=1, kind="stable").astype(np.uint8)).to(device),
        torch.from_numpy(used.sum(axis=1)).to(device),
        torch.from_numpy(np.stack(codes, axis=1)).to(device),
        scaler.horizons(shard.horizon).to(device),
        int(mask.sum()),
        largest,
        float(shard.unit.numpy()[mask].clip(max=largest).sum(dtype=np.float64)),
    )
