"""Start the forecast server as a process of its own, ask it for a few series, and compare with the offline forecast."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import polars as pl

from salescast.errors import UserError
from salescast.runtime import parquet, processes, progress
from salescast.runtime.processes import free_port
from salescast.schema import KEYS, MODEL_NAME
from salescast.tracking import champion
from salescast.workdir import Workdir

SERIES: Final = 3
TOLERANCE: Final = (
    1e-6  # relative, and absolute for a closed week's zero; the online store keeps features as the files do, in 32 bits
)


@contextmanager
def server(work: Workdir, model_dir: Path | None = None) -> Iterator[str]:
    """A ready forecast server of the workdir; yields its address, and stops it at the end.

    It serves the champion, or the bundle in `model_dir`. Waits as long as the process lives and does something, and
    shows that it waits. Raises NotReadyError with the server's last words when it does not get ready.
    """
    port, log = free_port(), work.root / "server.log"
    command = [sys.executable, "-m", "salescast.cli.app", *_serve(work, model_dir), "--port", str(port), "--grpc-port"]
    with log.open("w") as out:
        out.write("starting the forecast server\n")
        out.flush()
        environment = os.environ | {"SALESCAST_MAX_FEATURE_AGE_DAYS": "inf"}  # compare what is there, history as well
        process = subprocess.Popen([*command, str(free_port())], stdout=out, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        starting = processes.Starting("the forecast server", process, f"{url}/v2/models/{MODEL_NAME}/ready", log)
        with progress.waiting("waiting for the forecast server") as tell:
            while not starting.ready():
                tell(starting.doing)
                time.sleep(0.05)
        yield url
    finally:
        processes.stop(process)


def _serve(work: Workdir, model_dir: Path | None) -> list[str]:
    what = ["--model-dir", str(model_dir)] if model_dir else ["--model", champion.CHAMPION]
    return ["serve", "--workdir", str(work.root), *what]


def by_hand(work: Workdir, model_dir: Path | None) -> str:
    """The command that starts the same server in a terminal."""
    return shlex.join(["salescast", *_serve(work, model_dir)])


def ask(work: Workdir, model_dir: Path | None = None) -> list[dict[str, Any]]:
    """The server's answers for the largest few series, with the milliseconds that the request took.

    Raises NotReadyError when the server does not get ready or does not answer, and UserError when an answer is not
    the offline forecast of `work.forecasts`.
    """
    offline = parquet.read(work.forecasts, "run `salescast forecast --all` again")
    largest = offline.group_by(KEYS).agg(pl.col("forecast").sum()).sort("forecast", descending=True).head(SERIES)
    instances = largest.select(KEYS).to_dicts()
    with server(work, model_dir) as url, httpx.Client(base_url=url, timeout=processes.QUIET) as client:
        path = f"/v1/models/{MODEL_NAME}:predict"
        try:
            client.post(path, json={"instances": instances})  # the first request opens connections
            start = time.perf_counter()
            response = client.post(path, json={"instances": instances})
        except httpx.TransportError as error:
            log = work.root / "server.log"
            raise processes.NotReadyError(f"the forecast server did not answer: {error!r}; see {log}") from None
        milliseconds = 1000 * (time.perf_counter() - start)
    if response.status_code != httpx.codes.OK:
        raise UserError(f"the forecast server answered {response.status_code}: {response.text[:200]}")
    answers: list[dict[str, Any]] = response.json()["predictions"]
    for keys, answer in zip(instances, answers, strict=True):
        expected = offline.filter(*(pl.col(key) == value for key, value in keys.items())).sort("horizon")["forecast"]
        if not np.allclose(answer["forecast"], expected.to_numpy(), rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(f"the server's forecast of {keys} is not the offline forecast; materialize again")
    return [{**answer, "milliseconds": round(milliseconds, 1)} for answer in answers]
