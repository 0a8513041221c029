"""Reporting to MLflow that cannot hold a training up.

The training appends events to a journal on disk; a process beside it sends them to MLflow and starts over where it
stopped when the server was away. `python -m salescast.tracking.journal JOURNAL` sends what is left.
"""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salescast.errors import UserError
from salescast.runtime.atomic_files import replace_file
from salescast.runtime.processes import Quiet, cpu_seconds, stop
from salescast.tracking.mlflow import check
from salescast.tracking.run_record import FOLDER, Record

logger = logging.getLogger(__name__)

UNSENT = 3  # exit code: trained, but MLflow did not get everything
RETRY = 2.0  # seconds between attempts to reach MLflow again
EVENTS, SENT, RUN, TARGET = "events.jsonl", "sent.json", "run.json", "target.json"
AWAY = "away"  # a file that is there while MLflow does not take what is sent


@dataclass(frozen=True)
class Tracking:
    """Which MLflow run a training reports to; `journal` keeps on disk what is to be sent."""

    uri: str
    experiment: str
    run_name: str
    journal: Path
    artifacts: str | None = None  # where a new experiment keeps artifacts; None = the server decides
    patience: float = 60.0  # seconds without progress after which sending is put off to later


def journal_folder(journals: Path, fit_digest: str) -> Path:
    """The journal of the training whose last fit has this digest; a restart continues its journal and MLflow run."""
    return journals / fit_digest[:16]


def run_id(folder: Path | None) -> str | None:
    """The MLflow run of the journal in `folder`; None if nothing was sent yet or there is no journal."""
    return _read(folder / RUN).get("run_id") if folder else None


class Journal:
    """Appends events to `folder`; each is on disk when the call returns, or when a full disk has space again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = (folder / EVENTS).open("ab", buffering=0)
        self._waiting: list[dict[str, Any]] = []

    def params(self, values: Mapping[str, Any]) -> None:
        self._append(kind="params", values={name: str(value) for name, value in values.items()})

    def metrics(self, values: dict[str, float], step: int) -> None:
        self._append(kind="metrics", values=values, step=step, time=int(time.time() * 1000))

    def artifacts(self, folder: Path, target: str) -> None:
        """The files of `folder`, as they are when they are sent, under `target`."""
        self._append(kind="artifacts", folder=str(folder.resolve()), target=target)

    def record(self, made: Record) -> None:
        """What the training that now begins is made of: a file of the run, and tags (params cannot change later)."""
        made.write(self.folder / FOLDER)
        self.artifacts(self.folder / FOLDER, FOLDER)
        self._append(kind="tags", values=made.tags())

    def end(self, status: str) -> None:
        """The last event. Raises UserError if a full disk has kept any event from the journal."""
        self._append(kind="end", status=status)
        if self._waiting:
            raise UserError(f"the journal {self.folder} could not be written; free space and start the same plan again")

    def _append(self, **event: Any) -> None:
        self._waiting.append(event)
        try:
            while self._waiting:
                # A kill or a full disk may have left half a line behind: the reader skips that, and empty lines.
                line = f"\n{json.dumps(self._waiting[0])}\n".encode()
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._waiting.pop(0)
        except OSError as error:
            logger.warning("the journal %s was not written: %s; training goes on", self.folder, error)


@contextmanager
def tracked(tracking: Tracking | None, folder: Path | None, params: Mapping[str, Any]) -> Iterator[Journal | None]:
    """The journal in `folder` while it is being sent, beginning with the run's `params`; None when tracking is off.

    Raises UserError before anything else if MLflow cannot be reached. Whether everything arrived: `finish`.
    """
    if tracking is None or folder is None:
        yield None
        return
    check(tracking.uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(folder / TARGET) as temporary:
            temporary.write_text(json.dumps(asdict(tracking), default=str))
        journal = Journal(folder)
    except OSError as error:
        raise UserError(f"cannot write the journal {folder}: {error}; free space or give another folder") from None
    journal.params(params)
    (folder / AWAY).unlink(missing_ok=True)
    sender = subprocess.Popen([sys.executable, "-m", __spec__.name, str(folder), "--follow"])
    try:
        yield journal
    except BaseException:
        journal.end("FAILED")  # the sender goes on by itself until it has sent this
        raise
    journal.end("FINISHED")
    _await(sender, folder, tracking.patience)


def _await(sender: "subprocess.Popen[bytes]", folder: Path, patience: float) -> None:
    """Wait for the sender to end; stop it when it has not got on for `patience` seconds.

    Its CPU time counts as getting on unless MLflow is away: on a busy machine, importing MLflow takes it minutes.
    """
    quiet = Quiet()
    while sender.poll() is None:
        away = (folder / AWAY).exists()
        if quiet.seconds((_position(folder), 0.0 if away else cpu_seconds(sender.pid))) > patience:
            stop(sender)
        time.sleep(0.1)


def exit_code(folder: Path | None) -> int:
    """0 without a journal or if everything was sent, else UNSENT."""
    return UNSENT if folder and _unsent(folder) else 0


def unsent_message(folder: Path | None) -> str:
    again = f"python -m {__spec__.name} {folder}"
    return f"trained, but MLflow did not get everything; when it is back: {again}"


# --- the sending process ---


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _position(folder: Path) -> int:
    return int(_read(folder / SENT).get("bytes", 0))


def _unsent(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Whole events that were not sent yet, each with the file position behind it."""
    events = []
    with (folder / EVENTS).open("rb") as file:
        file.seek(_position(folder))
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                event = json.loads(line)
            except ValueError:  # empty, or cut short by a kill
                continue
            events.append((file.tell(), event))
    return events


