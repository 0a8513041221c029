"""Training: `torchrun --nproc-per-node 2 -m salescast.training.main PLAN.json`, with any number of processes and nodes.

A plan holds several fits, trained one after the other in the same processes. Each fit has two phases:

- holdout: train on labels up to `holdout_weeks` before the cutoff; the held-out weeks decide the number of epochs, the
  shrinkage towards the anchor and the width of the intervals;
- full: train on every label up to the cutoff for that number of epochs. Its weights are served.

A checkpoint follows every epoch. A restart of the same plan continues from it and ends with the same bits as an
undisturbed run (CPU, same number of processes); finished fits are not repeated.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.distributed.elastic.multiprocessing.errors import record as recorded

from salescast.config import read, settings
from salescast.errors import UserError
from salescast.features.training_set import scan
from salescast.model import bundle
from salescast.model.config import TrainingSettings
from salescast.model.metadata import Metadata
from salescast.model.network import Scaler
from salescast.retail_calendar import calendar
from salescast.runtime.progress import EVERY
from salescast.schema import dataset_columns
from salescast.tracking.journal import Journal, exit_code, tracked, unsent_message
from salescast.training import calibration
from salescast.training.checkpoint import Best, Checkpoint, Checkpoints, Holdout
from salescast.training.distributed import Group, connect
from salescast.training.plan import Fit, Plan
from salescast.training.samples import (
    Shard,
    build_samples,
    day_number,
    learned,
    load_shard,
    window_mask,
)
from salescast.training.standardization import fit_scaler
from salescast.training.trainer import Notify, Run, Trainer, train

logger = logging.getLogger(__name__)


@contextmanager
def epoch_reports(first: bool, epochs: int) -> Iterator[Notify]:
    """How rank 0 reports epochs. Sets up logging.

    A bar on a terminal; in a log a line every `EVERY` seconds as a sign of life, or for every epoch if verbose.
    """
    level = logging.INFO if first else logging.WARNING
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True) if first and sys.stderr.isatty() else None
    with bar or nullcontext():  # started before logging, the bar shows log lines above it
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        if bar:
            task, live = bar.add_task("training", total=epochs), bar
            yield lambda label, _: live.update(task, description=label, advance=1)
        else:
            last = time.monotonic()

            def report(_: str, line: str) -> None:
                nonlocal last
                if settings().verbose or time.monotonic() - last >= EVERY:
                    logger.info(line)
                    last = time.monotonic()

            yield report


def run_fit(shard: Shard, plan: Plan, fit: Fit, group: Group, journal: Journal | None, notify: Notify) -> None:
    """Train one fit and write its bundle, continuing from a checkpoint if there is one."""
    config, start = plan.config, time.perf_counter()
    checkpoints = Checkpoints(plan.checkpoints / fit.name, plan.digest(fit))
    number = group.from_first(checkpoints.latest() if group.first else None)
    resume = checkpoints.load(number) if number is not None else None
    if resume:
        logger.info("%s continues after epoch %d of phase %s", fit.name, resume.epoch, resume.phase)
    elif group.first:
        checkpoints.clear()
    run = Run(fit, config, group, checkpoints, journal, notify)
    last = day_number(fit.cutoff)
    holdout = (resume and resume.holdout) or holdout_phase(shard, last, run, resume)
    mask = learned(shard, window_mask(shard, None, last, config.min_history), group)
    if group.sum([mask.sum()])[0] == 0:
        raise UserError(
            f"no sales to learn from up to {fit.cutoff}; choose a later cutoff, or bring more than "
            f"{config.min_history} weeks of history"
        )
    scaler = fit_scaler(shard, mask, group)
    trainer = Trainer(build_samples(shard, mask, scaler, group), scaler, config, holdout.epochs, group)
    resumed = resume if resume and resume.phase == "full" else None
    begun = time.perf_counter()
    best = train("full", trainer, run, resumed, holdout=holdout)
    epochs = trainer.epochs - (resumed.epoch if resumed else 0)
    rate = epochs * trainer.steps * trainer.batch * group.world / (time.perf_counter() - begun)
    if group.first:
        digest = write_bundle(plan, fit, scaler, best, holdout)
        checkpoints.clear()
        summary = _summary(fit, config.holdout_weeks, holdout, time.perf_counter() - start)
        logger.info("%s; %.0f rows/s, bundle %.12s", summary, rate, digest)


def _summary(fit: Fit, weeks: int, holdout: Holdout, seconds: float) -> str:
    """One line on a finished fit."""
    what = f"model {fit.name} of the sales up to {fit.cutoff} trained in {seconds:.1f} s"
    if not math.isfinite(holdout.wmape):
        return f"{what}, {holdout.epochs} epochs; too little history to hold weeks out"
    held = f"the last {weeks} weeks, held out, were best after epoch {holdout.epochs}"
    return f"{what}: {held} (WMAPE {holdout.wmape:.2%}); then {holdout.epochs} epochs on all weeks"


def holdout_phase(shard: Shard, last: int, run: Run, resume: Checkpoint | None) -> Holdout:
    """Train without the last weeks, and measure on them: number of epochs, WMAPE, shrinkage and interval factors.

    With too little history for that: all epochs, no shrinkage, factors 1.
    """
    config, group = run.config, run.group
    limit = last - 7 * config.holdout_weeks
    train_mask = learned(shard, window_mask(shard, None, limit, config.min_history), group)
    test_mask = window_mask(shard, limit, last, config.min_history)
    if min(group.sum([train_mask.sum(), test_mask.sum()])) == 0:
        if group.first:
            logger.warning("%s: too little history to hold %d weeks out", run.fit.name, config.holdout_weeks)
        return Holdout(config.epochs, math.nan, shrinkage=1.0, factors=(1.0, 1.0), best=None, scaler=None)
    scaler = fit_scaler(shard, train_mask, group)
    trainer = Trainer(build_samples(shard, train_mask, scaler, group), scaler, config, config.epochs, group)
    held_out = build_samples(shard, test_mask, scaler, group)
    best = train("holdout", trainer, run, resume, held_out=held_out)
    network = trainer.average.network
    network.load_state_dict(best.weights)
    shrinkage = calibration.shrinkage(network, held_out, group)
    factor = calibration.interval_factor(network, held_out, config.quantiles, group, shrinkage)
    plain = replace(scaler)  # without its cached arrays, which a checkpoint does not hold
    return Holdout(best.epoch, best.wmape, shrinkage, (factor, factor), best, plain)


def write_bundle(plan: Plan, fit: Fit, scaler: Scaler, full: Best, holdout: Holdout) -> str:
    """Save the bundle and return its digest.

    Raises UserError when the disk cannot take it; an earlier bundle in its place survives.
    """
    meta = Metadata(
        config=plan.config,
        country=plan.country,
        cutoff=fit.cutoff,
        data_digest=plan.data_digest,
        fit_digest=plan.digest(fit),
        factors=holdout.factors,
        metrics={
            "epochs": holdout.epochs,
            "train_loss": full.loss,
            "val_wmape": holdout.wmape if math.isfinite(holdout.wmape) else None,
        },
        shrinkage=holdout.shrinkage,
        planned=tuple(dataset_columns(scan(plan.training).collect_schema().names())),
    )
    final = (full.weights, scaler)
    best = (holdout.best.weights, holdout.scaler) if holdout.best and holdout.scaler else final
    try:
        digest = bundle.save(fit.out, meta, final=final, best=best)
    except OSError as error:
        raise UserError(
            f"cannot write the bundle {fit.out}: {error}; free space and start the same plan again"
        ) from error
    return digest


def run_plan(plan: Plan | None) -> int:
    """Train every fit of rank 0's plan (other ranks may come without, and wait until rank 0 has one).

    Returns the exit code: 0, or on rank 0 `journal.UNSENT` when MLflow did not get everything.
    """
    with connect(plan.config.device if plan else read(TrainingSettings).device) as joined:
        plan = joined.from_first(plan)
        group = joined.limited(bf16=plan.config.bf16, compile=plan.config.compile)
        finished = group.from_first([bundle.is_finished(fit.out, plan.digest(fit)) for fit in plan.fits])
        with (
            epoch_reports(group.first, 2 * plan.config.epochs * finished.count(False)) as notify,
            tracked(plan.tracking, plan.journal, plan.params) if group.first else nullcontext() as journal,
        ):
            if journal and not all(finished):
                journal.record(plan.record(group.world))
            if not all(finished):
                shard = load_shard(plan.training, plan.config, calendar(plan.country), group.rank, group.world)
            for fit, done in zip(plan.fits, finished, strict=True):
                if not done:
                    run_fit(shard, plan, fit, group, journal, notify)
                elif group.first:
                    logger.info("%s is finished already: %s", fit.name, fit.out)
                if journal:
                    journal.artifacts(fit.out, "bundle" if fit is plan.fits[-1] else f"{fit.name}/bundle")
    return exit_code(plan.journal) if group.first else 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        sys.stderr.write("usage: [torchrun --nproc-per-node N] -m salescast.training.main PLAN.json\n")
        return 2
    try:
        plan = Plan.read(Path(arguments[0]))
        code = run_plan(plan)
        return fail(unsent_message(plan.journal), code) if code else 0
    except UserError as error:
        return fail(str(error), 1)
    except KeyboardInterrupt:
        return 130  # the launcher reports it


def fail(message: str, code: int) -> int:
    """Write one line to stderr, or to the file where torchrun looks for the reason of a failure; returns `code`."""
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if reply is None:
        sys.stderr.write(f"error: {message}\n")
    else:
        reason = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(reply).write_text(json.dumps(reason))
    return code


if __name__ == "__main__":
    sys.exit(recorded(main)())
