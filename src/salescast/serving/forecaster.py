"""Ids in, forecasts out: the model that is served, its online features, and requests answered together.

Requests that wait while others are being answered are read and forecast in one go, so that many clients cost
little more than one: the price of a request is mostly that of calling, not of the rows.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch
from kserve.errors import ServerNotReady
from prometheus_client import Counter, Gauge, Histogram

from salescast import schema
from salescast.config import Settings
from salescast.data.dataset import is_generated
from salescast.errors import UserError
from salescast.feature_store.databases import Database, StoreDownError, open_database, read_options
from salescast.feature_store.online import OnlineReader, OnlineRows
from salescast.model import bundle
from salescast.model.bundle import UNREADABLE, Bundle
from salescast.schema import MEDIAN, level_name
from salescast.serving.protocol_v1 import Answer, Limits, Query, RequestError
from salescast.workdir import workdir_of_repo

logger = logging.getLogger(__name__)

THREADS: Final = 2  # batches under way at once
BATCH: Final = 1024  # series read together, unless one request has more
DAY: Final = 86_400.0  # seconds
BUCKETS: Final = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0)

READ_SECONDS = Histogram("salescast_feature_read_seconds", "Online read of one batch of requests", buckets=BUCKETS)
MODEL_SECONDS = Histogram("salescast_model_seconds", "Forecast of one batch of requests", buckets=BUCKETS)
INSTANCES = Counter("salescast_instances", "Series forecast")
FORECASTS = Counter("salescast_forecasts", "Weeks forecast, by the version of the model", ["model_version"])
FEATURE_AGE = Gauge("salescast_feature_age_days", "Age of the oldest row last used", multiprocess_mode="mostrecent")
OUTSIDE = Counter("salescast_inputs_outside_training", "Values unlike any in training, by input", ["input"])
RELOADS = Counter("salescast_bundle_reloads", "New bundles found in the model folder", ["outcome"])


class UnavailableError(ServerNotReady):  # type: ignore[misc]  # KServe is untyped
    """Nobody's fault but the server's, now: 503, UNAVAILABLE. The message says what is down."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = self.error_msg = reason


class BusyError(UnavailableError):
    """More work than the server takes on: 429, UNAVAILABLE; the client may try again in a moment."""


