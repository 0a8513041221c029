"""The training loop of one network, epoch by epoch."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.config import TrainConfig
from salescast.model.network import Average, Scaler, pinball
from salescast.tracking import journal
from salescast.training import calibration
from salescast.training.checkpoint import Checkpoints
from salescast.training.distributed import Group
from salescast.training.plan import Fit
from salescast.training.samples import (
    Samples,
)

logger = logging.getLogger(__name__)

EVER = -(10**6)  # a day number before all data
Notify = Callable[[str, str], None]  # of an epoch: a few words, and a whole line
State = dict[str, Any]  # tensors and plain values, as a checkpoint holds them


def derive_seed(*numbers: int) -> int:
    """One well-spread seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


class Trainer:
    """One network in training on this rank's samples, epoch by epoch."""

    def __init__(self, samples: Samples, scaler: Scaler, config: TrainConfig, epochs: int, group: Group) -> None:
        self.samples, self.config, self.epochs, self.group = samples, config, epochs, group
        torch.manual_seed(config.seed)  # the same first weights on every rank
        self.network = bundle.network(scaler, config).to(group.device)
        self.average = Average(self.network, config.ema)
        self.live = group.wrap(self.network)
        self.parameters = list(self.network.parameters())
        matrices = self.network.matrices
        others = [p for p in self.parameters if not any(p is matrix for matrix in matrices)]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        # Ranks take equally many batches of one size; a short rank starts over.
        rows = len(samples.rows) if samples.size else 0
        most = int(group.max([rows])[0])
        self.batch = max(2, min(config.batch_size, most))
        self.steps = math.ceil(most / self.batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=epochs * self.steps, cycle_momentum=False
        )
        unit, labels, ranks = group.sum([samples.unit_sum, samples.size, samples.size > 0])
        self.mean_unit, self.share = unit / labels, group.world / ranks
        self.levels = torch.tensor(config.quantiles, device=group.device)
        self.nothing = (torch.zeros(self.batch, device=group.device),) * 2

    def epoch(self, epoch: int) -> float:
        """Train one epoch; returns the mean weighted pinball loss over the samples of all ranks.

        A step without a finite gradient changes no weight. Nothing that a step computes is looked at before the end:
        a GPU is never waited for. Raises UserError, on every rank alike, when the training diverges.
        """
        # All randomness is a function of seed, epoch and rank: a checkpoint needs no generator states.
        seed = derive_seed(self.config.seed, self.group.rank)
        torch.manual_seed(derive_seed(seed, epoch))
        self.network.train()
        self.network.renew_noise(self.batch)
        total = torch.zeros(3, device=self.group.device)  # loss, weight, skipped steps
        for batch in self.samples.epoch(epoch, seed, self.batch, self.steps):
            with torch.autocast(self.group.device.type, self.group.place.amp, self.group.place.amp is not None):
                quantiles = self.live(batch.numeric, batch.codes)
            # A rank without samples takes every step with the others and weighs nothing.
            target, weight = (batch.target, batch.unit / self.mean_unit) if self.samples.size else self.nothing
            loss = pinball(quantiles, target, weight, self.levels)
            self.optimizer.zero_grad()
            (loss * (self.share / self.batch)).backward()
            # The norm is that of the averaged gradients: every rank skips the same steps. With `found_inf` 1, as loss
            # scaling sets it, the fused kernel leaves weights and moments as they are.
            finite = clip_grad_norm_(self.parameters, self.config.clip_norm).isfinite()
            skip = (~finite).float()
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
            self.optimizer.step()
            gain = torch.stack([loss.detach(), weight.sum()])
            total += torch.cat([torch.where(finite, gain, 0.0), skip.view(1)])
            self.schedule.step()
            self.average.update()
        self._share_statistics()
        loss_sum, weight_sum, skips = self.group.sum(total.double().cpu().numpy())
        skipped = round(skips / self.group.world)
        if skipped and self.group.first:
            logger.warning(
                "epoch %d: %d of %d steps had no finite gradient and were skipped", epoch + 1, skipped, self.steps
            )
        if skipped > self.steps / 2:
            raise UserError(
                f"training diverged: {skipped} of {self.steps} steps of epoch {epoch + 1} had no finite gradient; "
                "lower the learning rate or look for absurd values in the sales"
            )
        return float(loss_sum / max(weight_sum, 1e-12))

    def _share_statistics(self) -> None:
        """BatchNorm statistics are each rank's own during an epoch; between epochs all ranks hold their mean."""
        buffers = [b for net in (self.network, self.average.network) for b in net.buffers() if b.is_floating_point()]
        self.group.average_(buffers, weight=float(self.samples.size))

    def state(self) -> State:
        return {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load(self, state: State) -> None:
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.average.steps = state["average_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


@dataclass(frozen=True)
class Run:
    """What the phases of a fit share."""

    fit: Fit
    config: TrainConfig
    group: Group
    checkpoints: Checkpoints
    journal: journal.Journal | None
    tell: Notify


def train(phase: str, trainer: Trainer, held_out: Samples | None, run: Run, found: State, done: State) -> State:
    """Train until the epochs are over or `patience` epochs brought nothing (0 = all epochs, the last one counts).

    `found`: the checkpoint to go on from ({} = none); `done`: what earlier phases left, kept in every checkpoint.
    The state: `epoch` (how many it took), `wmape` on the held-out weeks (NaN without them), `network`.
    """
    best: State = found.get("best", {})
    if found:
        trainer.load(found["trainer"])
    for epoch in range(found.get("epoch", 0), trainer.epochs):
        if best and held_out and run.config.patience and epoch - best["epoch"] >= run.config.patience:
            break
        run.group.check_parent()
        start = time.perf_counter()
        loss = trainer.epoch(epoch)
        seconds = time.perf_counter() - start
        wmape = calibration.wmape(trainer.average.network, held_out, run.group) if held_out else math.nan
        if not best or not run.config.patience or not wmape >= best["wmape"]:
            weights = {
                name: value.detach().cpu().clone() for name, value in trainer.average.network.state_dict().items()
            }
            best = {"epoch": epoch + 1, "wmape": wmape, "loss": loss, "network": weights}
        if run.group.first:
            number = epoch + 1 + (run.config.epochs if done else 0)
            state = {"phase": phase, "epoch": epoch + 1, "best": best, "done": done, "trainer": trainer.state()}
            run.checkpoints.save(number, state)
            rate = trainer.steps * trainer.batch * run.group.world / seconds
            report(phase, epoch, trainer.epochs, loss, wmape, rate, seconds, run)
    return best


def report(
    phase: str, epoch: int, epochs: int, loss: float, wmape: float, rate: float, seconds: float, run: Run
) -> None:
    """What is seen of an epoch, and its metrics; `rate` in samples per second."""
    quality = f", held-out WMAPE {wmape:.2%}" if math.isfinite(wmape) else ""
    run.tell(
        f"{run.fit.name} {phase}, {rate:,.0f} rows/s",
        f"{run.fit.name} {phase} epoch {epoch + 1}/{epochs}: loss {loss:.5f}{quality}, {rate:.0f} rows/s, "
        f"{seconds * (epochs - epoch - 1):.0f} s to go",
    )
    if run.journal:
        metrics = {"loss": loss, "rows_per_s": rate} | ({"val_wmape": wmape} if math.isfinite(wmape) else {})
        run.journal.metrics({f"{run.fit.name}/{phase}/{name}": value for name, value in metrics.items()}, epoch + 1)
