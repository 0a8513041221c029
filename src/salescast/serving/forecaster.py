"""The served model with its online features, and batching: keys in, forecasts out.

Requests that arrive while others are being answered are read and forecast as one batch: most of the cost is per
call, not per row, so many clients cost little more than one.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from prometheus_client import Counter, Gauge, Histogram

from salescast import schema
from salescast.config import Settings
from salescast.data.dataset import is_generated
from salescast.errors import UserError
from salescast.feature_store.databases import Key, StoreDownError, open_database, read_options
from salescast.feature_store.online import OnlineRows
from salescast.feature_store.own_ids import OwnId
from salescast.model.metadata import METADATA
from salescast.schema import MEDIAN, level_name
from salescast.serving.availability import BusyError, RateLimit, UnavailableError
from salescast.serving.protocol_v1 import Answer, Limits, Query, RequestError
from salescast.serving.served import Served, open_served
from salescast.workdir import workdir_of_repo

logger = logging.getLogger(__name__)

THREADS: Final = 2  # batches in progress at once
BATCH: Final = 1024  # most series in a batch, unless a single request has more
DAY: Final = 86_400.0  # seconds
BUCKETS: Final = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0)

READ_SECONDS = Histogram("salescast_feature_read_seconds", "Online read of one batch of requests", buckets=BUCKETS)
MODEL_SECONDS = Histogram("salescast_model_seconds", "Forecast of one batch of requests", buckets=BUCKETS)
INSTANCES = Counter("salescast_instances", "Series forecast")
FORECASTS = Counter("salescast_forecasts", "Weeks forecast, by the version of the model", ["model_version"])
FEATURE_AGE = Gauge("salescast_feature_age_days", "Age of the oldest row last used", multiprocess_mode="mostrecent")
OUTSIDE = Counter("salescast_inputs_outside_training", "Values outside the range of training, by input", ["input"])
RELOADS = Counter("salescast_bundle_reloads", "New bundles found in the model folder", ["outcome"])


class Forecaster:
    """The served model; `answer` is safe to call from one event loop, `refresh` from another thread."""

    def __init__(self, folder: Path, repo: Path, settings: Settings) -> None:
        """Raises UserError when there is no usable bundle or feature repo."""
        torch.set_num_threads(1)  # batches are small; more threads only contend
        self._folder, self._settings = folder, settings
        self.work = workdir_of_repo(repo)
        project, options = read_options(repo / settings.feature_store_yaml)
        database = open_database(options, repo, settings.online_timeout)
        self._load = partial(open_served, folder, project, database, settings)
        self._seen = self._looked = self._signature()
        # Futures carry whatever a load raises, so no exception can end the thread that watches the folder.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="bundle-load")
        self.served = self._loader.submit(self._load).result()
        self.feature_age_days: float | None = None  # of the oldest row last used
        self._waiting: list[tuple[Served, Query, asyncio.Future[Answer]]] = []
        self._series_waiting = 0
        self._rate = RateLimit(settings.max_requests_per_second)
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="forecast")
        self._wake = threading.Event()
        threading.Thread(target=self._watch, name="bundle-watch", daemon=True).start()

    # --- the bundle ---

    def refresh(self) -> None:
        """Check the model folder now instead of at the next poll."""
        self._wake.set()

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = (self._folder / METADATA).stat()
        except OSError:
            return None  # being replaced, or gone: keep the current model
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _watch(self) -> None:
        reported = ""
        while True:
            self._wake.wait(self._settings.model_poll_seconds)
            self._wake.clear()
            try:
                look = self._loader.submit(self._look)
            except RuntimeError:  # the process is ending and its executors are shut down
                return
            reported = self._report(look, reported)

    def _look(self) -> None:
        """Load and serve the bundle in the folder if it changed since the last successful load."""
        now = self._looked = self._signature()
        if now is None or now == self._seen:
            return
        served = self._load()
        self._seen = now
        if served.model.digest != self.served.model.digest:
            logger.warning("now serving %s instead of %s", served.version, self.served.version)
            self.served = served
            RELOADS.labels("loaded").inc()

    def _report(self, look: Future[None], reported: str) -> str:
        """Log and count a failed look, unless it was reported last for the same bundle; returns what to compare.

        The next look retries.
        """
        error = look.exception()
        if error is None:
            return ""
        reason = f"{self._looked} {error!r}"  # another bundle that is refused for the same reason is reported too
        if reason != reported:
            RELOADS.labels("refused").inc()
            known = isinstance(error, UserError)
            text = "new bundle refused, keeping %s: %s"
            logger.error(text, self.served.version, error, exc_info=None if known else error)
        return reason

    # --- requests ---

    async def ready(self) -> None:
        """Raises UnavailableError unless the online store answers."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.served.reader.ping)
        except StoreDownError as error:
            raise UnavailableError(f"online store: {error}") from None

    async def answer(self, parse: Callable[[Limits], Query]) -> Answer:
        """Answer the query that `parse` reads from a request. Raises RequestError, UnavailableError (BusyError)."""
        self._rate.check()
        served = self.served
        query = parse(served.limits)
        if self._waiting and self._series_waiting + len(query.series) > self._settings.max_waiting:
            raise BusyError(f"{self._series_waiting} series are waiting for forecasts already; try again in a moment")
        self._series_waiting += len(query.series)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((served, query, future))
        if len(self._tasks) < THREADS:
            task = asyncio.create_task(self._drain())
            self._tasks.add(task)  # the event loop holds only weak references to tasks
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _drain(self) -> None:
        """Answer the waiting requests in batches until none is left."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._take()
            work = loop.run_in_executor(self._threads, self._answers, batch[0][0], [query for _, query, _ in batch])
            await asyncio.wait([work])
            failure = work.exception()
            outcomes = [failure] * len(batch) if failure else work.result()
            for (_, _, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():  # cancelled: the client disconnected
                    continue
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _take(self) -> list[tuple[Served, Query, "asyncio.Future[Answer]"]]:
        """The requests that have waited longest, for one model, with at most BATCH series in total."""
        total, end = 0, 0
        for served, query, _ in self._waiting:
            total += len(query.series)
            if end and (total > BATCH or served is not self._waiting[0][0]):
                break
            end += 1
        batch, self._waiting = self._waiting[:end], self._waiting[end:]
        self._series_waiting -= sum(len(query.series) for _, query, _ in batch)
        return batch

    def _answers(self, served: Served, queries: list[Query]) -> list[Answer | RequestError | UnavailableError]:
        """One read and one forecast for all queries; a query that cannot be answered does not affect the others."""
        start = time.perf_counter()
        try:
            ids = served.reader.ids(own for query in queries for own in query.own_ids())
            keys = [_keys(query, ids) for query in queries]
            rows = served.reader.read([pair for pairs in keys if isinstance(pairs, list) for pair in pairs])
        except StoreDownError as error:
            raise UnavailableError(f"online store: {error}") from None
        read = time.perf_counter()
        READ_SECONDS.observe(read - start)
        forecast = _BatchForecast(served, rows, self._settings.max_feature_age_days, self.work.data)
        MODEL_SECONDS.observe(time.perf_counter() - read)
        self.feature_age_days = forecast.oldest_days
        answers: list[Answer | RequestError | UnavailableError] = []
        first = 0
        for query, pairs in zip(queries, keys, strict=True):
            if isinstance(pairs, RequestError):
                answers.append(pairs)
                continue
            answers.append(forecast.answer(query, pairs, first))
            first += len(pairs)
        return answers


def _keys(query: Query, ids: Mapping[OwnId, int]) -> list[Key] | RequestError:
    """The entity ids of a query, or the error of this query alone."""
    try:
        return query.keys(ids)
    except RequestError as error:
        return error


class _BatchForecast:
    """The forecast of a batch, which is split into the answers to its queries."""

    def __init__(self, served: Served, rows: OnlineRows, max_age_days: float, dataset: Path) -> None:
        self.served, self.rows, self.max_age_days = served, rows, max_age_days
        weeks = rows.columns[schema.TIMESTAMP].astype(np.int64) / 1e6
        self.oldest_days: float | None = None
        if len(weeks):
            self.forecast = served.model.predict(rows.columns)
            self.age_days = np.maximum(time.time() - weeks, 0.0) / DAY
            self.too_old = self.age_days > max_age_days
            if self.too_old.any() and is_generated(dataset):
                self.too_old[:] = False
            self.oldest_days = float(self.age_days.max())
            FEATURE_AGE.set(self.oldest_days)
            for name, count in self.forecast.outside.items():
                OUTSIDE.labels(name).inc(count)

    def answer(self, query: Query, keys: list[Key], first: int) -> Answer | RequestError | UnavailableError:
        """The answer to `query`, whose first pair is at index `first` of the batch."""
        at = self.rows.position[first : first + len(keys)]
        if (at < 0).any():
            return self._missing(query, first, int(np.argmax(at < 0)))
        age = float(self.age_days[at].max())
        if self.too_old[at].any():
            number = int(np.argmax(self.age_days[at]))
            return UnavailableError(
                f"features of instances[{number}] are {age:.1f} days old, at most {self.max_age_days:g} are allowed; "
                "import newer sales and materialize, or set SALESCAST_MAX_FEATURE_AGE_DAYS"
            )
        INSTANCES.inc(len(keys))
        FORECASTS.labels(self.served.version).inc(len(keys) * query.horizon)
        return Answer(
            query=query,
            keys=keys,
            forecast=self.forecast.at(MEDIAN)[at, : query.horizon],
            mean=self.forecast.mean[at, : query.horizon],
            bounds={level_name(level): self.forecast.at(level)[at, : query.horizon] for level in query.levels},
            weeks=self.forecast.weeks[at, : query.horizon],
            model_version=self.served.version,
            feature_age_days=round(age, 4),
        )

    def _missing(self, query: Query, first: int, number: int) -> RequestError | UnavailableError:
        """Why the pair `number` of `query` has no usable features."""
        which = f"instances[{number}] ({query.described(number)})"
        if first + number in self.rows.incomplete:
            return UnavailableError(f"features of {which}: {self.rows.incomplete[first + number]}; materialize again")
        return RequestError(f"{which} is unknown: the online store has no features of this pair")
