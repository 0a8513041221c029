"""Start the forecast server, request a few series, and compare its answers with the offline forecast."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import polars as pl

from salescast.data.names import Names
from salescast.errors import UserError
from salescast.runtime import extras, parquet, processes
from salescast.runtime.processes import Service, free_port
from salescast.schema import KEYS, MODEL_NAME
from salescast.serving.client import OWN
from salescast.tracking import champion
from salescast.workdir import Workdir

SERIES: Final = 3
TOLERANCE: Final = 1e-6  # relative, and absolute for a closed week's zero; both stores keep features in 32 bits


@contextmanager
def server(work: Workdir, model_dir: Path | None = None) -> Iterator[str]:
    """A ready forecast server of the workdir, with the champion or the bundle in `model_dir`; yields its address.

    Raises NotReadyError with the last line of its log when it does not become ready, MissingExtraError without KServe.
    """
    extras.require(extras.SERVE)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = (sys.executable, "-m", "salescast.cli.app", *_serve(work, model_dir))
    service = Service(
        name="the forecast server",
        command=(*serve, "--port", str(port), "--grpc-port", str(free_port())),
        ready=f"{url}/v2/models/{MODEL_NAME}/ready",
        log=work.root / "server.log",
        environment={"SALESCAST_MAX_FEATURE_AGE_DAYS": "inf"},  # compare whatever weeks the data has
    )
    with processes.running([service]) as servers:
        processes.wait_until_ready("waiting for the forecast server", servers)
        yield url


def _serve(work: Workdir, model_dir: Path | None) -> tuple[str, ...]:
    model = ("--model-dir", str(model_dir)) if model_dir else ("--model", champion.CHAMPION)
    return ("serve", "--workdir", str(work.root), *model)


def by_hand(work: Workdir, model_dir: Path | None) -> str:
    """The command that starts the same server in a terminal."""
    return shlex.join(["salescast", *_serve(work, model_dir)])


def ask(work: Workdir, model_dir: Path | None = None) -> list[dict[str, Any]]:
    """The server's answers for the few largest series, with the retailer's ids and the milliseconds of the request.

    Raises NotReadyError when the server does not become ready or does not answer, and UserError when an answer differs
    from the offline forecast in `work.forecasts`.
    """
    offline = parquet.read(work.forecasts, "run `salescast forecast --all` again")
    largest = offline.group_by(KEYS).agg(pl.col("forecast").sum()).sort("forecast", descending=True).head(SERIES)
    keys, names = largest.select(KEYS).to_dicts(), Names.read(work.raw)
    instances = [{own: str(names.name_of(key, pair[key])) for key, own in zip(KEYS, OWN, strict=True)} for pair in keys]
    with server(work, model_dir) as url, httpx.Client(base_url=url, timeout=processes.QUIET, trust_env=False) as client:
        path = f"/v1/models/{MODEL_NAME}:predict"
        try:
            client.post(path, json={"instances": instances})  # the first request opens connections
            start = time.perf_counter()
            response = client.post(path, json={"instances": instances})
        except httpx.TransportError as error:
            log = work.root / "server.log"
            raise processes.NotReadyError(f"the forecast server did not answer: {error!r}; see {log}") from None
        milliseconds = 1000 * (time.perf_counter() - start)
    if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        raise processes.NotReadyError(f"the forecast server answered {response.status_code}: {response.text[:200]}")
    if response.status_code != httpx.codes.OK:
        raise UserError(f"the forecast server answered {response.status_code}: {response.text[:200]}")
    answers: list[dict[str, Any]] = response.json()["predictions"]
    for instance, pair, answer in zip(instances, keys, answers, strict=True):
        expected = offline.filter(*(pl.col(key) == value for key, value in pair.items())).sort("horizon")["forecast"]
        if not np.allclose(answer["forecast"], expected.to_numpy(), rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(f"the server's forecast of {instance} is not the offline forecast; materialize again")
    return [{**answer, "milliseconds": round(milliseconds, 1)} for answer in answers]
