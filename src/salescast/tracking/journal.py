"""A journal of what a training reports to MLflow, and the thread that uploads it.

Training adds events to a file and never waits for MLflow; a thread of the same process uploads them, with retries. The
next start of the same plan, or `python -m salescast.tracking.journal FOLDER`, uploads what is left.
"""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from salescast.errors import UserError
from salescast.runtime.atomic_files import replace_file
from salescast.tracking.mlflow import Point, check, create_run, mlflow_client, mlflow_errors
from salescast.tracking.run_record import FOLDER, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

UNSENT: Final = 3  # exit code: trained, but MLflow did not get everything
RETRY: Final = 2.0  # seconds between attempts to reach MLflow
JOURNAL, SENT = "journal.json", "sent.json"


@dataclass(frozen=True)
class Tracking:
    """Where a training reports to."""

    uri: str
    experiment: str
    run_name: str
    journal: Path  # folder of the journals
    artifacts: str | None = None  # where a new experiment keeps artifacts; None = the server decides
    patience: float = 60.0  # seconds to wait for an MLflow that is away when training has ended


@dataclass(frozen=True)
class Event:
    """One upload: parameters, tags, metrics, the files of `folder` to the run's `target`, the run's final status."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Point, ...] = ()
    folder: Path | None = None
    target: str = ""
    status: str | None = None


@dataclass(frozen=True)
class Sent:
    """The MLflow run of a journal, and how many of its events the run has."""

    run_id: str | None = None
    events: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Sent":
        path = folder / SENT
        return TypeAdapter(Sent).validate_json(path.read_bytes()) if path.is_file() else Sent()

    def write(self, folder: Path) -> None:
        with replace_file(folder / SENT) as temporary:
            temporary.write_bytes(TypeAdapter(Sent).dump_json(self))


@dataclass(frozen=True)
class Journal:
    """The events of a training, in `folder`; one that a full disk does not take is written with the next."""

    folder: Path
    tracking: Tracking
    events: list[Event]

    @classmethod
    def read(cls, folder: Path) -> "Journal":
        """Raises UserError when there is none or it cannot be read."""
        try:
            return replace(TypeAdapter(Journal).validate_json((folder / JOURNAL).read_bytes()), folder=folder)
        except (OSError, ValueError):
            raise UserError(f"no tracking journal in {folder}; give the folder that the training named") from None

    def params(self, values: Mapping[str, object]) -> None:
        self._add(Event(params={name: str(value) for name, value in values.items()}))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Values that are not finite are left out."""
        now = int(time.time() * 1000)
        points = (Point(name, value, now, step) for name, value in values.items() if math.isfinite(value))
        self._add(Event(metrics=tuple(points)))

    def artifacts(self, folder: Path, target: str) -> None:
        """Upload the files of `folder` to `target`, as they are at the time of the upload."""
        self._add(Event(folder=folder.resolve(), target=target))

    def record(self, record: Record) -> None:
        """Keep the run record as a file and as tags of the run (parameters cannot change in a later start)."""
        record.write(self.folder / FOLDER)
        self.artifacts(self.folder / FOLDER, FOLDER)
        self._add(Event(tags=record.tags()))

    def end(self, status: str) -> None:
        """Add the last event. Raises UserError when the disk cannot take the journal."""
        self.events.append(Event(status=status))
        self.write()

    def write(self) -> None:
        """Raises UserError when the disk cannot take it; the file then stays as it was."""
        try:
            with replace_file(self.folder / JOURNAL) as temporary:
                temporary.write_bytes(TypeAdapter(Journal).dump_json(self))
        except OSError as error:
            raise UserError(
                f"cannot write the journal {self.folder}: {error}; free space and start the same plan again"
            ) from error

    def _add(self, event: Event) -> None:
        self.events.append(event)
        try:
            self.write()
        except UserError as error:
            logger.warning("%s; training continues", error)


