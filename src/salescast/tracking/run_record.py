"""The run record: what is needed to repeat a training run. It is `record/record.json` in its MLflow run."""

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Self

from salescast.config import settings
from salescast.errors import UserError
from salescast.model.config import TrainConfig
from salescast.runtime import code_digest
from salescast.runtime.atomic_files import replace_file
from salescast.runtime.checksums import sha256

FOLDER: Final = "record"
NAME: Final = "record.json"


@dataclass(frozen=True)
class Record:
    """The data, code, environment, settings and machine of a run. None: could not be determined.

    The seeds are `config.seed` and what the training derives from it, epoch and rank.
    """

    dataset_digest: str | None
    data_digest: str
    country: str
    cutoff: date
    config: TrainConfig
    processes: int
    git_revision: str | None
    constraints_digest: str | None
    python: str
    hardware: dict[str, str | int]
    code_digest: str | None = None  # see runtime.code_digest; None in old records

    def write(self, folder: Path) -> None:
        with replace_file(folder / NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self), default=str, indent=1))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for a record that cannot be read."""
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            cutoff, config = date.fromisoformat(values.pop("cutoff")), TrainConfig.from_dict(values.pop("config"))
            return cls(**values, cutoff=cutoff, config=config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the run's record {path.name} cannot be read ({error!r}); train again") from None

    def tags(self) -> dict[str, str]:
        """MLflow tags of all but the training settings."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("config", "hardware", "cutoff")}
        named = plain | {f"hardware_{name}": value for name, value in self.hardware.items()}
        return {name: str(value) for name, value in named.items()}


def collect(
    *, dataset_digest: str | None, data_digest: str, country: str, cutoff: date, config: TrainConfig, processes: int
) -> Record:
    """The record of a fit up to `cutoff`, trained by `processes` processes in this environment."""
    return Record(
        dataset_digest=dataset_digest,
        data_digest=data_digest,
        country=country,
        cutoff=cutoff,
        config=config,
        processes=processes,
        git_revision=git_revision(),
        constraints_digest=constraints_digest(),
        python=platform.python_version(),
        hardware=hardware(),
        code_digest=code_digest.all_stages(),
    )


def _home() -> Path:
    """The root of the program's files: the repository, or its folder in the image."""
    return settings().feature_repo.resolve().parent


def git_revision() -> str | None:
    """The commit this code is, with "+changes" if files differ from it; in an image, what it was built from."""
    git = shutil.which("git")
    if git and (_home() / ".git").exists():
        command = [git, "-C", str(_home()), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return settings().revision


def constraints_digest() -> str | None:
    """sha256 of the constraints.txt that the environment was installed with."""
    path = _home() / "constraints.txt"
    return sha256(path) if path.is_file() else None


def hardware() -> dict[str, str | int]:
    """Machine, cores, memory in GiB and GPU; results are bitwise the same on equal CPUs only."""
    import torch

    found: dict[str, str | int] = {
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})
