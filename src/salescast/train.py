"""Training: `torchrun --nproc-per-node 2 -m salescast.train PLAN.json`, with any number of processes and nodes.

A plan holds several fits, one after the other in the same processes. Each fit has two phases:

- search: on labels up to `holdout_weeks` before the cutoff; the held-out weeks decide the number of epochs and how
  wide the intervals are;
- final: on every label up to the cutoff for that number of epochs. Its weights are served.

A checkpoint follows every epoch. A new start of the same plan goes on from it, and ends bitwise where an undisturbed
run ends (CPU, same number of processes); finished fits are not repeated.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.distributed.elastic.multiprocessing.errors import record as recorded
from torch.nn.utils import clip_grad_norm_

from salescast import bundle, holdout, record, tracking
from salescast.checkpoint import Checkpoints
from salescast.config import TrainConfig, settings
from salescast.dataset import Samples, Shard, day_number, fit_scaler, known, learned, load_shard, scan, select
from salescast.distributed import Group, connect
from salescast.errors import UserError
from salescast.model import Average, Scaler, pinball
from salescast.plan import Fit, Plan
from salescast.schema import planned_columns
from salescast.weeks import calendar

logger = logging.getLogger(__name__)

EVER = -(10**6)  # a day number before all data
Tell = Callable[[str, str], None]  # of an epoch: a few words, and a whole line
State = dict[str, Any]  # tensors and plain values, as a checkpoint holds them


def mix(*numbers: int) -> int:
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
        seed = mix(self.config.seed, self.group.rank)
        torch.manual_seed(mix(seed, epoch))
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
    journal: tracking.Journal | None
    tell: Tell


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
        wmape = holdout.wmape(trainer.average.network, held_out, run.group) if held_out else math.nan
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


@contextmanager
def shown(first: bool, epochs: int) -> Iterator[Tell]:
    """How rank 0 tells of its epochs: a bar on a terminal, a line each in a log, not at all in CI. Sets up logging."""
    level = logging.INFO if first else logging.WARNING
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True) if first and sys.stderr.isatty() else None
    with bar or nullcontext():  # which shows log lines above it if it has begun before logging
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        if bar:
            task, live = bar.add_task("training", total=epochs), bar
            yield lambda words, _: live.update(task, description=words, advance=1)
        else:
            yield lambda _, line: None if settings().ci else logger.info(line)


def run_fit(shard: Shard, plan: Plan, fit: Fit, group: Group, journal: tracking.Journal | None, tell: Tell) -> None:
    """Train one fit and write its bundle, going on from a checkpoint if there is one."""
    digest = plan.digest(fit)
    config = plan.config
    checkpoints = Checkpoints(plan.checkpoints / fit.name, digest)
    number = group.from_first(checkpoints.latest() if group.first else None)
    found = checkpoints.load(number) if number is not None else {}
    if found:
        logger.info("%s goes on after epoch %d of phase %s", fit.name, found["epoch"], found["phase"])
    elif group.first:
        checkpoints.clear()
    run = Run(fit, config, group, checkpoints, journal, tell)
    last = day_number(fit.cutoff)
    search = found["done"] if found.get("phase") == "final" else search_phase(shard, last, run, found)
    mask = learned(shard, known(shard, EVER, last, config.min_history), group)
    if group.sum([mask.sum()])[0] == 0:
        raise UserError(
            f"no sales to learn from up to {fit.cutoff}; choose a later cutoff, or bring more than "
            f"{config.min_history} weeks of history"
        )
    scaler = fit_scaler(shard, mask, group)
    trainer = Trainer(select(shard, mask, scaler, group.device), scaler, config, search["epoch"], group)
    best = train("final", trainer, None, run, found if found.get("phase") == "final" else {}, search)
    if group.first:
        write(plan, fit, scaler, best, search)
        checkpoints.clear()


def search_phase(shard: Shard, last: int, run: Run, found: State) -> State:
    """Number of epochs, held-out WMAPE and interval factors; without enough history for it: all epochs, factors 1."""
    limit = last - 7 * run.config.holdout_weeks
    train_mask = learned(shard, known(shard, EVER, limit, run.config.min_history), run.group)
    test_mask = known(shard, limit, last, run.config.min_history)
    if min(run.group.sum([train_mask.sum(), test_mask.sum()])) == 0:
        if run.group.first:
            logger.warning("%s: too little history to hold %d weeks out", run.fit.name, run.config.holdout_weeks)
        unknown = {"wmape": math.nan, "trust": 1.0, "factors": [1.0, 1.0], "network": None, "scaler": None}
        return {"epoch": run.config.epochs} | unknown
    scaler = fit_scaler(shard, train_mask, run.group)
    trainer = Trainer(
        select(shard, train_mask, scaler, run.group.device), scaler, run.config, run.config.epochs, run.group
    )
    held_out = select(shard, test_mask, scaler, run.group.device)
    best = train("search", trainer, held_out, run, found, {})
    network = trainer.average.network
    network.load_state_dict(best["network"])
    center = holdout.trust(network, held_out, run.group)
    factors = holdout.interval_factors(
        network, held_out, run.config.quantiles, run.group, last, run.config.holdout_weeks, center
    )
    return best | {"trust": center, "factors": factors.tolist(), "scaler": scaler.to_dict()}


def write(plan: Plan, fit: Fit, scaler: Scaler, final: State, search: State) -> None:
    """Save the bundle. Raises UserError when the disk cannot take it; an earlier bundle in its place survives."""
    lower, upper = map(float, search["factors"])
    meta = bundle.Metadata(
        config=plan.config,
        country=plan.country,
        cutoff=fit.cutoff,
        data_digest=plan.data_digest,
        fit_digest=plan.digest(fit),
        factors=(lower, upper),
        metrics={
            "epochs": search["epoch"],
            "train_loss": final["loss"],
            "val_wmape": search["wmape"] if math.isfinite(search["wmape"]) else None,
        },
        trust=float(search["trust"]),
        planned=tuple(planned_columns(scan(plan.training).collect_schema().names())),
    )
    # Without held-out weeks there is no other model than the final one.
    best = (search["network"], Scaler.from_dict(search["scaler"])) if search["network"] else (final["network"], scaler)
    try:
        digest = bundle.save(fit.out, meta, final=(final["network"], scaler), best=best)
    except OSError as error:
        raise UserError(
            f"cannot write the bundle {fit.out}: {error}; free space and start the same plan again"
        ) from error
    logger.info("%s: bundle %.12s in %s", fit.name, digest, fit.out)


def run_plan(plan: Plan | None) -> int:
    """Train every fit of rank 0's plan (other ranks may come without, and wait until rank 0 has one).

    Returns the exit code: 0, or on rank 0 tracking.UNSENT when MLflow did not get everything.
    """
    with connect(plan.config.device if plan else settings().device) as joined:
        plan = joined.from_first(plan)
        group = joined.limited(bf16=plan.config.bf16, compile=plan.config.compile)
        finished = group.from_first([bundle.finished(fit.out, plan.digest(fit)) for fit in plan.fits])
        with (
            shown(group.first, 2 * plan.config.epochs * finished.count(False)) as tell,
            tracking.tracked(plan) if group.first else nullcontext() as journal,
        ):
            if journal and not all(finished):
                journal.record(record.collect(plan, group.world))
            if not all(finished):
                shard = load_shard(plan.training, plan.config, calendar(plan.country), group.rank, group.world)
            for fit, done in zip(plan.fits, finished, strict=True):
                if not done:
                    run_fit(shard, plan, fit, group, journal, tell)
                elif group.first:
                    logger.info("%s is finished already: %s", fit.name, fit.out)
                if journal:
                    journal.artifacts(fit.out, "bundle" if fit is plan.fits[-1] else f"{fit.name}/bundle")
    return tracking.exit_code(plan) if group.first else 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        sys.stderr.write("usage: [torchrun --nproc-per-node N] -m salescast.train PLAN.json\n")
        return 2
    try:
        plan = Plan.read(Path(arguments[0]))
        code = run_plan(plan)
        return tell(tracking.unsent_message(plan), code) if code else 0
    except UserError as error:
        return tell(str(error), 1)
    except KeyboardInterrupt:
        return 130  # the launcher says what there is to say


def tell(message: str, code: int) -> int:
    """One line on stderr, or where torchrun looks for the reason of a process's failure."""
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if reply is None:
        sys.stderr.write(f"error: {message}\n")
    else:
        reason = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(reply).write_text(json.dumps(reason))
    return code


if __name__ == "__main__":
    sys.exit(recorded(main)())
