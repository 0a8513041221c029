"""The interface of the two engines: what they are given and what a retrieval job asks of them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from feast_asof.entity_frame import EntityFrame
from feast_asof.join import View
from feast_asof.pull import Columns

Finish = Callable[[pa.Table], pa.Table]  # the last step for every part of a result


@dataclass(frozen=True)
class EngineSettings:
    """What engines take from feature_store.yaml."""

    ray_address: str | None = None
    storage: Path | None = None


class Work(Protocol):
    """A join or a read that has not run yet."""

    def table(self) -> pa.Table:
        """The complete result in this process."""

    def parts(self, folder: Path, finish: Finish | None) -> list[Path]:
        """Write the result as ordered Parquet files, each passed through `finish`; `folder` appears when complete."""


class Engine(Protocol):
    """What the modules `local_engine` and `ray_engine` provide."""

    def historical_join(
        self, settings: EngineSettings, entity: EntityFrame, views: list[View], order: list[str], /
    ) -> Work:
        """A point-in-time join: the entity frame with the features `order` appended, each valid at the row's time."""

    def plain_read(
        self,
        settings: EngineSettings,
        columns: Columns,
        start: datetime | None,
        end: datetime | None,
        only_latest: bool,
        /,
    ) -> Work:
        """The rows of one source between two times: all of them, or the newest of every entity."""
