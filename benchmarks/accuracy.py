"""Forecast accuracy on real weekly sales, through the pipeline's own stages, compared with other methods.

    make bench-accuracy
    python benchmarks/accuracy.py --sets walmart --origins 2011-12-16,2012-03-16 --horizon 13 --with lightgbm,mstl,svd

The sets and their origins: sets.py. Every method uses the sales up to an origin, and the calendar and the plan after
it. One configuration serves all sets.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import polars as pl

os.environ.setdefault("MLFLOW_TRACKING_URI", "off")

import kinds
from sets import SETS, Set

from salescast import retail_calendar
from salescast.data import dataset
from salescast.errors import UserError
from salescast.evaluation import backtest, baselines, hierarchy, metrics, reference_models
from salescast.feature_store import repo, retrieval
from salescast.features.training_set import scan
from salescast.model import bundle
from salescast.model.config import TrainConfig
from salescast.pipeline import stages
from salescast.runtime.atomic_files import replace_file
from salescast.schema import KEYS, LABEL, TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL
from salescast.workdir import Workdir

OURS, BASE = "salescast", "salescast, published features"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with a folder for each set")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--origins", help="last observed weeks instead of the usual ones, comma-separated")
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument(
        "--with", dest="references", default="", help=f"reference models: {','.join(reference_models.PACKAGES)}"
    )
    parser.add_argument("--base", action="store_true", help="also with the published features")
    parser.add_argument("--kinds", type=Path, help="folder of small files with many kinds of series, see kinds.py")
    parser.add_argument("--keep", type=Path, help="folder for the forecasts of each set")
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


def scored(forecasts: pl.DataFrame, sales: pl.DataFrame, raw: dataset.Raw, chosen: Set) -> pl.DataFrame:
    """The forecasts of the scored series with actual sales, holidays and scales."""
    actual = sales.select(*KEYS, "week", y=pl.col(LABEL))
    weeks, calendar = forecasts["week"].to_numpy(), retail_calendar.calendar(chosen.country)
    holiday = pl.Series(retail_calendar.is_holiday(weeks, calendar) > 0)
    scales = metrics.seasonal_scales(sales, forecasts["cutoff"].unique().to_list())
    return (
        forecasts.with_columns(is_holiday=holiday)
        .join(chosen.scored(sales, raw.meta.first_week), on=KEYS, how="semi")
        .join(actual, on=[*KEYS, "week"], how="left")
        .join(scales, on=[*KEYS, "cutoff"], how="left")
        .with_columns(set=pl.lit(chosen.name))
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


@dataclass(frozen=True)
class Result:
    """Of one set: scored forecasts of every method, and scores of sums."""

    forecasts: pl.DataFrame
    groups: pl.DataFrame
    facts: str


def evaluate(chosen: Set, options: argparse.Namespace, config: TrainConfig) -> Result:
    """Import a set, train and forecast from each origin, and do the same by the other methods."""
    origins, times = chosen.dates(), Times()
    with tempfile.TemporaryDirectory() as folder:
        work = Workdir(Path(folder))
        chosen.load(options.data, work.raw)
        raw = dataset.load(work.raw)
        sales = raw.sales.collect()
        stages.features_stage(work, work.raw, config.horizon)
        repo.apply(work)
        times.took("import, features and apply")
        ours, errors = fitted(work, config, origins, OURS)
        times.took("retrieval, training and forecasts")
        training = scan(retrieval.retrieve(work, TRAINING_SERVICE_SEASONAL))
        frames = [ours, *(baselines.forecasts(training, origin, config.horizon) for origin in origins)]
        if options.base:
            base = replace(config, feature_service=TRAINING_SERVICE, linear=False)
            frames.append(fitted(work, base, origins, BASE)[0])
        groups = sums(ours, errors, sales, raw.stores)
        times.took("baselines and sums")
        for name in options.references:
            frames += [
                reference_models.forecasts(name, training, origin, config.horizon, chosen.country) for origin in origins
            ]
            times.took(name)
        forecasts = pl.concat([frame.select(frames[0].columns) for frame in frames])
        result = scored(forecasts, sales, raw, chosen)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            result.write_parquet(options.keep / f"{chosen.name}.parquet")
            errors.join(sales, on=[*KEYS, "week"], how="left").write_parquet(
                options.keep / f"{chosen.name}-held-out.parquet"
            )
    spent = ", ".join(f"{what} {value:.0f} s" for what, value in times.seconds.items())
    series = result.select(KEYS).n_unique()
    return Result(result, groups, f"{chosen.name}: {series} series, {len(origins)} origins. {spent}.")


def main() -> None:
    options = arguments()
    options.references = [name for name in options.references.split(",") if name]
    reference_models.check(options.references)
    config = TrainConfig(horizon=options.horizon, epochs=8, batch_size=1024)
    chosen = [SETS[name] for name in options.sets.split(",")]
    if options.origins:
        chosen = [replace(entry, origins=tuple(options.origins.split(","))) for entry in chosen]
    results = {entry.name: evaluate(entry, options, config) for entry in chosen}
    facts = (
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; "
        f"horizon {options.horizon}."
    )
    lines = report(results, facts)
    if options.kinds:
        small = TrainConfig(horizon=options.horizon)
        lines += kinds_page(sorted(case for case in options.kinds.iterdir() if case.is_dir()), small)
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


def by_set(results: dict[str, Result]) -> pl.DataFrame:
    """Our model and the best baseline of each set: pooled scores, the worst origin's coverage, bias of the total."""
    rows = []
    for name, result in results.items():
        pooled = metrics.scores(result.forecasts)
        worst = (
            metrics.scores(result.forecasts, ("model", "cutoff")).group_by("model").agg(worst=pl.col("coverage").min())
        )
        known = result.forecasts.filter(pl.col("y").is_not_null())
        total = known.group_by("model").agg(total=pl.col("mean").sum() / pl.col("y").sum() - 1)
        both = pooled.join(worst, on="model").join(total, on="model").sort("wmape")
        others = both.filter(pl.col("model") != OURS)
        rows.append(pl.concat([both.filter(pl.col("model") == OURS), others.head(1)]).with_columns(set=pl.lit(name)))
    percent = ((pl.col(name) * 100).alias(name) for name in ("wmape", "bias", "total"))
    return (
        pl.concat(rows)
        .with_columns(percent)
        .select("set", "model", "wmape", "wql", cov80="coverage", worst="worst", bias="bias", total="total")
    )


