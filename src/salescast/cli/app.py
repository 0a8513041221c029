"""The command line: one thin function a verb. What can be mended by the user ends in one line, never in a traceback."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.logging import RichHandler

from salescast.cli import output
from salescast.cli.options import (
    CountryOption,
    CutoffsOption,
    DataOption,
    FeaturesOption,
    HorizonOption,
    JsonOption,
    ModelDirOption,
    OpenDaysOption,
    PlannedOption,
    RenameOption,
    SalesHelp,
    SeedOption,
    ServiceOption,
    SkipOption,
    StoresOption,
    WorkdirOption,
    dates_of,
    mapping_of,
    names_of,
    workdir_beside,
    workdir_of,
)
from salescast.config import settings
from salescast.errors import UserError
from salescast.model.config import train_config
from salescast.runtime.lock import locked

INTERRUPTED: Final = 130
BEYOND: Final = 3  # the command did its work, and what it found is not what was asked for

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Make demo data, or bring your own.")
app.add_typer(data_app, name="data")


@app.callback()
def _root(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False) -> None:
    """From a retailer's weekly sales to calibrated forecasts.

    Example: `salescast run` makes demo data and runs everything;
    `salescast forecast --store 1 --dept 3` then asks for numbers.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=output.progress_console, show_path=False)],
        force=True,
    )


@data_app.command("generate")
def data_generate(
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    stores: Annotated[int, typer.Option(min=1, help="Stores.")] = 45,
    depts: Annotated[int, typer.Option(min=1, help="Departments of each store.")] = 14,
    weeks: Annotated[int, typer.Option(min=1, help="Weeks of sales.")] = 104,
    seed: SeedOption = 42,
    as_json: JsonOption = False,
) -> None:
    """Generate demo data.

    Example: `salescast data generate --out demo --stores 45 --depts 14 --weeks 104`
    """
    from salescast.data import dataset

    output.dataset(dataset.generate(out, stores, depts, weeks, seed), out, as_json)