class Rate:
    """At most `per_second` requests, a second's worth of them at once (a token bucket); None = any number."""

    def __init__(self, per_second: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self._clock = per_second, clock
        self._tokens, self._since = per_second or 0.0, clock()

    def check(self) -> None:
        """Count a request. Raises BusyError."""
        if self.per_second is None:
            return
        now = self._clock()
        self._tokens = min(max(self.per_second, 1.0), self._tokens + (now - self._since) * self.per_second)
        self._since = now
        if self._tokens < 1:
            raise BusyError(f"more than {self.per_second:g} requests a second; try again in a moment")
        self._tokens -= 1


def service_views(service: str, planned: Sequence[str] = ()) -> dict[str, Mapping[str, pl.DataType]]:
    """The views and columns that a model trained on `service` reads online: all but the label."""
    views: dict[str, Mapping[str, pl.DataType]] = {
        schema.SALES_VIEW: {name: kind for name, kind in schema.SALES_FEATURES.items() if name != schema.LABEL},
        schema.STORE_VIEW: schema.STORE_FEATURES,
    }
    if service == schema.TRAINING_SERVICE_SEASONAL:
        views[schema.SEASONAL_VIEW] = schema.SEASONAL_FEATURES | schema.planned_columns(planned)
    return views


@dataclass(frozen=True)
class Served:
    """One model with the reader of its features; requests keep the one they came in with."""

    model: Bundle
    reader: OnlineReader
    limits: Limits

    @property
    def version(self) -> str:
        return self.model.digest[:12]


def open_served(folder: Path, project: str, database: Database, settings: Settings) -> Served:
    """Load a bundle and try it on a row without any known feature. Raises UserError for a bundle that cannot serve."""
    try:
        model = bundle.load(folder)
        views = service_views(model.metadata.config.feature_service, model.metadata.planned)
        columns = {**schema.KEY_TYPES, schema.TIMESTAMP: schema.TIMESTAMP_TYPE}
        columns |= {name: kind for columns_of_view in views.values() for name, kind in columns_of_view.items()}
        row = {name: [0] if name in schema.KEYS else [None] for name in columns} | {
            schema.TIMESTAMP: [datetime.now(UTC)]
        }
        model.predict(pl.DataFrame(row, schema=columns))
    except UNREADABLE as error:
        raise UserError(f"bundle {folder} cannot be used: {type(error).__name__}: {error}; train again") from error
    reader = OnlineReader(database, project, views)
    return Served(model, reader, Limits(model.horizon, model.levels, settings.max_instances))


class Forecaster:
    """The served model; `answer` is safe to call from one event loop, `refresh` from another thread."""

    def __init__(self, folder: Path, repo: Path, settings: Settings) -> None:
        """Raises UserError when there is no usable bundle or feature repo."""
        torch.set_num_threads(1)  # small batches; more threads only get in each other's way
        self._folder, self._settings = folder, settings
        self._dataset = workdir_of_repo(repo).data
        project, options = read_options(repo / settings.feature_store_yaml)
        database = open_database(options, repo, settings.online_timeout)
        self._load = partial(open_served, folder, project, database, settings)
        self._seen = self._signature()
        # Its futures hold whatever a load raises, so that no exception can end the thread that watches the folder.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="bundle-load")
        self.served = self._loader.submit(self._load).result()
        self._waiting: list[tuple[Served, Query, asyncio.Future[Answer]]] = []
        self._series_waiting = 0
        self._rate = Rate(settings.max_requests_per_second)
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="forecast")
        self._wake = threading.Event()
        threading.Thread(target=self._watch, name="bundle-watch", daemon=True).start()

    # --- the bundle ---

    def refresh(self) -> None:
        """Look at the model folder now rather than at the next poll."""
        self._wake.set()

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = (self._folder / bundle.METADATA).stat()
        except OSError:
            return None  # being replaced, or gone: the model in memory goes on
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _watch(self) -> None:
        told = ""
        while True:
            self._wake.wait(self._settings.model_poll_seconds)
            self._wake.clear()
            try:
                look = self._loader.submit(self._look)
            except RuntimeError:  # the process is ending: its executors take nothing more
                return
            told = self._told(look, told)

    def _look(self) -> None:
        """Serve the bundle in the folder if it is another one; what is loaded is not loaded again."""
        now = self._signature()
        if now is None or now == self._seen:
            return
        served = self._load()
        self._seen = now
        if served.model.digest != self.served.model.digest:
            logger.warning("now serving %s instead of %s", served.version, self.served.version)
            self.served = served
            RELOADS.labels("loaded").inc()

    def _told(self, look: Future[None], told: str) -> str:
        """Log and count why a look failed, once for as long as the reason stays; returns the reason.

        The next look tries again.
        """
        error = look.exception()
        if error is None:
            return ""
        reason = repr(error)
        if reason != told:
            RELOADS.labels("refused").inc()
            known = isinstance(error, UserError)
            text = "the new bundle is refused, %s goes on serving: %s"
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
        """Forecast what `parse` reads from a request. Raises RequestError, UnavailableError (BusyError)."""
        self._rate.check()
        served = self.served
        query = parse(served.limits)
        if self._waiting and self._series_waiting + len(query.pairs) > self._settings.max_waiting:
            raise BusyError(f"{self._series_waiting} series wait for their forecasts already; try again in a moment")
        self._series_waiting += len(query.pairs)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((served, query, future))
        if len(self._tasks) < THREADS:
            task = asyncio.create_task(self._drain())
            self._tasks.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _drain(self) -> None:
        """Answer what waits, in batches, until nothing does."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._take()
            work = loop.run_in_executor(self._threads, self._answers, batch[0][0], [query for _, query, _ in batch])
            await asyncio.wait([work])
            failure = work.exception()
            outcomes = [failure] * len(batch) if failure else work.result()
            for (_, _, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():  # the client hung up
                    continue
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _take(self) -> list[tuple[Served, Query, "asyncio.Future[Answer]"]]:
        """The longest-waiting requests for one model, up to BATCH series together."""
        total, end = 0, 0
        for served, query, _ in self._waiting:
            total += len(query.pairs)
            if end and (total > BATCH or served is not self._waiting[0][0]):
                break
            end += 1
        batch, self._waiting = self._waiting[:end], self._waiting[end:]
        self._series_waiting -= sum(len(query.pairs) for _, query, _ in batch)
        return batch

    def _answers(self, served: Served, queries: list[Query]) -> list[Answer | RequestError | UnavailableError]:
        """One read and one forecast for all queries; a query that cannot be answered does not spoil the others'."""
        pairs = [pair for query in queries for pair in query.pairs]
        start = time.perf_counter()
        try:
            rows = served.reader.read(pairs)
        except StoreDownError as error:
            raise UnavailableError(f"online store: {error}") from None
        read = time.perf_counter()
        READ_SECONDS.observe(read - start)
        outcomes = _Cut(served, rows, self._settings.max_feature_age_days, self._dataset)
        MODEL_SECONDS.observe(time.perf_counter() - read)
        answers: list[Answer | RequestError | UnavailableError] = []
        first = 0
        for query in queries:
            answers.append(outcomes.part(query, first))
            first += len(query.pairs)
        return answers


