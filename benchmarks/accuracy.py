"""Forecast accuracy on real weekly sales, through the pipeline's own stages, compared with other methods.

    make bench-accuracy
    python benchmarks/accuracy.py --data DIR --origins 2011-12-16,2012-03-16 --horizon 13 --with lightgbm,mstl,svd

DIR holds train.csv, features.csv and stores.csv in Kaggle's columns. Every method uses the sales up to an origin
and the calendar after it. Scores cover the series observed in each of the first 104 weeks.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import polars as pl

os.environ.setdefault("MLFLOW_TRACKING_URI", "off")

from salescast import retail_calendar
from salescast.data import dataset, ingest
from salescast.evaluation import backtest, baselines, hierarchy, metrics, reference_models
from salescast.feature_store import repo, retrieval
from salescast.features import seasonal
from salescast.features.training_set import scan
from salescast.model import bundle
from salescast.model.config import TrainConfig
from salescast.pipeline import stages
from salescast.runtime.atomic_files import replace_file
from salescast.schema import KEYS, LABEL, TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL
from salescast.workdir import Workdir

ORIGINS = "2011-10-28,2012-01-27,2012-04-27,2012-07-27"
OURS, BASE = "salescast", "salescast, published features"
REQUIRED_WEEKS = 104


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/walmart"))
    parser.add_argument("--origins", default=ORIGINS, help="last observed weeks, comma-separated")
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument(
        "--with", dest="references", default="", help=f"reference models: {','.join(reference_models.PACKAGES)}"
    )
    parser.add_argument("--no-base", action="store_true", help="leave the published features out")
    parser.add_argument("--write", type=Path, help="page to write, in Markdown")
    return parser.parse_args()


def fitted(work: Workdir, config: TrainConfig, origins: list[date], name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Forecasts after the origins, and out-of-sample forecasts of the weeks held out before each (for sums)."""
    trained = stages.train_stage(work, config, origins, final=None)
    training = scan(trained.training)
    frames, errors = [], []
    for origin, folder in trained.tested.items():
        rows = backtest.base_rows(training, origin)
        model = bundle.load(folder)
        frames.append(backtest.model_frame(model.predict(rows), rows, name))
        print(
            f"{name} {origin}: factors {model.metadata.factors}, shrinkage {model.metadata.shrinkage}, "
            f"{model.metadata.metrics}"
        )
        best = bundle.load(folder, bundle.BEST)
        for back in range(1, config.holdout_weeks):
            rows = backtest.base_rows(training, origin - timedelta(weeks=back))
            held = backtest.model_frame(best.predict(rows), rows, name).filter(pl.col("week") <= origin)
            errors.append(held.with_columns(origin=pl.lit(origin)))
    return pl.concat(frames), pl.concat(errors)


def scored(forecasts: pl.DataFrame, sales: pl.DataFrame, first: date) -> pl.DataFrame:
    """The forecasts of the scored series with actual sales, holidays and scales."""
    complete = sales.filter(pl.col("week") < first + timedelta(weeks=REQUIRED_WEEKS)).group_by(KEYS).len()
    complete = complete.filter(pl.col("len") == REQUIRED_WEEKS).select(KEYS)
    actual = sales.select(*KEYS, "week", y=pl.col(LABEL))
    holiday = pl.Series(retail_calendar.is_holiday(forecasts["week"].to_numpy(), retail_calendar.calendar("US")) > 0)
    scales = metrics.seasonal_scales(sales, forecasts["cutoff"].unique().to_list())
    return (
        forecasts.with_columns(is_holiday=holiday)
        .join(complete, on=KEYS, how="semi")
        .join(actual, on=[*KEYS, "week"], how="left")
        .join(scales, on=[*KEYS, "cutoff"], how="left")
    )


