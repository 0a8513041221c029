"""The training plan: one JSON file that every process reads. Importing this module loads no framework."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Self

from salescast import codedigest
from salescast.config import TrainConfig
from salescast.errors import UserError
from salescast.files import replace_file


@dataclass(frozen=True)
class Fit:
    """One model: trained on sales up to and including `cutoff`, written to the bundle folder `out`."""

    name: str
    cutoff: date
    out: Path


@dataclass(frozen=True)
class Tracking:
    """Which MLflow run the training reports to; `journal` keeps on disk what is to be sent."""

    uri: str
    experiment: str
    run_name: str
    journal: Path
    artifacts: str | None = None  # where a new experiment keeps artifacts; None = the server decides
    patience: float = 60.0  # seconds without progress after which sending is put off to later


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

    def digest(self, fit: Fit) -> str:
        """Names what the result of `fit` depends on: data, calendar, settings, cutoff, code and libraries."""
        code = codedigest.digest(codedigest.TRAINING)
        content = [self.data_digest, self.country, self.config.to_dict(), str(fit.cutoff), code]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