class _Cut:
    """The forecast of a whole batch, from which each query gets its part."""

    def __init__(self, served: Served, rows: OnlineRows, max_age_days: float, dataset: Path) -> None:
        self.served, self.rows, self.max_age_days = served, rows, max_age_days
        weeks = rows.columns[schema.TIMESTAMP].astype(np.int64) / 1e6
        if len(weeks):
            self.forecast = served.model.predict(rows.columns)
            self.age_days = np.maximum(time.time() - weeks, 0.0) / DAY
            self.too_old = self.age_days > max_age_days
            if self.too_old.any() and is_generated(dataset):
                self.too_old[:] = False
            FEATURE_AGE.set(self.age_days.max())
            for name, count in self.forecast.outside.items():
                OUTSIDE.labels(name).inc(count)

    def part(self, query: Query, first: int) -> Answer | RequestError | UnavailableError:
        """The answer to `query`, whose pairs begin at `first`."""
        at = self.rows.position[first : first + len(query.pairs)]
        if (at < 0).any():
            return self._refusal(query, first, int(np.argmax(at < 0)))
        age = float(self.age_days[at].max())
        if self.too_old[at].any():
            number = int(np.argmax(self.age_days[at]))
            return UnavailableError(
                f"features of instances[{number}] are {age:.1f} days old, allowed are {self.max_age_days:g}; "
                "import newer sales and materialize, or set SALESCAST_MAX_FEATURE_AGE_DAYS"
            )
        INSTANCES.inc(len(query.pairs))
        FORECASTS.labels(self.served.version).inc(len(query.pairs) * query.horizon)
        return Answer(
            query=query,
            forecast=self.forecast.at(MEDIAN)[at, : query.horizon],
            bounds={level_name(level): self.forecast.at(level)[at, : query.horizon] for level in query.levels},
            weeks=self.forecast.weeks[at, : query.horizon],
            model_version=self.served.version,
            feature_age_days=round(age, 4),
        )

    def _refusal(self, query: Query, first: int, number: int) -> RequestError | UnavailableError:
        store, dept = query.pairs[number]
        which = f"instances[{number}] (store_id {store}, dept_id {dept})"
        if first + number in self.rows.incomplete:
            return UnavailableError(f"features of {which}: {self.rows.incomplete[first + number]}; materialize again")
        return RequestError(f"{which} is unknown: the online store has no features of this pair")
