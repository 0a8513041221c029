"""Forecast accuracy on real weekly sales, through the product's own stages, beside other methods.

    make bench-accuracy
    python benchmarks/accuracy.py --data DIR --origins 2011-12-16,2012-03-16 --horizon 39 --with lightgbm,mstl,svd

DIR holds train.csv, features.csv and stores.csv in Kaggle's columns. Every method sees the sales up to an origin, the
calendar after it, and nothing else. Scored are the series observed in every one of the first 104 weeks.
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

from methods import OTHERS

from salescast import baselines, bundle, data, evaluate, hierarchy, ingest, pipeline, retrieval, weeks
from salescast.config import TrainConfig, Workdir
from salescast.dataset import scan
from salescast.files import replace_file
from salescast.schema import KEYS, LABEL, TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL

ORIGINS = "2011-10-28,2012-01-27,2012-04-27,2012-07-27"
OURS, BASE = "salescast", "salescast, published features"
REQUIRED_WEEKS = 104


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/walmart"))
    parser.add_argument("--origins", default=ORIGINS, help="last weeks seen, with commas between")
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=TrainConfig().members)
    parser.add_argument("--with", dest="others", default="", help=f"other methods: {','.join(OTHERS)}")
    parser.add_argument("--no-base", action="store_true", help="leave the published features out")
    parser.add_argument("--write", action="store_true", help="write docs/bench/accuracy.md")
    return parser.parse_args()


def fitted(work: Workdir, config: TrainConfig, origins: list[date], name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Forecasts after the origins, and out-of-sample ones of the weeks held out before each (for sums)."""
    trained = pipeline.train_stage(work, config, origins, final=None)
    training = scan(trained.training)
    frames, errors = [], []
    for origin, folder in trained.tested.items():
        rows = evaluate.base_rows(training, origin)
        model = bundle.load(folder)
        frames.append(evaluate.frame_of(model.predict(rows), rows, name))
        print(
            f"{name} {origin}: factors {model.metadata.factors}, trust {model.metadata.trust}, {model.metadata.metrics}"
        )
        tried = bundle.load(folder, bundle.BEST)
        for back in range(1, config.holdout_weeks):
            rows = evaluate.base_rows(training, origin - timedelta(weeks=back))
            held = evaluate.frame_of(tried.predict(rows), rows, name).filter(pl.col("week") <= origin)
            errors.append(held.with_columns(origin=pl.lit(origin)))
    return pl.concat(frames), pl.concat(errors)


def scored(forecasts: pl.DataFrame, sales: pl.DataFrame, first: date) -> pl.DataFrame:
    """With actuals and what the metrics need, of the series that are scored."""
    whole = sales.filter(pl.col("week") < first + timedelta(weeks=REQUIRED_WEEKS)).group_by(KEYS).len()
    whole = whole.filter(pl.col("len") == REQUIRED_WEEKS).select(KEYS)
    actual = sales.select(*KEYS, "week", y=pl.col(LABEL))
    holiday = pl.Series(weeks.is_holiday(forecasts["week"].to_numpy(), weeks.calendar("US")) > 0)
    scales = evaluate.seasonal_scales(sales, forecasts["cutoff"].unique().to_list())
    return (
        forecasts.with_columns(is_holiday=holiday)
        .join(whole, on=KEYS, how="semi")
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
    """One row a method: pooled metrics, WMAPE by origin and at the ends of the horizon."""
    pooled = evaluate.scores(frame).select(
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
        evaluate.scores(ends, ("model", "horizon"))
        .sort("horizon")
        .with_columns(("h" + pl.col("horizon").cast(pl.String)).alias("name"))
    )
    by_origin = (
        evaluate.scores(frame, ("model", "cutoff"))
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
    """WMAPE and coverage of stores and the total."""
    actual = sales.select(*KEYS, "week", y=pl.col(LABEL))
    parts = []
    for (origin,), held in forecasts.join(actual, on=[*KEYS, "week"]).partition_by("cutoff", as_dict=True).items():
        known = errors.filter(pl.col("origin") == origin).join(actual, on=[*KEYS, "week"])
        parts.append(hierarchy.aggregate(held, known, stores))
    found = pl.concat(parts).rename({"level": "model"})
    return evaluate.scores(found).select("model", wmape=pl.col("wmape") * 100, cov80="coverage", rows="rows")


def main() -> None:
    options = arguments()
    origins = [date.fromisoformat(origin) for origin in options.origins.split(",")]
    config = TrainConfig(horizon=options.horizon, members=options.seeds, epochs=8, batch_size=1024)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Workdir(Path(folder))
        files = (options.data / f"{name}.csv" for name in ("train", "features", "stores"))
        ingest.import_sales(*files, out=work.raw)
        raw = data.load(work.raw)
        sales = raw.sales.collect()
        pipeline.features_stage(work, work.raw, options.horizon)
        retrieval.apply(work)
        prepared = time.perf_counter() - start
        ours, errors = fitted(work, config, origins, OURS)
        trained = time.perf_counter() - start - prepared
        frames = [ours.drop("model").with_columns(model=pl.lit(OURS))]
        training = scan(retrieval.retrieve(work, TRAINING_SERVICE_SEASONAL))
        frames += [baselines.forecasts(training, origin, options.horizon) for origin in origins]
        for name in filter(None, options.others.split(",")):
            frames += [OTHERS[name](training, origin, options.horizon) for origin in origins]
        if not options.no_base:
            base = replace(config, feature_service=TRAINING_SERVICE, linear=False)
            frames.append(fitted(work, base, origins, BASE)[0])
        whole = pl.concat(
            [frame.select(frames[0].columns).with_columns(pl.col("horizon").cast(pl.Int32)) for frame in frames]
        )
        groups = sums(ours, errors, sales, raw.stores)
    result = scored(whole, sales, raw.meta.first_week)
    lines = report(result, groups, options, prepared, trained, time.perf_counter() - start)
    print(lines)
    if options.write:
        with replace_file(Path("docs/bench/accuracy.md")) as path:
            path.write_text(lines)


def report(
    result: pl.DataFrame,
    groups: pl.DataFrame,
    options: argparse.Namespace,
    prepared: float,
    trained: float,
    seconds: float,
) -> str:
    digits = {"wmape": 2, "wmae": 0, "rmsse": 3, "wql": 4, "cov80": 3, "bias": 2}
    digits |= {name: 2 for name in overview(result).columns if name[0] in "12h"}
    ours = result.filter(pl.col("model") == OURS)
    coverage = [
        evaluate.scores(ours, by).sort(by).select(*by, cov80="coverage", wmape=pl.col("wmape") * 100)
        for by in (("cutoff",), ("horizon",))
    ]
    return (
        "\n\n".join(
            [
                "# Accuracy on real weekly sales",
                f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; "
                f"{options.data.name}, horizon {options.horizon}, {options.seeds} seed(s), "
                f"{result.select(KEYS).n_unique()} series. Import, features and apply {prepared:.0f} s, "
                f"retrieval, training and forecasts {trained:.0f} s, all {seconds:.0f} s.",
                "WMAPE and bias in %, by origin and horizon WMAPE in %. `make bench-accuracy` writes this page.",
                table(overview(result), digits),
                "## Intervals by origin and by horizon",
                *(table(part, digits) for part in coverage),
                "## Sums",
                table(groups, digits),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