class Sender:
    """Sends one journal to the MLflow run that belongs to it, creating the run at the first event."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        values = _read(folder / TARGET)
        self.folder = folder
        self.target = Tracking(**values | {"journal": Path(values["journal"])})
        self.client = MlflowClient(tracking_uri=self.target.uri)
        self.run: str | None = None

    def send(self) -> bool:
        """Send what is not sent; returns whether the journal's end was among it.

        Raises MlflowException or OSError when MLflow does not take an event; those before it are done with.
        """
        run = self.run = self.run or self._run()
        ended = False
        for position, event in _unsent(self.folder):
            getattr(self, f"_{event['kind']}")(run, event)
            self._note(SENT, {"bytes": position})
            ended = event["kind"] == "end"
        return ended

    def _note(self, name: str, values: dict[str, Any]) -> None:
        with replace_file(self.folder / name) as temporary:
            temporary.write_text(json.dumps(values))

    def _run(self) -> str:
        from mlflow.exceptions import MlflowException

        known = _read(self.folder / RUN).get("run_id")
        if known:
            try:
                return str(self.client.get_run(known).info.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._note(SENT, {"bytes": 0})  # the store was emptied: everything is sent to a new run
        name, place = self.target.experiment, self.target.artifacts
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, place)
        run = str(self.client.create_run(number, run_name=self.target.run_name).info.run_id)
        self._note(RUN, {"run_id": run})
        return run

    def _params(self, run: str, event: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(name, value) for name, value in event["values"].items()])

    def _tags(self, run: str, event: dict[str, Any]) -> None:
        for name, value in event["values"].items():
            self.client.set_tag(run, name, value)

    def _metrics(self, run: str, event: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        stamp, step = event["time"], event["step"]
        self.client.log_batch(run, [Metric(name, value, stamp, step) for name, value in event["values"].items()])

    def _artifacts(self, run: str, event: dict[str, Any]) -> None:
        self.client.log_artifacts(run, event["folder"], event["target"])

    def _end(self, run: str, event: dict[str, Any]) -> None:
        self.client.set_terminated(run, event["status"])


def send(folder: Path, follow: bool = False) -> None:
    """Send what a journal holds. With `follow` go on, through outages, until its end or that of the parent process.

    Raises UserError for a folder without a journal, and without `follow` when MLflow does not take it.
    """
    if not (folder / TARGET).is_file():
        raise UserError(f"no tracking journal in {folder}")
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    parent, sender, told, uri = os.getppid(), None, False, _read(folder / TARGET)["uri"]
    while True:
        orphaned = os.getppid() != parent
        try:
            sender = sender or Sender(folder)
            ended, told = sender.send(), False
            (folder / AWAY).unlink(missing_ok=True)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = str(error).partition("\n")[0]
            if not follow or orphaned:
                raise UserError(f"MLflow at {uri} does not take the journal {folder}: {reason}") from None
            if not told:
                logger.warning("MLflow at %s is away; the journal is kept and sent later: %s", uri, reason)
                with suppress(OSError):  # on a full disk the sender is waited for as if it got on
                    (folder / AWAY).touch()
            told = True
            time.sleep(RETRY)
            continue
        if ended or orphaned or not follow:
            return
        time.sleep(0.5)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    os.nice(10)  # training comes first
    follow = "--follow" in arguments[1:]
    if follow:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the training, whose end is still to be sent
    try:
        send(Path(arguments[0]), follow=follow)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
