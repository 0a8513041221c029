"""Training speed compared with a plain PyTorch program, time to a bundle, cost by rows. Prints one table.

    .venv/bin/python benchmarks/training.py [--quick] [--write]

`--quick` leaves out 1M and 10M rows (the latter need about 12 GB of memory); `--write` also writes
docs/bench/training.md. Every measured process runs with OMP_NUM_THREADS=1 under torchrun; the machine should be idle.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from salescast import schema
from salescast.data import dataset
from salescast.features.build import build_features
from salescast.features.training_set import write_training_set
from salescast.model import bundle
from salescast.model.config import TrainConfig
from salescast.model.network import EMBEDDING, Scaler, pinball
from salescast.retail_calendar import calendar
from salescast.training.distributed import Group, connect
from salescast.training.plan import Fit, Plan
from salescast.training.samples import Samples, build_samples, day_number, fit_scaler, load_shard, window_mask
from salescast.training.trainer import Trainer

DEPTS, WEEKS, EPOCHS, ROUNDS = 14, 104, 3, 5
CONFIG = TrainConfig(feature_service=schema.TRAINING_SERVICE, linear=False)
ROOT = Path(__file__).parents[1]


# --- the plain PyTorch program: a Dataset of rows, DataLoader, DistributedSampler, modules of torch.nn ---


class Rows(Dataset[tuple[Tensor, ...]]):
    def __init__(self, samples: Samples) -> None:
        batch = next(samples.epoch(0, 0, len(samples.rows), 1))
        self.numeric = batch.numeric.nan_to_num(0.0)
        self.codes, self.target, self.unit = batch.codes, batch.target, batch.unit

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return self.numeric[row], self.codes[row], self.target[row], self.unit[row]


class UsualMLP(nn.Module):
    """The same layers and sizes as QuantileMLP, from torch.nn."""

    def __init__(self, scaler: Scaler, numeric: int, config: TrainConfig) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(scaler.codes + 1, EMBEDDING) for _ in scaler.vocabulary)
        layers: list[nn.Module] = []
        width = numeric + EMBEDDING * len(scaler.vocabulary)
        for size in config.hidden:
            layers += [nn.Linear(width, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(config.dropout)]
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, len(config.quantiles)))

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        looked_up = [table(codes[:, column]) for column, table in enumerate(self.tables)]
        out: Tensor = self.layers(torch.cat([numeric, *looked_up], dim=1))
        return out.unsqueeze(1)


def usual(samples: Samples, scaler: Scaler, group: Group) -> Callable[[int], int]:
    """An epoch of the plain program; returns the number of samples of this rank."""
    rows = Rows(samples)
    if group.world == 1:  # our trainer needs no process group then; the plain program always uses DDP
        dist.init_process_group("gloo")
    model = DistributedDataParallel(UsualMLP(scaler, rows.numeric.shape[1], CONFIG))
    # Every rank has its own shard, so the sampler only shuffles.
    sampler = DistributedSampler(rows, num_replicas=1, rank=0, shuffle=True)
    loader = DataLoader(rows, batch_size=CONFIG.batch_size, sampler=sampler, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay)
    steps = int(-group.max([-len(loader)])[0])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, CONFIG.learning_rate, total_steps=(EPOCHS + 1) * steps)
    levels = torch.tensor(CONFIG.quantiles)

    def epoch(number: int) -> int:
        sampler.set_epoch(number)
        model.train()
        total = 0.0
        for step, (numeric, codes, target, unit) in enumerate(loader):
            if step == steps:
                break
            optimizer.zero_grad()
            loss = pinball(model(numeric, codes), target, unit, levels) / len(target)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.item()
        return steps * CONFIG.batch_size

    return epoch


def ours(samples: Samples, scaler: Scaler, group: Group) -> Callable[[int], int]:
    trainer = Trainer(samples, scaler, CONFIG, EPOCHS + 1, group)

    def epoch(number: int) -> int:
        trainer.epoch(number)
        return trainer.steps * trainer.batch

    return epoch


def worker(way: str, training: Path, epochs: int, out: Path) -> None:
    """Under torchrun: load, warm up for one epoch (if there are several), measure the other epochs."""
    with connect("cpu") as group:
        start = time.perf_counter()
        shard = load_shard(training, CONFIG, calendar("US"), group.rank, group.world)
        loading = time.perf_counter() - start
        mask = window_mask(shard, None, day_number(datetime(2100, 1, 1, tzinfo=UTC).date()), CONFIG.min_history)
        scaler = fit_scaler(shard, mask, group)
        epoch = {"usual": usual, "ours": ours}[way](build_samples(shard, mask, scaler, group.device), scaler, group)
        if epochs > 1:
            epoch(0)
        group.gather(None)  # start together
        start = time.perf_counter()
        mine = sum(epoch(number) for number in range(1, epochs + 1))
        samples = group.sum([mine])[0]
        seconds = time.perf_counter() - start
        memory = [kib / 2**20 for kib in group.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)]
        if group.first:
            out.write_text(json.dumps({"rate": samples / seconds, "loading": loading, "memory": max(memory)}))


def torchrun(processes: int, *arguments: str) -> float:
    """Seconds of a torchrun, including imports."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *arguments,
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def measured(way: str, processes: int, training: Path, epochs: int = EPOCHS) -> dict[str, float]:
    out = training.parent / "measured.json"
    torchrun(processes, str(Path(__file__)), "--worker", way, str(training), str(epochs), str(out))
    return json.loads(out.read_text())  # type: ignore[no-any-return]


