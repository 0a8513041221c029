"""Checkpoints of a fit: whole or not there, the last two kept, never another fit's."""

import hashlib
import io
import logging
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from salescast.runtime.atomic_files import replace_file

logger = logging.getLogger(__name__)

KEEP = 2
_HASH = hashlib.sha256().digest_size
_NAME = re.compile(r"checkpoint-(\d+)\.pt")


class Checkpoints:
    """The checkpoints in one folder, numbered upwards; `digest` names the data, settings and cutoff of the fit."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest

    def _numbers(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("checkpoint-*.pt"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:05d}.pt"

    def save(self, number: int, state: dict[str, Any]) -> None:
        """Write a checkpoint and remove all but the last two.

        A disk that cannot take it costs the chance to resume from here, not the training: it is logged and passed over.
        """
        buffer = io.BytesIO()
        torch.save({"digest": self.digest, **state}, buffer)
        content = buffer.getvalue()
        try:
            with replace_file(self.path(number)) as temporary:
                temporary.write_bytes(content + hashlib.sha256(content).digest())
        except OSError as error:
            logger.warning("checkpoint %s was not written: %s; training goes on", self.path(number), error)
            return
        for old in [n for n in self._numbers() if n <= number][:-KEEP]:
            self.path(old).unlink()

    def latest(self) -> int | None:
        """The number of the newest whole checkpoint of this fit, or None. Why others are passed over is logged."""
        for number in reversed(self._numbers()):
            content = self.path(number).read_bytes()
            if hashlib.sha256(content[:-_HASH]).digest() != content[-_HASH:]:
                logger.warning("checkpoint %s is cut short or damaged; trying the one before", self.path(number))
            elif (digest := _digest(content)) is None:
                logger.warning("checkpoint %s is something else; trying the one before", self.path(number))
            elif digest != self.digest:
                logger.warning(
                    "checkpoint %s belongs to other data or settings (%.12s, this fit is %.12s) and is not used",
                    self.path(number), digest, self.digest,
                )  # fmt: skip
            else:
                return number
        return None

    def load(self, number: int) -> dict[str, Any]:
        return _load(self.path(number).read_bytes())

    def clear(self) -> None:
        """Remove every checkpoint: the fit is finished, or they are another fit's."""
        for number in self._numbers():
            self.path(number).unlink(missing_ok=True)


def _digest(content: bytes) -> str | None:
    """What the checkpoint says it belongs to; None where it is none (code in it is not run)."""
    try:
        return str(_load(content)["digest"])
    except (UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, EOFError):
        return None


def _load(content: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(content[:-_HASH]), map_location="cpu", weights_only=True)
    return state
