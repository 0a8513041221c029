"""The metadata of a bundle: how a model was made, and the checksums of its files."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Self

from salescast.errors import UserError
from salescast.model.config import TrainConfig
from salescast.model.recipe import Recipe

METADATA: Final = "model_metadata.json"
FORMAT: Final = 2
# Format 1 has other names for some metadata keys, a setting `members`, and weights with a leading dimension of 1.
RENAMED: Final = {"trust": "shrinkage", "seal": "checksum"}


@dataclass(frozen=True)
class Metadata:
    """How a model was made, and how its forecasts are calibrated.

    `factors` multiply the lower and the upper half-widths of the intervals; `shrinkage` multiplies the distance of the
    median from the anchor.
    """

    config: TrainConfig
    country: str
    cutoff: date
    data_digest: str
    fit_digest: str
    factors: tuple[float, float]
    metrics: dict[str, float | None]
    shrinkage: float = 1.0
    planned: tuple[str, ...] = ()  # features that differ by dataset: planned inputs, products

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.data_digest, self.country, self.config)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold. Raises TypeError for a metric that is not a number."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self) | {"cutoff": str(self.cutoff)}))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises KeyError, TypeError, ValueError, UserError."""
        lower, upper = values["factors"]
        return cls(
            config=TrainConfig.from_dict(values["config"]),
            country=values["country"],
            cutoff=date.fromisoformat(values["cutoff"]),
            data_digest=values["data_digest"],
            fit_digest=values["fit_digest"],
            factors=(lower, upper),
            metrics=values["metrics"],
            shrinkage=values["shrinkage"],
            planned=tuple(values["planned"]),
        )


@dataclass(frozen=True)
class SavedMetadata:
    """The metadata file of a bundle. `digest` identifies the model, `checksums` are the sha256 of the other files."""

    metadata: Metadata
    digest: str
    checksums: dict[str, str]


def checksum_of(values: dict[str, Any]) -> str:
    """sha256 of the metadata: a flipped bit in a calibration factor would change forecasts without an error."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_metadata(folder: Path) -> SavedMetadata:
    """The metadata of a bundle of this format or of format 1.

    Raises UserError when they are missing, changed, of another format, or of a model that this version cannot run.
    """
    try:
        values: dict[str, Any] = json.loads((folder / METADATA).read_text())
        checksum = values.pop("checksum", None) or values.pop("seal", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"no model bundle in {folder}: {METADATA} cannot be read ({error}); run `salescast train` first"
        ) from None
    if checksum not in (None, checksum_of(values)):
        raise UserError(f"bundle {folder} is damaged: {METADATA} was changed; copy it again or run `salescast train`")
    if values.get("format") not in (1, FORMAT):
        raise UserError(
            f"bundle {folder} has format {values.get('format')}, this version reads 1 and {FORMAT}; "
            "run `salescast train`"
        )
    try:
        current = _converted(values) if values["format"] == 1 else values
        return SavedMetadata(Metadata.from_dict(current), str(current["digest"]), dict(current["files"]))
    except UserError as error:
        raise UserError(f"bundle {folder} cannot be used: {error}; run `salescast train`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"bundle {folder} is damaged: {METADATA}: {error!r}; run `salescast train`") from None


def _converted(values: dict[str, Any]) -> dict[str, Any]:
    """Metadata of format 1 in the current format. Raises UserError for an ensemble."""
    config = dict(values["config"])
    members = config.pop("members")
    if members != 1:
        raise UserError(f"it is an ensemble of {members} networks, which this version does not run")
    return {RENAMED.get(name, name): value for name, value in values.items()} | {"config": config}
