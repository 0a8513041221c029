"""Commands for a model in use: serve, monitor, reproduce."""

from pathlib import Path
from typing import Annotated, Final

import typer

from salescast.cli import output
from salescast.cli.options import (
    DataOption,
    JsonOption,
    ModelDirOption,
    WorkdirOption,
    locked_workdir,
    workdir_of,
)

NOT_AS_WANTED: Final = 3  # exit code: the command did its work, and the result is outside of what is allowed


def serve_model(
    workdir: WorkdirOption = None,
    model_dir: ModelDirOption = None,
    port: Annotated[int | None, typer.Option(help="HTTP port.", show_default="8080")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port.", show_default="8081")] = None,
    model: Annotated[
        str | None, typer.Option(help="Registered model to follow.", show_default="models:/sales-forecast@champion")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Server processes, which share the ports.", show_default="1")
    ] = None,
) -> None:
    """Serve the champion's forecasts over HTTP and gRPC; a request needs only ids.

    Example: `salescast serve --port 8080`, then
    `curl localhost:8080/v1/models/sales-forecast:predict -d '{"instances": [{"store_id": 1, "dept_id": 3}]}'`
    """
    from salescast.config import settings
    from salescast.serving import supervisor

    ports = port or settings().http_port, grpc_port or settings().grpc_port
    supervisor.main(workdir_of(workdir), model_dir, *ports, workers, model)


def monitor_forecasts(
    workdir: WorkdirOption = None,
    data: DataOption = None,
    forecasts: Annotated[
        list[Path], typer.Option(help="Forecast files.", show_default="all in WORKDIR/forecasts")
    ] = [],  # noqa: B006
    max_wmape: Annotated[
        float | None, typer.Option(min=0, help="Largest WMAPE allowed.", show_default="1.5 x the backtest's")
    ] = None,
    max_bias: Annotated[float, typer.Option(min=0, help="Largest bias allowed, in either direction.")] = 0.1,
    min_coverage: Annotated[float, typer.Option(min=0, max=1, help="Least coverage of p10 to p90.")] = 0.6,
    weeks: Annotated[int, typer.Option(min=1, help="Last weeks to compare with these limits, together.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Compare stored forecasts with the sales that followed; exit code 3 when they are worse than allowed.

    Example: `salescast data import --sales new.csv --out new`, then `salescast monitor --data new --max-wmape 0.15`
    """
    from salescast.pipeline.monitor import Limits, default_wmape, monitor

    with locked_workdir(workdir) as work:
        wmape = default_wmape(work) if max_wmape is None else max_wmape
        limits = Limits(wmape, max_bias, min_coverage, weeks)
        report = monitor(work, data or work.raw, forecasts, limits)
    output.monitored(report, as_json)
    if report.beyond:
        raise typer.Exit(NOT_AS_WANTED)


def reproduce_run(
    run_id: Annotated[str, typer.Argument(help="MLflow's id of a training run.")],
    workdir: WorkdirOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Repeat a training run from its run record; exit code 3 when the bundle differs.

    Example: `salescast reproduce 3f2b8c1d9a7e4f60b5a1c2d3e4f50617`
    """
    from salescast.pipeline import reproduce

    with locked_workdir(workdir) as work:
        comparisons = reproduce.reproduce(work, run_id, data or work.raw)
    output.reproduced(comparisons, as_json)
    if not comparisons[-1].same:
        raise typer.Exit(NOT_AS_WANTED)
