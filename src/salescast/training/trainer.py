"""The training loop of one network, epoch by epoch."""

import logging
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from salescast.errors import UserError
from salescast.model import bundle
from salescast.model.config import TrainConfig
from salescast.model.network import QuantileMLP, Scaler, pinball
from salescast.tracking import journal
from salescast.training import calibration
from salescast.training.checkpoint import Best, Checkpoint, Checkpoints, Holdout, Phase, TrainerState
from salescast.training.distributed import Group
from salescast.training.plan import Fit
from salescast.training.samples import Samples

logger = logging.getLogger(__name__)

Notify = Callable[[str, str], None]  # reports an epoch: a short label for a progress bar, and a log line


def derive_seed(*numbers: int) -> int:
    """One well-spread seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


class MovingAverage:
    """Exponential moving average of a network's weights and BatchNorm statistics; `network` is the averaged copy.

    The decay grows from 0.1 to `decay`, so that a short training is not held back by its random start. torch's
    AveragedModel counts its steps in a tensor, which makes a GPU wait for the host in every step.
    """

    def __init__(self, network: QuantileMLP, decay: float) -> None:
        self.decay, self.steps, self.network = decay, 0, deepcopy(network).eval()
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        floating = [(mean.detach(), value.detach()) for mean, value in pairs if value.is_floating_point()]
        self._means, self._values = ([pair[side] for pair in floating] for side in (0, 1))

    def update(self) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self._means, self._values, 1 - decay)


class Trainer:
    """One network in training on this rank's samples, epoch by epoch."""

    def __init__(self, samples: Samples, scaler: Scaler, config: TrainConfig, epochs: int, group: Group) -> None:
        self.samples, self.config, self.epochs, self.group = samples, config, epochs, group
        torch.manual_seed(config.seed)  # the same first weights on every rank
        self.network = bundle.network(scaler, config).to(group.device)
        self.average = MovingAverage(self.network, config.ema)
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
        weight, labels, ranks = group.sum([samples.weight_sum, samples.size, samples.size > 0])
        self.mean_weight, self.share = weight / labels, group.world / ranks
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
            target, weight = (batch.target, batch.weight / self.mean_weight) if self.samples.size else self.nothing
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

    def state(self) -> TrainerState:
        return TrainerState(
            network=self.network.state_dict(),
            average=self.average.network.state_dict(),
            average_steps=self.average.steps,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
        )

    def load(self, state: TrainerState) -> None:
        self.network.load_state_dict(state.network)
        self.average.network.load_state_dict(state.average)
        self.average.steps = state.average_steps
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)


@dataclass(frozen=True)
class Run:
    """What the phases of a fit share."""

    fit: Fit
    config: TrainConfig
    group: Group
    checkpoints: Checkpoints
    journal: journal.Journal | None
    notify: Notify


def train(
    phase: Phase,
    trainer: Trainer,
    run: Run,
    resume: Checkpoint | None,
    *,
    held_out: Samples | None = None,
    holdout: Holdout | None = None,
) -> Best:
    """Train until the epochs are over or `patience` epochs brought no better WMAPE on `held_out`; returns the best.

    Without `patience` or `held_out` the last epoch is the best. `resume`: a checkpoint of this phase to continue from;
    `holdout`: the result of the holdout phase, kept in every checkpoint of the next one.
    """
    best, first, patience = None, 0, run.config.patience if held_out else 0
    if resume:
        trainer.load(resume.trainer)
        best, first = resume.best, resume.epoch
    for epoch in range(first, trainer.epochs):
        if best and patience and epoch - best.epoch >= patience:
            break
        run.group.check_parent()
        start = time.perf_counter()
        loss = trainer.epoch(epoch)
        seconds = time.perf_counter() - start
        wmape = calibration.wmape(trainer.average.network, held_out, run.group) if held_out else math.nan
        if not best or not patience or not wmape >= best.wmape:
            weights = {
                name: value.detach().cpu().clone() for name, value in trainer.average.network.state_dict().items()
            }
            best = Best(epoch + 1, wmape, loss, weights)
        if run.group.first:
            number = epoch + 1 + (run.config.epochs if holdout else 0)
            run.checkpoints.save(number, Checkpoint(phase, epoch + 1, best, holdout, trainer.state()))
            _report(phase, epoch, trainer, loss, wmape, seconds, run)
    assert best is not None  # there is at least one epoch
    return best


def _report(phase: Phase, epoch: int, trainer: Trainer, loss: float, wmape: float, seconds: float, run: Run) -> None:
    """Show an epoch and log its metrics."""
    rate = trainer.steps * trainer.batch * run.group.world / seconds
    quality = f", held-out WMAPE {wmape:.2%}" if math.isfinite(wmape) else ""
    run.notify(
        f"{run.fit.name} {phase}, {rate:,.0f} rows/s",
        f"{run.fit.name} {phase} epoch {epoch + 1}/{trainer.epochs}: loss {loss:.5f}{quality}, {rate:.0f} rows/s, "
        f"{seconds * (trainer.epochs - epoch - 1):.0f} s to go",
    )
    if run.journal:
        metrics = {"loss": loss, "rows_per_s": rate, "val_wmape": wmape}
        run.journal.metrics({f"{run.fit.name}/{phase}/{name}": value for name, value in metrics.items()}, epoch + 1)
