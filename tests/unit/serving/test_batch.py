"""Offline forecasts as tables and files, and their chart."""

import re
import shutil
import zipfile
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from salescast import schema
from salescast.data import dataset, tables
from salescast.data.names import SCHEMA
from salescast.errors import UserError
from salescast.features.build import build_features
from salescast.model.config import TrainConfig
from salescast.serving import batch
from salescast.training.plan import Plan
from salescast.workdir import Workdir


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    from salescast.features.training_set import write_training_set
    from salescast.training.main import run_plan
    from salescast.training.plan import Fit

    work = Workdir(tmp_path_factory.mktemp("work"))
    dataset.generate(work.raw, 3, 4, 65, 42)
    build_features(work.raw, work.data)
    static = pl.read_parquet(work.data / "store_features.parquet").drop(schema.TIMESTAMP)
    sales = pl.read_parquet(work.data / "sales_features.parquet")
    joined = sales.join(static, on=schema.KEYS, how="left", maintain_order="left")
    (work.training / "x").mkdir(parents=True)
    write_training_set(joined.to_arrow(), work.training / "x" / "part-00000.parquet")
    config = TrainConfig(feature_service=schema.TRAINING_SERVICE, hidden=(8,), epochs=1, horizon=4, holdout_weeks=6)
    last = dataset.Dataset.read(work.raw).last_week
    assert run_plan(Plan(work.training / "x", "x", "US", config, (Fit("final", last, work.models),), work.fits)) == 0
    return work


def test_every_series_and_week_once(work: Workdir) -> None:
    frame = batch.forecast_all(work, work.models)
    assert frame.columns[:7] == ["store_id", "dept_id", "week", "horizon", "forecast", "mean", "p10"]
    assert frame.height == 3 * 4 * 4
    assert frame.select("store_id", "dept_id", "horizon").is_unique().all()
    first = dataset.Dataset.read(work.raw).last_week + timedelta(weeks=1)
    assert frame.filter(pl.col("week") != first + pl.duration(weeks=pl.col("horizon") - 1)).is_empty()
    levels = ["p10", "p20", "p30", "p40", "forecast", "p60", "p70", "p80", "p90"]
    assert np.all(np.diff(frame.select(levels).to_numpy(), axis=1) >= 0)


def test_one_series_equals_its_rows_among_all(work: Workdir) -> None:
    whole = batch.forecast_all(work, work.models).filter(pl.col("store_id") == 2, pl.col("dept_id") == 3).head(3)
    one = batch.forecast_one(work, 2, 3, 3, work.models)
    assert one.drop("forecast", "mean", "^p.*$").equals(whole.drop("forecast", "mean", "^p.*$"))
    np.testing.assert_allclose(one.select("^p.*$").to_numpy(), whole.select("^p.*$").to_numpy(), rtol=1e-6)


def test_every_file_format_holds_the_forecasts(work: Workdir, tmp_path: Path) -> None:
    forecasts = batch.forecast_all(work, work.models)
    for suffix in tables.WRITTEN:
        assert batch.write_all(work, tmp_path / "new" / f"f{suffix}", work.models) == 48
    assert pl.read_parquet(tmp_path / "new" / "f.parquet").equals(forecasts)
    assert pl.read_csv(tmp_path / "new" / "f.csv", schema=forecasts.schema).equals(forecasts)
    with zipfile.ZipFile(tmp_path / "new" / "f.xlsx") as workbook:
        rows = re.findall(r"<row .*?</row>", workbook.read("xl/worksheets/sheet1.xml").decode())
    cells = [re.findall(r"<c [^>]*?(?:/>|>(?:<v>(.*?)</v>)?</c>)", row) for row in rows[1:]]
    epoch = date(1899, 12, 30)  # day 0 of a spreadsheet
    numbers = forecasts.with_columns((pl.col("week") - pl.lit(epoch)).dt.total_days()).cast(pl.Float64)
    np.testing.assert_allclose(np.array(cells, dtype=float), numbers.to_numpy())