class Uploader(threading.Thread):
    """Uploads a journal while training runs. As a daemon it does not hold up the end of the process; see `finish`."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(name="mlflow-upload", daemon=True)
        self.journal = journal
        # A full disk may have kept events from the file that an earlier start has sent.
        earlier = Sent.read(journal.folder)
        self._sent = replace(earlier, events=min(earlier.events, len(journal.events)))
        self._run: str | None = None
        self._failing = False  # the last attempt failed
        self._closing = threading.Event()

    @cached_property
    def _client(self) -> "MlflowClient":
        return mlflow_client(self.journal.tracking.uri)

    def run(self) -> None:
        while True:
            closing = self._closing.is_set()
            try:
                self.upload()
                self._failing = False
                if closing:  # so the upload included the last event
                    return
                self._closing.wait(0.5)
            except UserError as error:
                if not self._failing:
                    logger.warning("%s; the journal is kept and sent later", error)
                self._failing = True
                time.sleep(RETRY)

    def finish(self, patience: float) -> None:
        """Return when everything was sent, or when MLflow has been away for `patience` seconds from now on.

        There is no limit on an upload that is merely slow.
        """
        self._closing.set()
        since = time.monotonic()
        while self.is_alive():
            self.join(0.1)
            if not self._failing:
                since = time.monotonic()
            elif time.monotonic() - since > patience:
                return

    def upload(self) -> None:
        """Upload, in order, the events that were not sent yet.

        Raises UserError when MLflow does not take one; those before it are sent. An event whose answer was lost is sent
        again, with the times of the first attempt: MLflow keeps equal values once.
        """
        with mlflow_errors(self.journal.tracking.uri):
            run = self._run = self._run or self._find_run()
            for event in self.journal.events[self._sent.events :]:
                self._send(run, event)
                self._sent = Sent(run, self._sent.events + 1)
                self._sent.write(self.journal.folder)

    def _find_run(self) -> str:
        """The run of an earlier upload; a new one if there is none, or if the store no longer has it."""
        from mlflow.exceptions import MlflowException

        if self._sent.run_id:
            try:
                return str(self._client.get_run(self._sent.run_id).info.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        target = self.journal.tracking
        self._sent = Sent(create_run(self._client, target.experiment, target.artifacts, target.run_name))
        self._sent.write(self.journal.folder)
        return str(self._sent.run_id)

    def _send(self, run: str, event: Event) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.name, point.value, point.time, point.step) for point in event.metrics]
        params = [Param(name, value) for name, value in event.params.items()]
        tags = [RunTag(name, value) for name, value in event.tags.items()]
        if metrics or params or tags:
            self._client.log_batch(run, metrics, params, tags)
        if event.folder:
            self._client.log_artifacts(run, str(event.folder), event.target)
        if event.status:
            self._client.set_terminated(run, event.status)


@contextmanager
def tracked(tracking: Tracking | None, folder: Path | None, params: Mapping[str, object]) -> Iterator[Journal | None]:
    """The journal in `folder` while it is uploaded, beginning with the run's `params`; None when tracking is off.

    Raises UserError before anything else if the folder cannot be written or, at the first start of a training, if
    MLflow cannot be reached. Whether everything was sent: `exit_code`.
    """
    if tracking is None or folder is None:
        yield None
        return
    restart = (folder / JOURNAL).is_file()
    if not restart:  # which trains on while MLflow is away
        check(tracking.uri)
    journal = Journal(folder, tracking, Journal.read(folder).events if restart else [])
    journal.write()
    uploader = Uploader(journal)
    journal.params(params)
    with _brief_requests():
        uploader.start()
        finished = False
        try:
            yield journal
            finished = True
        finally:
            if not finished:
                _end_failed(journal, uploader)
        journal.end("FINISHED")
        uploader.finish(tracking.patience)


def _end_failed(journal: Journal, uploader: Uploader) -> None:
    """Mark the run as failed and do not wait. What ended the training is the error to report, not one from here."""
    try:
        journal.end("FAILED")
    except UserError as error:
        logger.warning("%s", error)
    uploader.finish(0)


@contextmanager
def _brief_requests() -> Iterator[None]:
    """Within, MLflow gives up a request soon: the uploader retries by itself. Settings of the user stay."""
    brief = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
    added = [name for name in brief if name not in os.environ]
    os.environ.update({name: brief[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def run_id(folder: Path | None) -> str | None:
    """The MLflow run of the journal in `folder`; None without a journal, or if nothing was sent yet."""
    return Sent.read(folder).run_id if folder else None


def journal_folder(journals: Path, fit_digest: str) -> Path:
    """The journal of the training whose last fit has this digest; a restart continues its journal and MLflow run."""
    return journals / fit_digest[:16]


def exit_code(folder: Path | None) -> int:
    """0 without a journal or if everything was sent, else UNSENT."""
    return UNSENT if folder and len(Journal.read(folder).events) > Sent.read(folder).events else 0


def unsent_message(folder: Path | None) -> str:
    again = f"python -m {__spec__.name} {folder}"
    return f"trained, but MLflow did not get everything; when it is back: {again}"


def main(arguments: list[str] | None = None) -> int:
    """Upload what is left of a journal. Returns the exit code."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    try:
        with _brief_requests():
            Uploader(Journal.read(Path(folder))).upload()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