def table(frame: pl.DataFrame, digits: dict[str, int]) -> str:
    rows = [
        [f"{value:.{digits[name]}f}" if name in digits else str(value) for name, value in row.items()]
        for row in frame.to_dicts()
    ]
    lines = [frame.columns, ["---"] * frame.width, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def overview(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per method: pooled metrics, WMAPE by origin and at the first and last horizon."""
    pooled = metrics.scores(frame).select(
        "model",
        wmape=pl.col("wmape") * 100,
        wmae="wmae",
        rmsse="rmsse",
        wql="wql",
        cov80="coverage",
        bias=pl.col("bias") * 100,
    )
    ends = frame.filter(pl.col("horizon").is_in([1, frame["horizon"].max()]))
    by_horizon = (
        metrics.scores(ends, ("model", "horizon"))
        .sort("horizon")
        .with_columns(("h" + pl.col("horizon").cast(pl.String)).alias("name"))
    )
    by_origin = (
        metrics.scores(frame, ("model", "cutoff"))
        .sort("cutoff")
        .with_columns(pl.col("cutoff").cast(pl.String).alias("name"))
    )
    for part in (by_origin, by_horizon):
        wide = part.with_columns(pl.col("wmape") * 100).pivot(
            "name", index="model", values="wmape", maintain_order=True
        )
        pooled = pooled.join(wide, on="model")
    return pooled.sort("wmape")


def sums(forecasts: pl.DataFrame, errors: pl.DataFrame, sales: pl.DataFrame, stores: pl.DataFrame) -> pl.DataFrame:
    """Scores of the sums by level, and by level and origin; intervals from the weeks held out before each origin."""
    actual = sales.select(*KEYS, "week", y=pl.col(LABEL))
    parts = []
    for (origin,), held in forecasts.join(actual, on=[*KEYS, "week"]).partition_by("cutoff", as_dict=True).items():
        known = errors.filter(pl.col("origin") == origin).join(actual, on=[*KEYS, "week"])
        parts.append(hierarchy.aggregate(held, known, stores))
    aggregated = pl.concat(parts)
    pooled, by_origin = (metrics.scores(aggregated, by) for by in (("level",), ("level", "cutoff")))
    both = pl.concat(
        [pooled.with_columns(cutoff=pl.lit("all")), by_origin.with_columns(pl.col("cutoff").cast(pl.String))],
        how="diagonal",
    )
    return both.sort("level", "cutoff", descending=[True, False]).select(
        "level", "rows", origin="cutoff", wmape=pl.col("wmape") * 100, bias=pl.col("bias") * 100, cov80="coverage"
    )


def feature_seconds(sales: pl.DataFrame, stores: int = 45) -> tuple[int, float]:
    """Rows, and seconds, of the seasonal features of every base week of `stores` stores, copies of those in `sales`."""
    known = sales["store_id"].unique().sort()
    copies = pl.DataFrame({"copy": range(1, stores + 1)}, schema={"copy": pl.Int32}).with_columns(
        store_id=pl.Series([known[i % len(known)] for i in range(stores)], dtype=pl.Int32)
    )
    many = sales.join(copies, on="store_id").with_columns(store_id=pl.col("copy")).select(sales.columns)
    start = time.perf_counter()
    rows = seasonal.seasonal_features(many.sort(*KEYS, "week")).height
    return rows, time.perf_counter() - start


def main() -> None:
    options = arguments()
    origins = [date.fromisoformat(origin) for origin in options.origins.split(",")]
    names = [name for name in options.references.split(",") if name]
    reference_models.check(names)
    config = TrainConfig(horizon=options.horizon, epochs=8, batch_size=1024)
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        work = Workdir(Path(folder))
        files = (options.data / f"{name}.csv" for name in ("train", "features", "stores"))
        ingest.import_sales(*files, out=work.raw)
        raw = dataset.load(work.raw)
        sales = raw.sales.collect()
        stages.features_stage(work, work.raw, options.horizon)
        repo.apply(work)
        times.took("import, features and apply")
        ours, errors = fitted(work, config, origins, OURS)
        times.took("retrieval, training and forecasts")
        training = scan(retrieval.retrieve(work, TRAINING_SERVICE_SEASONAL))
        frames = [ours, *(baselines.forecasts(training, origin, options.horizon) for origin in origins)]
        if not options.no_base:
            base = replace(config, feature_service=TRAINING_SERVICE, linear=False)
            frames.append(fitted(work, base, origins, BASE)[0])
        groups = sums(ours, errors, sales, raw.stores)
        times.took("baselines, published features and sums")
        ours_in_all = times.all
        for name in names:
            frames += [reference_models.forecasts(name, training, origin, options.horizon, "US") for origin in origins]
            times.took(name)
        forecasts = pl.concat([frame.select(frames[0].columns) for frame in frames])
        rows, seconds = feature_seconds(sales)
    result = scored(forecasts, sales, raw.meta.first_week)
    spent = ", ".join(f"{what} {value:.0f} s" for what, value in times.seconds.items())
    facts = [
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; "
        f"{options.data.name}, horizon {options.horizon}, "
        f"{result.select(KEYS).n_unique()} series. Our model including baselines: "
        f"{ours_in_all:.0f} s. Stages: {spent}.",
        f"Seasonal features of all base weeks of 45 stores (copies of these), {rows:,} rows: {seconds:.1f} s.",
    ]
    lines = report(result, groups, facts)
    print(lines)
    if options.write:
        with replace_file(options.write) as path:
            path.write_text(lines)


class Times:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def took(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now

    @property
    def all(self) -> float:
        return sum(self.seconds.values())


def crossed(ours: pl.DataFrame, metric: str) -> pl.DataFrame:
    """A metric of our forecasts by origin (rows) and horizon (columns), with the margins."""
    whole = metrics.scores(ours, ("model",)).with_columns(cutoff=pl.lit("all"), horizon=pl.lit("all"))
    parts = [whole] + [
        metrics.scores(ours.sort("horizon"), by).sort(by) for by in (("horizon",), ("cutoff",), ("cutoff", "horizon"))
    ]
    keys = [
        part.with_columns(
            pl.col(name).cast(pl.String) if name in part.columns else pl.lit("all").alias(name)
            for name in ("cutoff", "horizon")
        ).select("cutoff", "horizon", metric)
        for part in parts
    ]
    table = pl.concat(keys).sort(pl.col("horizon").cast(pl.Int32, strict=False), nulls_last=True, maintain_order=True)
    wide = table.pivot("horizon", index="cutoff", values=metric, maintain_order=True).sort("cutoff")
    return wide.rename({name: f"h{name}" for name in wide.columns if name.isdigit()} | {"cutoff": "origin"})


def report(result: pl.DataFrame, groups: pl.DataFrame, facts: list[str]) -> str:
    digits = {"wmape": 2, "wmae": 0, "rmsse": 3, "wql": 4, "cov80": 3, "bias": 2}
    digits |= {name: 2 for name in overview(result).columns if name[0] in "12h"}
    ours = result.filter(pl.col("model") == OURS)
    coverage, error = crossed(ours, "coverage"), crossed(ours, "wmape")
    error = error.with_columns(pl.exclude("origin") * 100)
    return (
        "\n\n".join(
            [
                "# Accuracy on real weekly sales",
                *facts,
                "WMAPE and bias in %, by origin and horizon WMAPE in %. `make bench-accuracy` and "
                "`make bench-accuracy-once` write the pages of this folder. The methods: "
                "`evaluation/baselines.py`, `evaluation/reference_models.py`.",
                table(overview(result), digits),
                "## Coverage of the 80 % interval by origin and horizon",
                table(coverage, dict.fromkeys(coverage.columns[1:], 3)),
                "## WMAPE by origin and horizon",
                table(error, dict.fromkeys(error.columns[1:], 2)),
                "## Sums",
                table(groups, digits),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
