"""Checkpoints of a fit: complete or absent, the last two kept, never those of another fit."""

import hashlib
import io
import logging
import re
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor

from salescast.model.network import Scaler
from salescast.runtime.atomic_files import replace_file

logger = logging.getLogger(__name__)

KEEP = 2
_HASH = hashlib.sha256().digest_size
_NAME = re.compile(r"checkpoint-(\d+)\.pt")
Phase = Literal["holdout", "full"]


@dataclass(frozen=True)
class TrainerState:
    """What one network's training continues from, as torch's `state_dict` methods return it."""

    network: dict[str, Any]
    average: dict[str, Any]
    average_steps: int
    optimizer: dict[str, Any]
    schedule: dict[str, Any]


@dataclass(frozen=True)
class Best:
    """The averaged weights of the best epoch; `epoch` counts from 1, `wmape` is NaN without held-out weeks."""

    epoch: int
    wmape: float
    loss: float
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Holdout:
    """The result of the holdout phase. `best` and `scaler` are None where history was too short for it."""

    epochs: int
    wmape: float
    shrinkage: float
    factors: tuple[float, float]
    best: Best | None
    scaler: Scaler | None


@dataclass(frozen=True)
class Checkpoint:
    """The state of a fit after `epoch` epochs of `phase`. `holdout`: the result of that phase, once it is over."""

    phase: Phase
    epoch: int
    best: Best
    holdout: Holdout | None
    trainer: TrainerState


CLASSES = (TrainerState, Best, Holdout, Scaler, Checkpoint)  # what a checkpoint may hold besides tensors and numbers


class Checkpoints:
    """The checkpoints in one folder, numbered upwards; `digest` names the data, settings and cutoff of the fit."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest

    def _numbers(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self.folder.glob("checkpoint-*.pt"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:05d}.pt"

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and remove all but the last two.

        When the disk cannot take it, log that and train on: only the chance to resume from here is lost.
        """
        buffer = io.BytesIO()
        torch.save({"digest": self.digest, "checkpoint": checkpoint}, buffer)
        content = buffer.getvalue()
        try:
            with replace_file(self.path(number)) as temporary:
                temporary.write_bytes(content + hashlib.sha256(content).digest())
        except OSError as error:
            logger.warning("checkpoint %s was not written: %s; training continues", self.path(number), error)
            return
        for old in [n for n in self._numbers() if n <= number][:-KEEP]:
            self.path(old).unlink()

    def latest(self) -> int | None:
        """The number of the newest usable checkpoint of this fit, or None. Logs why it skips others."""
        for number in reversed(self._numbers()):
            content = self.path(number).read_bytes()
            if hashlib.sha256(content[:-_HASH]).digest() != content[-_HASH:]:
                logger.warning("checkpoint %s is cut short or damaged; trying the one before", self.path(number))
            elif (loaded := _load(content)) is None:
                logger.warning(
                    "checkpoint %s was written by another version and is not used; trying the one before",
                    self.path(number),
                )
            elif loaded[0] != self.digest:
                logger.warning(
                    "checkpoint %s belongs to other data or settings (%.12s, this fit is %.12s) and is not used",
                    self.path(number), loaded[0], self.digest,
                )  # fmt: skip
            else:
                return number
        return None

    def load(self, number: int) -> Checkpoint:
        """Raises ValueError for a checkpoint that `latest` would skip, OSError for a missing one."""
        loaded = _load(self.path(number).read_bytes())
        if loaded is None:
            raise ValueError(f"{self.path(number)} is no checkpoint of this version")
        return loaded[1]

    def clear(self) -> None:
        """Remove every checkpoint: the fit is finished, or they are another fit's."""
        for number in self._numbers():
            self.path(number).unlink(missing_ok=True)


def _load(content: bytes) -> tuple[str, Checkpoint] | None:
    """Digest and state of a checkpoint; None for a file of any other layout. Code in the file is not run."""
    try:
        with torch.serialization.safe_globals(list(CLASSES)):
            loaded = torch.load(io.BytesIO(content[:-_HASH]), map_location="cpu", weights_only=True)
        digest, checkpoint = str(loaded["digest"]), loaded["checkpoint"]
    except (UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, EOFError):
        return None
    parts = (checkpoint, *(vars(checkpoint).values() if isinstance(checkpoint, Checkpoint) else ()))
    complete = all(vars(part).keys() >= {f.name for f in fields(part)} for part in parts if isinstance(part, CLASSES))
    return (digest, checkpoint) if isinstance(checkpoint, Checkpoint) and complete else None