def report(results: dict[str, Result], facts: str) -> str:
    digits = {"wmape": 2, "wmae": 0, "rmsse": 3, "wql": 4, "cov80": 3, "worst": 3, "bias": 2, "total": 2}
    parts = [
        "# Accuracy on real weekly sales",
        facts,
        "WMAPE, bias and bias of the total in %; coverage of the 80 % range, pooled and in the worst origin. Each set "
        "with the best of the other methods. `make bench-accuracy` and `make bench-accuracy-once` write the pages of "
        "this folder. The sets: `benchmarks/sets.py`; the methods: `evaluation/baselines.py`, "
        "`evaluation/reference_models.py`.",
        table(by_set(results), digits),
    ]
    for name, result in results.items():
        whole = overview(result.forecasts)
        ours = result.forecasts.filter(pl.col("model") == OURS)
        coverage, error = crossed(ours, "coverage"), crossed(ours, "wmape")
        error = error.with_columns(pl.exclude("origin") * 100)
        parts += [
            f"## {name}",
            result.facts,
            table(whole, digits | {column: 2 for column in whole.columns if column[0] in "12h"}),
            "Coverage of the 80 % range by origin and horizon:",
            table(coverage, dict.fromkeys(coverage.columns[1:], 3)),
            "WMAPE by origin and horizon:",
            table(error, dict.fromkeys(error.columns[1:], 2)),
            "Sums:",
            table(result.groups, digits),
        ]
    return "\n\n".join(parts) + "\n"


def kinds_page(cases: list[Path], config: TrainConfig) -> str:
    frames, refused = [], []
    for case in cases:
        try:
            frames.append(kinds.scored(case, config))
        except UserError as error:
            refused.append(f"{case.name} is refused: {error}.")
    digits = {"wmape": 1, "cov80": 2, "bias": 1, "total": 1}
    parts = [
        "## Kinds of series",
        "Small made-up files, by kind of series, trained with the default settings. WMAPE, bias of the medians and of "
        "the sum of means in %; `below`: ranges that begin below 0 although nothing was ever returned.",
        table(pl.concat(frames).with_columns(pl.col(pl.Float64).fill_null(float("nan"))), digits),
        *refused,
    ]
    return "\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
