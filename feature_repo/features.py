"""Feast declarations: entities, views and services, built from `salescast.schema`."""

from pathlib import Path

import polars as pl
from feast import Entity, FeatureService, FeatureView, FileSource, ValueType

from salescast import schema
from salescast.feature_store.repo import dataset_schema, feast_fields
from salescast.workdir import workdir_of_repo

data = workdir_of_repo(Path(__file__).parent).data

store = Entity(name="store_id", join_keys=["store_id"], value_type=ValueType.INT32, description="Store number")
dept = Entity(name="dept_id", join_keys=["dept_id"], value_type=ValueType.INT32, description="Department number")


def view(name: str, columns: dict[str, pl.DataType]) -> FeatureView:
    source = FileSource(name=f"{name}_source", path=str(data / f"{name}.parquet"), timestamp_field=schema.TIMESTAMP)
    return FeatureView(name=name, entities=[store, dept], schema=feast_fields(columns), source=source, ttl=None)


sales = view(schema.SALES_VIEW, schema.SALES_FEATURES)
stores = view(schema.STORE_VIEW, schema.STORE_FEATURES)
seasonal = view(schema.SEASONAL_VIEW, schema.SEASONAL_FEATURES | dataset_schema(data))

known = [name for name in schema.SALES_FEATURES if name != schema.LABEL]
training = FeatureService(name=schema.TRAINING_SERVICE, features=[sales, stores])
inference = FeatureService(name=schema.INFERENCE_SERVICE, features=[sales[known], stores])
training_seasonal = FeatureService(name=schema.TRAINING_SERVICE_SEASONAL, features=[sales, stores, seasonal])
inference_seasonal = FeatureService(name=schema.INFERENCE_SERVICE_SEASONAL, features=[sales[known], stores, seasonal])
