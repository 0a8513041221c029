"""The command line: the list of commands, and what every one of them has in common.

Modules are imported where they are used, so that `salescast --help` and completion are fast.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from salescast import __version__
from salescast.cli import data, operate, output, stages, start
from salescast.errors import UserError

INTERRUPTED: Final = 130

START, DATA, STAGES, OPERATE = "Start", "Data", "Stages, in the order of `run`", "Operate"
# The order of the help: by panel, and inside of a panel the order of use.
COMMANDS: Final[tuple[tuple[str, str, Callable[..., None]], ...]] = (
    ("run", START, start.run_pipeline),
    ("up", START, start.up_everything),
    ("forecast", START, start.show_forecast),
    ("report", START, start.build_report),
    ("features", STAGES, stages.build_features),
    ("apply", STAGES, stages.apply_repo),
    ("retrieve", STAGES, stages.retrieve_training_set),
    ("train", STAGES, stages.train_model),
    ("backtest", STAGES, stages.run_backtest),
    ("register", STAGES, stages.register_model),
    ("materialize", STAGES, stages.materialize_features),
    ("serve", OPERATE, operate.serve_model),
    ("monitor", OPERATE, operate.monitor_forecasts),
    ("reproduce", OPERATE, operate.reproduce_run),
)
PANELS: Final = (START, DATA, STAGES, OPERATE)


def _without_flag_types(parameters: list[Any]) -> list[Any]:
    """Help shows `--json`, not `--json <bool>`."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_flag_types(super().get_params(ctx))


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_flag_types(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """By panel. Typer lists groups after all commands."""
        panels = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
        return sorted(panels, key=lambda name: PANELS.index(panels[name]) if panels[name] in PANELS else len(PANELS))


app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
data_app = typer.Typer(cls=Group, no_args_is_help=True, help="Make demo data, or check and import your own.")
data_app.command("generate", cls=Command)(data.data_generate)
data_app.command("check", cls=Command)(data.data_check)
data_app.command("import", cls=Command)(data.data_import)
app.add_typer(data_app, name="data", rich_help_panel=DATA)
for _name, _panel, _function in COMMANDS:
    app.command(_name, cls=Command, rich_help_panel=_panel)(_function)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.done(f"salescast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From a retailer's weekly sales to calibrated forecasts.

    Example: `salescast run` makes demo data and runs everything;
    `salescast forecast --store 1 --dept 3` then shows a forecast.
    """
    from rich.logging import RichHandler

    if verbose:
        os.environ["SALESCAST_VERBOSE"] = "true"  # for the processes that are started here
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=output.progress_console, show_path=False)],
        force=True,
    )


def main() -> None:
    """Entry point. A UserError becomes one line and exit code 1, an interrupt exit code 130."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # at INFO it logs the creation of its database tables
    try:
        app(prog_name="salescast")
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer turns a KeyboardInterrupt into this exit code
            output.failure("interrupted; finished work is kept; run the same command again to continue")
        raise
    except UserError as error:
        output.failure(str(error))
        sys.exit(1)
    except OSError as error:
        output.failure(f"{error.strerror or error}: {error.filename or 'no file named'}; check space and permissions")
        sys.exit(1)


if __name__ == "__main__":
    main()