def test_series_and_exports_have_the_retailers_ids(work: Workdir, tmp_path: Path) -> None:
    named = Workdir(tmp_path / "named")
    shutil.copytree(work.root, named.root)
    own = [("store_id", 1, "1"), ("store_id", 2, "München Süd"), ("store_id", 3, "007")]
    own += [("dept_id", dept, str(dept) if dept > 1 else "Brot") for dept in range(1, 5)]
    pl.DataFrame(own, schema=SCHEMA, orient="row").write_parquet(named.raw / "names.parquet")
    one = batch.forecast_one(named, "München Süd", "Brot", 3, named.models)
    assert one.equals(batch.forecast_one(work, 2, 1, 3, work.models))
    assert batch.history(named, "007", 2).equals(batch.history(work, 3, 2))
    with pytest.raises(UserError, match="no store 'Munchen Sud' in the data; near or first ids: 'München Süd'"):
        batch.forecast_one(named, "Munchen Sud", "Brot", 3, named.models)
    with pytest.raises(UserError, match="department 9; its departments are Brot, 2, 3, 4"):
        batch.forecast_one(named, "007", 9, 3, named.models)
    batch.write_all(named, tmp_path / "all.csv", named.models)
    table = pl.read_csv(tmp_path / "all.csv", schema_overrides={"store": pl.String, "dept": pl.String})
    assert table.columns[:4] == ["store", "dept", "store_id", "dept_id"]
    assert set(table.select("store", "store_id").unique().rows()) == {("1", 1), ("München Süd", 2), ("007", 3)}
    assert batch.write_all(named, named.forecasts, named.models) == 48
    assert pl.read_parquet(named.forecasts).columns[:4] == table.columns[:4]
    (kept,) = named.kept_forecasts.iterdir()
    assert "store" not in pl.read_parquet(kept).columns  # `salescast monitor` compares numbers


def test_an_unknown_file_format_is_refused_before_any_work(work: Workdir, tmp_path: Path) -> None:
    for name in ("all", "all.xls", "all.json"):
        with pytest.raises(
            UserError, match=rf"{name} names no known format; end the name with .csv, .parquet or .xlsx"
        ):
            batch.write_all(Workdir(tmp_path / "empty"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_errors_name_what_cannot_be_forecast(work: Workdir, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sales of store 2, department 9; its departments are 1, 2, 3, 4"):
        batch.forecast_one(work, 2, 9, 2, work.models)
    with pytest.raises(UserError, match="no sales of store 9, department 1; stores are 1 to 3"):
        batch.forecast_one(work, 9, 1, 2, work.models)
    with pytest.raises(UserError, match="horizon must be 1 to 4 weeks for this model, got 5"):
        batch.forecast_one(work, 1, 1, 5, work.models)
    with pytest.raises(UserError, match=r"upcoming.parquet is missing; run `salescast features` first"):
        batch.upcoming(Workdir(tmp_path))
    shutil.copytree(work.data, tmp_path / "data")
    path = tmp_path / "data" / schema.UPCOMING
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"upcoming.parquet was changed or damaged; run `salescast features` again"):
        batch.upcoming(Workdir(tmp_path))
    with pytest.raises(UserError, match="no model bundle"):
        batch.forecast_all(Workdir(tmp_path), tmp_path / "models")
    with pytest.raises(UserError, match=r"has no sales-forecast@champion.*--model-dir .*/models"):
        batch.forecast_all(Workdir(tmp_path))


def test_history_ends_with_the_last_observed_week(work: Workdir) -> None:
    past = batch.history(work, 1, 1, 10)
    raw = pl.read_parquet(work.raw / "sales.parquet").filter(pl.col("store_id") == 1, pl.col("dept_id") == 1).tail(10)
    assert past["week"].to_list() == raw["week"].to_list()
    np.testing.assert_allclose(past["weekly_sales"].to_numpy(), raw["weekly_sales"].to_numpy(), rtol=1e-6)
