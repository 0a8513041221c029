"""The command line: one thin function a verb. What can be mended by the user ends in one line, never in a traceback."""

import logging
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.logging import RichHandler

from salescast import show
from salescast.config import TrainConfig, Workdir, settings
from salescast.errors import UserError
from salescast.locking import locked
from salescast.schema import TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL

INTERRUPTED: Final = 130

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Make demo data, or bring your own.")
app.add_typer(data_app, name="data")

WorkdirOption = Annotated[
    Path | None,
    typer.Option(
        "--workdir", help="Folder of everything a pipeline makes.", envvar="SALESCAST_WORKDIR", show_default="shared"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON, for machines.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Dataset folder.", show_default="WORKDIR/data/raw")]
HorizonOption = Annotated[int, typer.Option(min=1, max=52, help="Weeks ahead.")]
ServiceOption = Annotated[
    str,
    typer.Option(
        "--feature-service", help=f"{TRAINING_SERVICE_SEASONAL}, or {TRAINING_SERVICE} for the published base."
    ),
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Networks in the ensemble (one bundle, one forward pass).")]
CutoffsOption = Annotated[
    str | None,
    typer.Option(help="Last weeks seen, comma-separated dates; by default quarterly, as many as the data allow."),
]


def _workdir(root: Path | None) -> Workdir:
    return Workdir((root or settings().workdir).resolve())


def _dates(text: str) -> list[date]:
    try:
        return [datetime.strptime(part.strip(), "%Y-%m-%d").date() for part in text.split(",")]
    except ValueError:
        raise UserError(f"--cutoffs must be dates like 2012-01-27,2012-04-27, got {text!r}") from None


def _mapping(pairs: list[str]) -> dict[str, str]:
    """`Store=shop_id` pairs: the name this program knows, the name in the file."""
    split = [pair.partition("=") for pair in pairs]
    wrong = [pair for pair, (name, sign, column) in zip(pairs, split, strict=True) if not (name and sign and column)]
    if wrong:
        raise UserError(f"--map must be NAME=COLUMN, such as Store=shop_id, got {wrong[0]!r}")
    return {name: column for name, _, column in split}


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _config(service: str, horizon: int, seeds: int) -> TrainConfig:
    return TrainConfig(
        feature_service=service,
        horizon=horizon,
        members=seeds,
        epochs=settings().num_epochs,
        batch_size=settings().batch_size,
    )


@app.callback()
def _root(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False) -> None:
    """From a retailer's weekly sales to calibrated forecasts.

    Example: `salescast run` makes demo data and runs everything;
    `salescast forecast --store 1 --dept 3` then asks for numbers.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=show.progress_console, show_path=False)],
        force=True,
    )


@data_app.command("generate")
def data_generate(
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    stores: Annotated[int, typer.Option(min=1)] = 45,
    depts: Annotated[int, typer.Option(min=1)] = 14,
    weeks: Annotated[int, typer.Option(min=1)] = 104,
    seed: int = 42,
    as_json: JsonOption = False,
) -> None:
    """Generate demo data.

    Example: `salescast data generate --out demo --stores 45 --depts 14 --weeks 104`
    """
    from salescast import data

    show.dataset(data.generate(out, stores, depts, weeks, seed), out, as_json)


@data_app.command("import")
def data_import(
    sales: Annotated[Path, typer.Option(help="CSV or Parquet with Store, Dept, Date, Weekly_Sales.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    features: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with Store, Date and columns of the week.")
    ] = None,
    stores: Annotated[Path | None, typer.Option(help="CSV or Parquet with Store, Type, Size, Region.")] = None,
    rename: Annotated[list[str], typer.Option("--map", help="NAME=COLUMN, when a column has another name.")] = [],  # noqa: B006
    planned: Annotated[str | None, typer.Option(help="Columns known ahead, comma-separated.")] = None,
    open_days: Annotated[str | None, typer.Option(help="The planned column with the open days of a week.")] = None,
    country: Annotated[
        str, typer.Option(help="Country of the holidays (ISO 3166, as the library `holidays` names it).")
    ] = "US",
    skip_bad_rows: Annotated[bool, typer.Option(help="Import the good rows although some are bad.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Import sales of your own, checked row by row.

    Example: `salescast data import --sales train.csv --features features.csv --stores stores.csv --out mydata`
    """
    from salescast import ingest

    report = ingest.import_sales(
        sales, features, stores, out,
        mapping=_mapping(rename), planned=_names(planned), open_days=open_days,
        country=country, skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    show.import_report(report, out, as_json)


@app.command("features")
def build_features(
    workdir: WorkdirOption = None, data: DataOption = None, horizon: HorizonOption = 8, as_json: JsonOption = False
) -> None:
    """Compute the feature tables.

    Example: `salescast features --data mydata`
    """
    from salescast import pipeline

    work = _workdir(workdir)
    with locked(work.root):
        show.features(pipeline.features_stage(work, data or work.raw, horizon), as_json)


@app.command("apply")
def apply_repo(workdir: WorkdirOption = None) -> None:
    """Register entities, views and services in Feast.

    Example: `salescast apply`
    """
    from salescast import retrieval

    work = _workdir(workdir)
    with locked(work.root):
        retrieval.apply(work)
    show.done(f"applied {work.feature_repo}")


@app.command("materialize")
def materialize_features(workdir: WorkdirOption = None) -> None:
    """Bring the upcoming week of every series into the online store.

    Example: `salescast materialize`
    """
    from salescast import retrieval

    work = _workdir(workdir)
    with locked(work.root):
        series = retrieval.materialize(work)
    show.done(f"the upcoming week of {series:,} series is online")


@app.command("retrieve")
def retrieve_training_set(workdir: WorkdirOption = None, service: ServiceOption = TRAINING_SERVICE_SEASONAL) -> None:
    """Retrieve the training set by a point-in-time join.

    Example: `salescast retrieve --feature-service training_features`
    """
    from salescast import retrieval

    work = _workdir(workdir)
    with locked(work.root):
        show.done(f"training set in {retrieval.retrieve(work, service)}")


@app.command("train")
def train_model(
    workdir: WorkdirOption = None,
    horizon: HorizonOption = 8,
    service: ServiceOption = TRAINING_SERVICE_SEASONAL,
    seeds: SeedsOption = 1,
    cutoff: Annotated[str | None, typer.Option(help="Last week seen; by default the last week there is.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train one model with torchrun and write its bundle.

    Example: `salescast train --seeds 3`
    """
    from salescast import bundle, data, pipeline

    work = _workdir(workdir)
    with locked(work.root):
        final = _dates(cutoff)[0] if cutoff else data.Dataset.read(work.data).last_week
        trained = pipeline.train_stage(work, _config(service, horizon, seeds), [], final=final)
    show.trained(trained, bundle.read_metadata(trained.final)["metrics"], as_json)


@app.command("backtest")
def run_backtest(
    workdir: WorkdirOption = None,
    data: DataOption = None,
    cutoffs: CutoffsOption = None,
    horizon: HorizonOption = 8,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file to write.", show_default="WORKDIR/backtest.parquet")
    ] = None,
    service: ServiceOption = TRAINING_SERVICE_SEASONAL,
    seeds: SeedsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Forecast from past cutoffs with models that saw nothing later, beside the baselines.

    Example: `salescast backtest --data mydata --cutoffs 2012-01-27,2012-04-27 --horizon 8 --out backtest.parquet`
    """
    from salescast import evaluate, pipeline

    work = _workdir(workdir or (data and data / ".work"))
    with locked(work.root):
        frame = pipeline.backtest(
            work,
            data or work.raw,
            _config(service, horizon, seeds),
            _dates(cutoffs) if cutoffs else None,
            out or work.backtest,
        )
    show.scores(evaluate.scores(frame), as_json)


@app.command("register")
def register_model(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Register the trained bundle; it becomes champion if its backtest is better than all others.

    Example: `salescast register`
    """
    from salescast import pipeline

    work = _workdir(workdir)
    with locked(work.root):
        result = pipeline.register_stage(work)
    show.registration(result, as_json)


@app.command("serve")
def serve_model(
    workdir: WorkdirOption = None,
    model_dir: Annotated[
        Path | None, typer.Option(help="Bundle folder.", envvar="SALESCAST_MODEL_DIR", show_default="WORKDIR/models")
    ] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port.", show_default="8080")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port.", show_default="8081")] = None,
) -> None:
    """Serve forecasts: ids in, calibrated forecasts out.

    Example: `salescast serve --port 8080`, then
    `curl localhost:8080/v1/models/sales-forecast:predict -d '{"instances": [{"store_id": 1, "dept_id": 3}]}'`
    """
    from salescast import serve

    work = _workdir(workdir)
    serve.main(work, model_dir or work.models, port or settings().http_port, grpc_port or settings().grpc_port)


@app.command("forecast")
def show_forecast(
    workdir: WorkdirOption = None,
    store: Annotated[int | None, typer.Option(help="Store id.")] = None,
    dept: Annotated[int, typer.Option(help="Department id; 0 for sales by store only.")] = 0,
    weeks: HorizonOption = 8,
    every: Annotated[bool, typer.Option("--all", help="Every series, to a file.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file for --all.", show_default="WORKDIR/forecasts.parquet")
    ] = None,
    draw: Annotated[bool, typer.Option(help="Draw history and forecast.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The next weeks of one series as a table, or of all series as a file.

    Example: `salescast forecast --store 1 --dept 3 --weeks 8 --draw`
    """
    from salescast import forecast

    work = _workdir(workdir)
    if every:
        count = forecast.write_all(work, out or work.forecasts)
        show.done(f"{count:,} forecasts in {out or work.forecasts}")
        return
    if store is None:
        raise UserError("which store? give --store (and --dept), or --all for every series")
    rows = forecast.one(work, store, dept, weeks)
    drawing = forecast.chart(forecast.history(work, store, dept), rows) if draw else None
    show.forecast(rows, f"store {store}, department {dept}", drawing, as_json)


@app.command("report")
def build_report(workdir: WorkdirOption = None) -> None:
    """Write the HTML report of the workdir.

    Example: `salescast report`
    """
    from salescast import report

    show.done(f"report in {report.build(_workdir(workdir))}")


@app.command("run")
def run_pipeline(
    workdir: WorkdirOption = None,
    sales: Annotated[Path | None, typer.Option(help="CSV or Parquet of your own; without it, demo data.")] = None,
    features: Annotated[Path | None, typer.Option()] = None,
    stores: Annotated[Path | None, typer.Option()] = None,
    rename: Annotated[list[str], typer.Option("--map")] = [],  # noqa: B006
    planned: Annotated[str | None, typer.Option()] = None,
    open_days: Annotated[str | None, typer.Option()] = None,
    country: Annotated[str, typer.Option()] = "US",
    skip_bad_rows: bool = False,
    cutoffs: CutoffsOption = None,
    horizon: HorizonOption = 8,
    service: ServiceOption = TRAINING_SERVICE_SEASONAL,
    seeds: SeedsOption = 1,
    seed: int = 42,
    as_json: JsonOption = False,
) -> None:
    """The whole pipeline: data, features, retrieval, training, backtest, registry, forecasts, report, server.

    Example: `salescast run --sales train.csv --features features.csv --stores stores.csv --workdir my-run`
    """
    from salescast import data, ingest, pipeline

    def source(out: Path) -> None:
        if sales is None:
            data.generate(out, seed=seed)
            return
        ingest.import_sales(
            sales, features, stores, out,
            mapping=_mapping(rename), planned=_names(planned), open_days=open_days,
            country=country, skip_bad_rows=skip_bad_rows,
        )  # fmt: skip

    work = _workdir(workdir)
    dates = _dates(cutoffs) if cutoffs else None
    with locked(work.root), show.stages() as started:
        summary = pipeline.run(work, source, _config(service, horizon, seeds), dates, started)
    show.summary(summary, as_json)


def main() -> None:
    """Entry point: user errors become one line and exit code 1, an interrupt becomes 130."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer has turned a KeyboardInterrupt into this
            show.failure("interrupted; what was finished is kept, the same command goes on from there")
        raise
    except UserError as error:
        show.failure(str(error))
        sys.exit(1)
    except OSError as error:
        show.failure(f"{error.strerror or error}: {error.filename or 'no file named'}; check space and permissions")
        sys.exit(1)


if __name__ == "__main__":
    main()
