"""The training plan: one JSON file that every process reads. Importing this module loads no framework."""

import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self

from salescast.errors import UserError
from salescast.model.config import TrainConfig
from salescast.model.recipe import Recipe
from salescast.runtime.atomic_files import replace_file
from salescast.tracking.journal import Tracking, journal_folder
from salescast.tracking.run_record import Record, collect


@dataclass(frozen=True)
class Fit:
    """One model: trained on sales up to and including `cutoff`, written to the bundle folder `out`."""

    name: str
    cutoff: date
    out: Path


@dataclass(frozen=True)
class Plan:
    """Everything a training run needs."""

    training: Path  # the retrieved training set
    data_digest: str  # what the training set was made from
    country: str
    config: TrainConfig
    fits: tuple[Fit, ...]
    checkpoints: Path
    tracking: Tracking | None = None  # None = switched off
    dataset_digest: str | None = None  # of the raw dataset that the features were made from, for the run's record

    def write(self, path: Path) -> Path:
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), default=str, indent=1))
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for a missing or incomplete plan."""
        try:
            values = json.loads(path.read_text())
            fits = [Fit(fit["name"], date.fromisoformat(fit["cutoff"]), Path(fit["out"])) for fit in values["fits"]]
            tracking = values["tracking"]
            return cls(
                training=Path(values["training"]),
                data_digest=values["data_digest"],
                country=values["country"],
                config=TrainConfig.from_dict(values["config"]),
                fits=tuple(fits),
                checkpoints=Path(values["checkpoints"]),
                tracking=tracking and Tracking(**tracking | {"journal": Path(tracking["journal"])}),
                dataset_digest=values.get("dataset_digest"),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read the training plan {path}: {error!r}; write it with Plan.write") from None

    @property
    def journal(self) -> Path | None:
        """The folder of the plan's tracking journal; None when tracking is off."""
        return journal_folder(self.tracking.journal, self.digest(self.fits[-1])) if self.tracking else None

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the plan's MLflow run."""
        return self.config.to_dict() | {"data_digest": self.data_digest, "cutoff": self.fits[-1].cutoff}

    def record(self, processes: int) -> Record:
        """The run record of the plan's last fit, trained by `processes` processes in this environment."""
        return collect(
            dataset_digest=self.dataset_digest,
            data_digest=self.data_digest,
            country=self.country,
            cutoff=self.fits[-1].cutoff,
            config=self.config,
            processes=processes,
        )

    def digest(self, fit: Fit) -> str:
        """Digest of everything that the result of `fit` depends on."""
        return Recipe(self.data_digest, self.country, self.config).fit_digest(fit.cutoff)