@data_app.command("import")
def data_import(
    sales: Annotated[Path, typer.Option(help=f"{SalesHelp}.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    features: FeaturesOption = None,
    stores: StoresOption = None,
    rename: RenameOption = [],  # noqa: B006
    planned: PlannedOption = None,
    open_days: OpenDaysOption = None,
    country: CountryOption = "US",
    skip_bad_rows: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Import sales of your own, checked row by row.

    Example: `salescast data import --sales train.csv --features features.csv --stores stores.csv --out mydata`
    """
    from salescast.data import ingest

    report = ingest.import_sales(
        sales, features, stores, out,
        mapping=mapping_of(rename), planned=names_of(planned), open_days=open_days,
        country=country, skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    output.import_report(report, out, as_json)


@app.command("features")
def build_features(
    workdir: WorkdirOption = None, data: DataOption = None, horizon: HorizonOption = None, as_json: JsonOption = False
) -> None:
    """Compute the feature tables.

    Example: `salescast features --data mydata`
    """
    from salescast.pipeline import stages

    work = workdir_of(workdir)
    with locked(work.root):
        output.features(stages.features_stage(work, data or work.raw, train_config(horizon=horizon).horizon), as_json)


@app.command("apply")
def apply_repo(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Register entities, views and services in Feast.

    Example: `salescast apply`
    """
    from salescast.feature_store import repo

    work = workdir_of(workdir)
    with locked(work.root):
        repo.apply(work)
    output.result(f"applied {work.feature_repo}", {"feature_repo": work.feature_repo}, as_json)


@app.command("materialize")
def materialize_features(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Bring the upcoming week of every series into the online store.

    Example: `salescast materialize`
    """
    from salescast.feature_store import repo

    work = workdir_of(workdir)
    with locked(work.root):
        series = repo.materialize(work)
    output.result(f"the upcoming week of {series:,} series is online", {"series": series}, as_json)


@app.command("retrieve")
def retrieve_training_set(
    workdir: WorkdirOption = None, service: ServiceOption = None, as_json: JsonOption = False
) -> None:
    """Retrieve the training set by a point-in-time join.

    Example: `salescast retrieve --feature-service training_features`
    """
    from salescast.feature_store import retrieval

    work = workdir_of(workdir)
    with locked(work.root):
        training = retrieval.retrieve(work, train_config(feature_service=service).feature_service)
    output.result(f"training set in {training}", {"training": training}, as_json)


@app.command("train")
def train_model(
    workdir: WorkdirOption = None,
    horizon: HorizonOption = None,
    service: ServiceOption = None,
    cutoff: Annotated[str | None, typer.Option(help="Last week seen; by default the last week there is.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train one model with torchrun and write its bundle.

    Example: `salescast train --horizon 13`
    """
    from salescast.data import dataset
    from salescast.model import bundle
    from salescast.pipeline import stages

    work = workdir_of(workdir)
    with locked(work.root):
        final = dates_of(cutoff)[0] if cutoff else dataset.Dataset.read(work.data).last_week
        trained = stages.train_stage(work, train_config(feature_service=service, horizon=horizon), [], final=final)
    output.trained(trained, bundle.read_metadata(trained.final).metadata.metrics, as_json)


@app.command("backtest")
def run_backtest(
    workdir: WorkdirOption = None,
    data: DataOption = None,
    cutoffs: CutoffsOption = None,
    horizon: HorizonOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .csv, .parquet, .xlsx.", show_default="WORKDIR/backtest.parquet")
    ] = None,
    service: ServiceOption = None,
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Train at the first cutoff only.")] = False,
    others: Annotated[
        str | None, typer.Option("--with", help="Other methods (extra `bench`): lightgbm,mstl,svd.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast from past cutoffs with models that saw nothing later, beside the baselines.

    With --data D and no --workdir, features and models go to the folder D.work beside D.

    Example: `salescast backtest --data mydata --cutoffs 2012-01-27,2012-04-27 --horizon 8 --out backtest.parquet`
    """
    from salescast.evaluation import metrics
    from salescast.pipeline import stages

    work = workdir_of(workdir or (data and workdir_beside(data)))
    with locked(work.root):
        frame = stages.run_backtest(
            work,
            data or work.raw,
            train_config(feature_service=service, horizon=horizon),
            dates_of(cutoffs) if cutoffs else None,
            out or work.backtest,
            refit=not no_refit,
            references=names_of(others),
        )
    output.scores(metrics.scores(frame), as_json)


@app.command("register")
def register_model(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Register the trained bundle; it becomes champion if its backtest is better than all others.

    The backtest must be of the same settings and data: `salescast train`, `salescast backtest`, then this.

    Example: `salescast register`
    """
    from salescast.pipeline import stages

    work = workdir_of(workdir)
    with locked(work.root):
        result = stages.register_stage(work)
    output.registration(result, as_json)


@app.command("serve")
def serve_model(
    workdir: WorkdirOption = None,
    model_dir: ModelDirOption = None,
    port: Annotated[int | None, typer.Option(help="HTTP port.", show_default="8080")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port.", show_default="8081")] = None,
    model: Annotated[
        str | None, typer.Option(help="Registered model to follow.", show_default="models:/sales-forecast@champion")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the ports.", show_default="1")
    ] = None,
) -> None:
    """Serve the champion's forecasts: ids in, calibrated forecasts out.

    Example: `salescast serve --port 8080`, then
    `curl localhost:8080/v1/models/sales-forecast:predict -d '{"instances": [{"store_id": 1, "dept_id": 3}]}'`
    """
    from salescast.serving import supervisor

    ports = port or settings().http_port, grpc_port or settings().grpc_port
    supervisor.main(workdir_of(workdir), model_dir, *ports, workers, model)


@app.command("up")
def up_everything(
    workdir: WorkdirOption = None,
    port: Annotated[int | None, typer.Option(help="Port of the forecasts.", show_default="8080")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="The same by gRPC.", show_default="8081")] = None,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow pages.", envvar="SALESCAST_MLFLOW_PORT")] = 5000,
    feast_port: Annotated[int, typer.Option(help="Port of the Feast pages.", envvar="SALESCAST_FEAST_PORT")] = 8888,
    model_dir: ModelDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast API, MLflow and Feast pages of a finished run, until Ctrl-C.

    Example: `salescast up --workdir my-run`
    """
    from salescast.cli import up

    ports = up.Ports(port or settings().http_port, grpc_port or settings().grpc_port, mlflow_port, feast_port)
    up.run(workdir_of(workdir), ports, lambda addresses: output.addresses(addresses, as_json), model_dir)


@app.command("forecast")
def show_forecast(
    workdir: WorkdirOption = None,
    store: Annotated[int | None, typer.Option(help="Store id.")] = None,
    dept: Annotated[int, typer.Option(help="Department id; 0 for sales by store only.")] = 0,
    weeks: Annotated[
        int | None, typer.Option(min=1, max=52, help="Weeks ahead.", show_default="as many as the model forecasts")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every series, to a file.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File for --all: .csv, .parquet, .xlsx.", show_default="WORKDIR/forecasts.parquet"),
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Draw history and forecast.")] = False,
    model_dir: ModelDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """The champion's next weeks of one series as a table, or of all series as a file.

    Example: `salescast forecast --store 1 --dept 3 --weeks 8 --draw`
    """
    from salescast.cli import output
    from salescast.serving import batch

    work = workdir_of(workdir)
    if every:
        count = batch.write_all(work, out or work.forecasts, model_dir)
        path = out or work.forecasts
        output.result(f"{count:,} forecasts in {path}", {"forecasts": count, "file": path}, as_json)
        return
    if out is not None:
        raise UserError("--out takes the forecasts of every series; give --all with it")
    if store is None:
        raise UserError("which store? give --store (and --dept), or --all for every series")
    rows = batch.forecast_one(work, store, dept, weeks, model_dir)
    drawing = output.chart(batch.history(work, store, dept), rows) if draw else None
    output.forecast(rows, f"store {store}, department {dept}", drawing, as_json)


@app.command("monitor")
def monitor_forecasts(
    workdir: WorkdirOption = None,
    data: DataOption = None,
    forecasts: Annotated[
        list[Path], typer.Option(help="Forecast files.", show_default="all in WORKDIR/forecasts")
    ] = [],  # noqa: B006
    max_wmape: Annotated[
        float | None, typer.Option(min=0, help="Largest WMAPE that is fine.", show_default="1.5 x the backtest's")
    ] = None,
    max_bias: Annotated[float, typer.Option(min=0, help="Largest bias that is fine, in either direction.")] = 0.1,
    min_coverage: Annotated[float, typer.Option(min=0, max=1, help="Least coverage of p10 to p90.")] = 0.6,
    weeks: Annotated[int, typer.Option(min=1, help="Weeks, the last ones, that are judged together.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Compare stored forecasts with the sales that followed; exit code 3 when they are worse than allowed.

    Example: `salescast data import --sales new.csv --out new`, then `salescast monitor --data new --max-wmape 0.15`
    """
    from salescast.pipeline.monitor import Limits, default_wmape, monitor

    work = workdir_of(workdir)
    with locked(work.root):
        wmape = default_wmape(work) if max_wmape is None else max_wmape
        limits = Limits(wmape, max_bias, min_coverage, weeks)
        report = monitor(work, data or work.raw, forecasts, limits)
    output.monitored(report, as_json)
    if report.beyond:
        raise typer.Exit(BEYOND)


@app.command("reproduce")
def reproduce_run(
    run_id: Annotated[str, typer.Argument(help="MLflow's id of a training run.")],
    workdir: WorkdirOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Repeat a run from its record and compare digests; exit code 3 when the bundle is another one.

    Example: `salescast reproduce 3f2b8c1d9a7e4f60b5a1c2d3e4f50617`
    """
    from salescast.pipeline import reproduce

    work = workdir_of(workdir)
    with locked(work.root):
        found = reproduce.reproduce(work, run_id, data or work.raw)
    output.reproduced(found, as_json)
    if not found[-1].same:
        raise typer.Exit(BEYOND)


@app.command("report")
def build_report(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Write the HTML report of the workdir.

    Example: `salescast report`
    """
    from salescast.report.build import build_report

    path = build_report(workdir_of(workdir))
    output.result(f"report in {path}", {"report": path}, as_json)


@app.command("run")
def run_pipeline(
    workdir: WorkdirOption = None,
    sales: Annotated[Path | None, typer.Option(help=f"{SalesHelp}; left out: demo data.")] = None,
    features: FeaturesOption = None,
    stores: StoresOption = None,
    rename: RenameOption = [],  # noqa: B006
    planned: PlannedOption = None,
    open_days: OpenDaysOption = None,
    country: CountryOption = "US",
    skip_bad_rows: SkipOption = False,
    cutoffs: CutoffsOption = None,
    horizon: HorizonOption = None,
    service: ServiceOption = None,
    seed: SeedOption = 42,
    as_json: JsonOption = False,
) -> None:
    """The whole pipeline: data, features, retrieval, training, backtest, registry, forecasts, report, server.

    Example: `salescast run --sales train.csv --features features.csv --stores stores.csv --workdir my-run`
    """
    from salescast.data import dataset, ingest
    from salescast.pipeline.run import run

    def source(out: Path) -> None:
        if sales is None:
            dataset.generate(out, seed=seed)
            return
        ingest.import_sales(
            sales, features, stores, out,
            mapping=mapping_of(rename), planned=names_of(planned), open_days=open_days,
            country=country, skip_bad_rows=skip_bad_rows,
        )  # fmt: skip

    work = workdir_of(workdir)
    dates = dates_of(cutoffs) if cutoffs else None
    with locked(work.root), output.stages() as started:
        summary = run(work, source, train_config(feature_service=service, horizon=horizon), dates, started)
    output.summary(summary, as_json)


def main() -> None:
    """Entry point: user errors become one line and exit code 1, an interrupt becomes 130."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of its database tables
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer has turned a KeyboardInterrupt into this
            output.failure("interrupted; what was finished is kept, the same command goes on from there")
        raise
    except UserError as error:
        output.failure(str(error))
        sys.exit(1)
    except OSError as error:
        output.failure(f"{error.strerror or error}: {error.filename or 'no file named'}; check space and permissions")
        sys.exit(1)


if __name__ == "__main__":
    main()
