"""What a work folder holds for the report: the input of every other module of this package."""

from dataclasses import dataclass, field
from datetime import date
from typing import TypedDict

import polars as pl

from salescast.data.dataset import Raw
from salescast.data.names import SCHEMA, Names


class RunRecord(TypedDict, total=False):
    """The part of run.json that the report shows. A stage run on its own leaves no run.json."""

    model: str
    version: int | None
    champion: bool
    reason: str
    seconds: dict[str, float]
    digest: str
    machine: str
    created: str


@dataclass(frozen=True)
class Results:
    """Tables of a work folder. None and an empty `run` stand for what has not been made yet."""

    raw: Raw
    forecasts: pl.DataFrame | None
    backtest: pl.DataFrame | None
    importance: pl.DataFrame | None
    rejected: pl.DataFrame | None
    run: RunRecord
    names: Names = field(default_factory=lambda: Names(pl.DataFrame(schema=SCHEMA)))  # own ids of stores, departments

    def shown(self, entity: str) -> dict[int, str]:
        """What the page calls the ids of an entity that have another name than their number: own id and label."""
        others, labels = self.names.others(entity), self.raw.attributes.values(entity, "label")
        return others | {id_: f"{others.get(id_, id_)} {label}" for id_, label in labels.items()}

    @property
    def categories(self) -> dict[int, str]:
        """Categories by department."""
        return self.raw.attributes.values("dept_id", "category")

    @property
    def ahead(self) -> list[date]:
        """The forecast weeks."""
        return [] if self.forecasts is None else self.forecasts["week"].unique().sort().to_list()

    @property
    def tested(self) -> pl.DataFrame | None:
        """The backtest's rows with observed sales; None if there are none."""
        observed = None if self.backtest is None else self.backtest.filter(pl.col("y").is_not_null())
        return None if observed is None or observed.is_empty() else observed

    @property
    def model(self) -> str:
        """Name of the product's own model in the backtest."""
        return str(self.run.get("model") or ("" if self.tested is None else self.tested["model"][0]))

    @property
    def own(self) -> pl.DataFrame | None:
        """The rows of `tested` of the product's own model."""
        return None if self.tested is None else self.tested.filter(pl.col("model") == self.model)