# --- data and fits ---


def training_set(root: Path, rows: int) -> Path:
    """Demo data of about `rows` observed rows, with features, as retrieval writes it."""
    stores = round(rows / DEPTS / WEEKS)
    dataset.generate(root / "raw", stores, DEPTS, WEEKS, 42)
    build_features(root / "raw", root, views=(schema.SALES_VIEW, schema.STORE_VIEW))
    static = pl.scan_parquet(root / f"{schema.STORE_VIEW}.parquet").unique(schema.KEYS).drop(schema.TIMESTAMP)
    sales = pl.scan_parquet(root / f"{schema.SALES_VIEW}.parquet")
    frame = sales.join(static, on=schema.KEYS, how="left", maintain_order="left")
    (root / "training").mkdir()
    write_training_set(frame.collect().to_arrow(), root / "training" / "part-00000.parquet")
    return root / "training"


def fit(training: Path, root: Path, processes: int, **settings: Any) -> tuple[float, bundle.Bundle]:
    """Seconds from torchrun to the bundle, and the bundle."""
    last = pl.scan_parquet(training / "*.parquet").filter(pl.col(schema.LABEL).is_not_null())
    cutoff = last.select(pl.col(schema.TIMESTAMP).max()).collect().item().date()
    config = TrainConfig.from_dict(CONFIG.to_dict() | settings)
    plan = Plan(training, "bench", "US", config, (Fit("final", cutoff, root / "models"),), root / "checkpoints")
    seconds = torchrun(processes, "-m", "salescast.training.main", str(plan.write(root / "plan.json")))
    return seconds, bundle.load(root / "models")


def speed_rows(training: Path) -> list[tuple[str, str]]:
    """Medians of interleaved rounds, so that other load on the machine affects all cases alike."""
    cases = [(way, n) for n in (1, 2) for way in ("usual", "ours")]
    rounds = [[measured(way, n, training)["rate"] for way, n in cases] for _ in range(ROUNDS)]
    rates = dict(zip(cases, map(statistics.median, zip(*rounds, strict=True)), strict=True))
    table = [(f"{way}, {n} process(es)", f"{rate:,.0f} samples/s") for (way, n), rate in rates.items()]
    table += [(f"ours / usual, {n} process(es)", f"{rates['ours', n] / rates['usual', n]:.1f}x") for n in (1, 2)]
    return [*table, ("ours, 2 processes / 1", f"{rates['ours', 2] / rates['ours', 1]:.2f}x")]


def fit_rows(training: Path, root: Path) -> list[tuple[str, str]]:
    table = []
    for name, settings in (("search and final", {"patience": 20}), ("final only", {"holdout_weeks": 0})):
        seconds, model = fit(training, root / name, 2, epochs=20, **settings)
        epochs = model.metadata.metrics["epochs"]
        table.append(
            (f"65,520 rows, 20 epochs, 2 processes, launch to bundle ({name})", f"{seconds:.1f} s, {epochs} kept")
        )
    upcoming = pl.read_parquet(training / "*.parquet").filter(pl.col(schema.LABEL).is_null())
    many = pl.concat([upcoming] * 16).head(10_000)
    model.predict(many.head(10))
    start = time.perf_counter()
    model.predict(many)
    table.append(("forecast of 10,000 series x 8 weeks x 9 quantiles", f"{time.perf_counter() - start:.2f} s"))
    for processes in (1, 2):
        wmapes = []
        for seed in (1, 2, 3):
            settings = {"epochs": 10, "patience": 10, "seed": seed, "batch_size": CONFIG.batch_size // processes}
            _, model = fit(training, root / f"{processes}-{seed}", processes, **settings)
            wmapes.append(100 * float(model.metadata.metrics["val_wmape"] or np.nan))
        spread = f"{statistics.mean(wmapes):.2f} % +- {statistics.stdev(wmapes):.2f} (sd of 3 seeds)"
        table.append(
            (f"held-out WMAPE, {processes} process(es), 10 epochs, {CONFIG.batch_size} samples a step", spread)
        )
    return table


def size_row(rows: int, training: Path, epochs: int) -> tuple[str, str]:
    got = measured("ours", 2, training, epochs)
    return (
        f"{rows:,} rows, 2 processes",
        f"{got['loading']:.1f} s to load, {got['rate']:,.0f} samples/s, {got['memory']:.1f} GiB peak per rank",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        way, training, epochs, out = options.worker
        worker(way, Path(training), int(epochs), Path(out))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        demo = training_set(root / "demo", 65_520)
        table = [*speed_rows(demo), *fit_rows(demo, root), size_row(65_520, demo, EPOCHS)]
        for rows, epochs in () if options.quick else ((1_000_000, 2), (10_000_000, 1)):
            table.append(size_row(rows, training_set(root / str(rows), rows), epochs))
    cpu = next(
        (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    machine = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} x {cpu}, {versions}"
    text = "\n".join(
        [
            "# Training",
            "",
            f"`make bench-training`: {machine}, load {os.getloadavg()[0]:.1f}.",
            "",
            "| what | measured |",
            "|---|---|",
        ]
        + [f"| {what} | {value} |" for what, value in table]
    )
    print(text)
    if options.write:
        (ROOT / "docs" / "bench").mkdir(parents=True, exist_ok=True)
        (ROOT / "docs" / "bench" / "training.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
