"""Training: `torchrun --nproc-per-node 2 -m salescast.training.main PLAN.json`, with any number of processes and nodes.

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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.distributed.elastic.multiprocessing.errors import record as recorded

from salescast.config import read, settings
from salescast.errors import UserError
from salescast.features.training_set import scan
from salescast.model import bundle
from salescast.model.config import TrainingSettings
from salescast.model.network import Scaler
from salescast.retail_calendar import calendar
from salescast.schema import planned_columns
from salescast.tracking import journal
from salescast.tracking.journal import exit_code, tracked
from salescast.training import calibration
from salescast.training.checkpoint import Checkpoints
from salescast.training.distributed import Group, connect
from salescast.training.plan import Fit, Plan
from salescast.training.samples import (
    Shard,
    build_samples,
    day_number,
    fit_scaler,
    learned,
    load_shard,
    window_mask,
)
from salescast.training.trainer import EVER, Notify, Run, State, Trainer, train

logger = logging.getLogger(__name__)


@contextmanager
def shown(first: bool, epochs: int) -> Iterator[Notify]:
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


def run_fit(shard: Shard, plan: Plan, fit: Fit, group: Group, journal: journal.Journal | None, tell: Notify) -> None:
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
    mask = learned(shard, window_mask(shard, EVER, last, config.min_history), group)
    if group.sum([mask.sum()])[0] == 0:
        raise UserError(
            f"no sales to learn from up to {fit.cutoff}; choose a later cutoff, or bring more than "
            f"{config.min_history} weeks of history"
        )
    scaler = fit_scaler(shard, mask, group)
    trainer = Trainer(build_samples(shard, mask, scaler, group.device), scaler, config, search["epoch"], group)
    best = train("final", trainer, None, run, found if found.get("phase") == "final" else {}, search)
    if group.first:
        write(plan, fit, scaler, best, search)
        checkpoints.clear()


def search_phase(shard: Shard, last: int, run: Run, found: State) -> State:
    """Number of epochs, held-out WMAPE and interval factors; without enough history for it: all epochs, factors 1."""
    limit = last - 7 * run.config.holdout_weeks
    train_mask = learned(shard, window_mask(shard, EVER, limit, run.config.min_history), run.group)
    test_mask = window_mask(shard, limit, last, run.config.min_history)
    if min(run.group.sum([train_mask.sum(), test_mask.sum()])) == 0:
        if run.group.first:
            logger.warning("%s: too little history to hold %d weeks out", run.fit.name, run.config.holdout_weeks)
        unknown = {"wmape": math.nan, "trust": 1.0, "factors": [1.0, 1.0], "network": None, "scaler": None}
        return {"epoch": run.config.epochs} | unknown
    scaler = fit_scaler(shard, train_mask, run.group)
    trainer = Trainer(
        build_samples(shard, train_mask, scaler, run.group.device), scaler, run.config, run.config.epochs, run.group
    )
    held_out = build_samples(shard, test_mask, scaler, run.group.device)
    best = train("search", trainer, held_out, run, found, {})
    network = trainer.average.network
    network.load_state_dict(best["network"])
    center = calibration.trust(network, held_out, run.group)
    factors = calibration.interval_factors(
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
        shrinkage=float(search["trust"]),
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
    with connect(plan.config.device if plan else read(TrainingSettings).device) as joined:
        plan = joined.from_first(plan)
        group = joined.limited(bf16=plan.config.bf16, compile=plan.config.compile)
        finished = group.from_first([bundle.is_finished(fit.out, plan.digest(fit)) for fit in plan.fits])
        with (
            shown(group.first, 2 * plan.config.epochs * finished.count(False)) as tell,
            tracked(plan.tracking, plan.journal, plan.params) if group.first else nullcontext() as journal,
        ):
            if journal and not all(finished):
                journal.record(plan.record(group.world))
            if not all(finished):
                shard = load_shard(plan.training, plan.config, calendar(plan.country), group.rank, group.world)
            for fit, done in zip(plan.fits, finished, strict=True):
                if not done:
                    run_fit(shard, plan, fit, group, journal, tell)
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
        return tell(journal.unsent_message(plan.journal), code) if code else 0
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
