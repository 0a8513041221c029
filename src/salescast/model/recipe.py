"""What a model is made from: data, calendar and settings."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Self

from salescast.model.config import TrainConfig
from salescast.runtime import code_digest


@dataclass(frozen=True)
class Recipe:
    """What a model is made from, except its cutoff."""

    data_digest: str
    country: str
    config: TrainConfig

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `asdict`, also from JSON. Raises KeyError, TypeError, UserError."""
        return cls(str(values["data_digest"]), str(values["country"]), TrainConfig.from_dict(values["config"]))

    def fit_digest(self, cutoff: date) -> str:
        """Digest of a fit of this recipe up to `cutoff`, with the current code and libraries."""
        code = code_digest.digest(code_digest.TRAINING)
        content = [self.data_digest, self.country, self.config.to_dict(), str(cutoff), code]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Self) -> list[str]:
        """The properties in which two recipes differ, each as `name: own value, other value`."""
        mine, theirs = (
            {"data": recipe.data_digest[:12], "country": recipe.country} | recipe.config.to_dict()
            for recipe in (self, other)
        )
        return [f"{name}: {mine[name]}, {theirs[name]}" for name in mine if mine[name] != theirs[name]]
