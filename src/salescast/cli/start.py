"""Commands that people start with: run, up, forecast, report."""

from pathlib import Path
from typing import Annotated

import typer

from salescast.cli import output
from salescast.cli.import_options import SALES_HELP, ImportOptions, with_import_options
from salescast.cli.import_output import import_report
from salescast.cli.options import (
    CutoffsOption,
    HorizonOption,
    JsonOption,
    ModelDirOption,
    SeedOption,
    ServiceOption,
    WorkdirOption,
    config_of,
    dates_of,
    locked_workdir,
    workdir_of,
)
from salescast.errors import UserError


@with_import_options
def run_pipeline(
    options: ImportOptions,
    workdir: WorkdirOption = None,
    sales: Annotated[Path | None, typer.Option(help=f"{SALES_HELP}. Without it: demo data.")] = None,
    cutoffs: CutoffsOption = None,
    horizon: HorizonOption = None,
    service: ServiceOption = None,
    seed: SeedOption = 42,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline: data, features, training, backtest, forecasts, report.

    At the end it starts a forecast server and compares its answers with the forecasts in the file.

    Example: `salescast run --sales train.csv --features features.csv --stores stores.csv --workdir my-run`
    """
    from salescast.pipeline.run import run
    from salescast.pipeline.source import dataset_source

    dates = dates_of(cutoffs) if cutoffs else None
    config = config_of(service, horizon)
    with locked_workdir(workdir) as work, output.stages() as started:
        imported = None if as_json else lambda report: import_report(report, work.raw, as_json=False)
        source = dataset_source(work, sales, options.features, options.stores, options.keywords(), seed, imported)
        summary = run(work, source, config, dates, started)
    output.summary(summary, work, as_json)


def up_everything(
    workdir: WorkdirOption = None,
    port: Annotated[int | None, typer.Option(help="HTTP port of the forecast API.", show_default="8080")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Its gRPC port.", show_default="8081")] = None,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow pages.", envvar="SALESCAST_MLFLOW_PORT")] = 5000,
    feast_port: Annotated[int, typer.Option(help="Port of the Feast pages.", envvar="SALESCAST_FEAST_PORT")] = 8888,
    model_dir: ModelDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the forecast API and the pages of MLflow and Feast for a finished run.

    It prints their addresses and stops all of them with Ctrl-C.

    Example: `salescast up --workdir my-run`
    """
    from salescast.cli import up
    from salescast.config import settings

    ports = up.Ports(port or settings().http_port, grpc_port or settings().grpc_port, mlflow_port, feast_port)
    up.run(workdir_of(workdir), ports, lambda addresses: output.addresses(addresses, as_json), model_dir)


def show_forecast(
    workdir: WorkdirOption = None,
    store: Annotated[str | None, typer.Option(help="Store, by its own id.")] = None,
    dept: Annotated[str, typer.Option(help="Department, by its own id; 0 for sales by store only.")] = "0",
    weeks: Annotated[
        int | None, typer.Option(min=1, max=52, help="Weeks ahead.", show_default="all that the model forecasts")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Write the forecasts of every series to a file.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File for --all: .csv, .parquet, .xlsx.", show_default="WORKDIR/forecasts.parquet"),
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Draw sales and forecast in the terminal.")] = False,
    model_dir: ModelDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the champion's forecast of one series, or write those of all series to a file.

    Example: `salescast forecast --store 1 --dept 3 --weeks 8 --draw`
    """
    if out is not None and not every:
        raise UserError("--out is the file for the forecasts of every series; add --all")
    if store is None and not every:
        raise UserError("no series given; add --store (and --dept), or --all for every series")
    from salescast.serving import batch

    work = workdir_of(workdir)
    if every:
        path = out or work.forecasts
        count = batch.write_all(work, path, model_dir)
        output.result(f"{count:,} forecasts in {path}", {"forecasts": count, "file": path}, as_json)
    elif store is not None:
        rows = batch.forecast_one(work, store, dept, weeks, model_dir)
        past = batch.history(work, store, dept) if draw else None
        output.forecast(rows, f"store {store}, department {dept}", past, as_json)


def build_report(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Write the HTML report of the workdir.

    Example: `salescast report`
    """
    from salescast.report.build import build_report

    path = build_report(workdir_of(workdir))
    output.result(f"report in {path}", {"report": path}, as_json)
