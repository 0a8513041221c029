"""One model with the reader of its online features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from salescast import schema
from salescast.config import Settings
from salescast.errors import UserError
from salescast.feature_store.databases import Database
from salescast.feature_store.online import OnlineReader
from salescast.model import bundle
from salescast.model.bundle import UNREADABLE, Bundle
from salescast.serving.protocol_v1 import Limits


def service_views(service: str, columns: Sequence[str] = ()) -> dict[str, Mapping[str, pl.DataType]]:
    """The views and columns, without the label, that a model trained on `service` reads online.

    `columns`: those of the seasonal view that differ by dataset.
    """
    views: dict[str, Mapping[str, pl.DataType]] = {
        schema.SALES_VIEW: {name: kind for name, kind in schema.SALES_FEATURES.items() if name != schema.LABEL},
        schema.STORE_VIEW: schema.STORE_FEATURES,
    }
    if service == schema.TRAINING_SERVICE_SEASONAL:
        views[schema.SEASONAL_VIEW] = schema.SEASONAL_FEATURES | schema.dataset_columns(columns)
    return views


@dataclass(frozen=True)
class Served:
    """One model with the reader of its features. A request is answered by the model that was served on its arrival."""

    model: Bundle
    reader: OnlineReader
    limits: Limits

    @property
    def version(self) -> str:
        return self.model.digest[:12]


def open_served(folder: Path, project: str, database: Database, settings: Settings) -> Served:
    """Load a bundle and try it on a row of nulls. Raises UserError for a bundle that cannot serve."""
    try:
        model = bundle.load(folder)
        views = service_views(model.metadata.config.feature_service, model.metadata.planned)
        columns = {**schema.KEY_TYPES, schema.TIMESTAMP: schema.TIMESTAMP_TYPE}
        columns |= {name: kind for columns_of_view in views.values() for name, kind in columns_of_view.items()}
        row = {name: [0] if name in schema.KEYS else [None] for name in columns} | {
            schema.TIMESTAMP: [datetime.now(UTC)]
        }
        model.predict(pl.DataFrame(row, schema=columns))
    except UNREADABLE as error:
        raise UserError(f"bundle {folder} cannot be used: {type(error).__name__}: {error}; train again") from error
    reader = OnlineReader(database, project, views)
    return Served(model, reader, Limits(model.horizon, model.levels, settings.max_instances))
