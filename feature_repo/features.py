"""Feast declarations: entities, views and services, built from `salescast.schema`."""

from pathlib import Path

import polars as pl
from feast import Entity, FeatureService, FeatureView, FileSource, ValueType

from salescast import schema
from salescast.feature_store.repo import dataset_schema, feast_fields
from salescast.workdir import workdir_of_repo

OWNER = "salescast"
data = workdir_of_repo(Path(__file__).parent).data

store = Entity(name="store_id", join_keys=["store_id"], value_type=ValueType.INT32, description="Store number")
dept = Entity(name="dept_id", join_keys=["dept_id"], value_type=ValueType.INT32, description="Department number")


def view(name: str, columns: dict[str, pl.DataType], description: str) -> FeatureView:
    source = FileSource(
        name=f"{name}_source",
        path=str(data / f"{name}.parquet"),
        timestamp_field=schema.TIMESTAMP,
        description=f"Written by `salescast features`. {description}",
        owner=OWNER,
    )
    return FeatureView(
        name=name,
        entities=[store, dept],
        schema=feast_fields(columns),
        source=source,
        ttl=None,
        description=description,
        owner=OWNER,
    )


def service(name: str, features: list[FeatureView], description: str) -> FeatureService:
    return FeatureService(name=name, features=features, description=description, owner=OWNER)


sales = view(schema.SALES_VIEW, schema.SALES_FEATURES, "Lags, rolling values, calendar and conditions of each week.")
stores = view(schema.STORE_VIEW, schema.STORE_FEATURES, "Type, size and region of each store.")
seasonal = view(
    schema.SEASONAL_VIEW,
    schema.SEASONAL_FEATURES | dataset_schema(data),
    "Levels, last year, growth and plans, as known before each week.",
)

known = [name for name in schema.SALES_FEATURES if name != schema.LABEL]
training = service(schema.TRAINING_SERVICE, [sales, stores], "The 22 published features with the label.")
inference = service(schema.INFERENCE_SERVICE, [sales[known], stores], "The published features without the label.")
training_seasonal = service(
    schema.TRAINING_SERVICE_SEASONAL,
    [sales, stores, seasonal],
    "The published and the seasonal features with the label.",
)
inference_seasonal = service(
    schema.INFERENCE_SERVICE_SEASONAL, [sales[known], stores, seasonal], "The same without the label."
)
