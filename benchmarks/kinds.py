"""Kinds of series that must come out right: small files of sales with the 8 weeks that followed."""

import tempfile
from pathlib import Path
from typing import Final

import polars as pl

from salescast.data import dataset, ingest
from salescast.evaluation import backtest
from salescast.feature_store import repo
from salescast.features.training_set import scan
from salescast.model import bundle
from salescast.model.config import TrainConfig
from salescast.pipeline import stages
from salescast.schema import KEYS
from salescast.workdir import Workdir

# Case -> planned columns, column of opening days.
OPTIONS: Final[dict[str, tuple[tuple[str, ...], str | None]]] = {
    "R7-promo-open": (("promo",), "open"),
}


def scored(case: Path, config: TrainConfig) -> pl.DataFrame:
    """Scores of the forecasts of a case by kind of series: WMAPE, coverage of the 80 % range, bias of the
    medians and of the sum of means, in %.

    `below` counts ranges that begin below 0 though nothing was ever returned.
    """
    planned, open_days = OPTIONS.get(case.name, ((), None))
    with tempfile.TemporaryDirectory() as folder:
        work = Workdir(Path(folder))
        ingest.import_sales(case / "sales.csv", None, None, work.raw, planned=planned, open_days=open_days)
        sales = dataset.load(work.raw).sales.collect()
        last = sales["week"].max()
        stages.features_stage(work, work.raw, config.horizon)
        repo.apply(work)
        trained = stages.train_stage(work, config, [], final=last)
        rows = backtest.base_rows(scan(trained.training), last)
        forecasts = backtest.model_frame(bundle.load(work.models).predict(rows), rows, "salescast")
    truth = pl.read_parquet(case / "truth.parquet").select(
        pl.col("Store").cast(pl.Int32).alias("store_id"),
        pl.col("Dept").cast(pl.Int32).alias("dept_id"),
        pl.col("Date").cast(pl.Date).alias("week"),
        pl.col("y").cast(pl.Float64),
        pl.col("kind") if "kind" in pl.read_parquet_schema(case / "truth.parquet") else pl.lit("all").alias("kind"),
    )
    known = truth.join(forecasts.drop("y", strict=False), on=[*KEYS, "week"], how="left")
    lowest = sales.group_by(KEYS).agg(least=pl.col("weekly_sales").min())
    return (
        known.join(lowest, on=KEYS, how="left")
        .group_by("kind")
        .agg(
            series=pl.struct(KEYS).n_unique(),
            wmape=100 * (pl.col("y") - pl.col("yhat")).abs().sum() / pl.col("y").abs().sum(),
            cov80=pl.col("y").is_between("p10", "p90").mean(),
            bias=100 * (pl.col("yhat").sum() / pl.col("y").sum() - 1),
            total=100 * (pl.col("mean").sum() / pl.col("y").sum() - 1),
            below=((pl.col("p10") < 0) & (pl.col("least") >= 0)).sum(),
            missing=pl.col("yhat").is_null().sum(),
        )
        .sort("kind")
        .select(pl.lit(case.name).alias("case"), pl.all())
    )
