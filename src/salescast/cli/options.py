"""Options that several commands share, and functions that parse their values."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salescast.errors import UserError

if TYPE_CHECKING:
    from salescast.model.config import TrainConfig
    from salescast.workdir import Workdir

WorkdirOption = Annotated[
    Path | None,
    typer.Option(
        "--workdir", help="Folder for everything that a run writes.", envvar="SALESCAST_WORKDIR", show_default="shared"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Dataset folder.", show_default="WORKDIR/data/raw")]
# Without these options the settings hold: the environment, then the defaults of TrainConfig.
HorizonOption = Annotated[
    int | None, typer.Option(min=1, max=52, help="Weeks ahead.", show_default="SALESCAST_HORIZON, else 8")
]
ServiceOption = Annotated[
    str | None,
    typer.Option(
        "--feature-service",
        help="training_features_seasonal, or training_features for the 22 published features only.",
        show_default="SALESCAST_FEATURE_SERVICE, else the first",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the demo data.")]
CutoffsOption = Annotated[
    str | None,
    typer.Option(
        help="Last week with known sales of each backtest fit: comma-separated dates. "
        "By default quarterly, as many as the data allow."
    ),
]
ModelDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Bundle folder to use instead of the champion.", show_default="SALESCAST_MODEL_DIR, else the champion"
    ),
]


def workdir_of(root: Path | None) -> "Workdir":
    from salescast.config import settings
    from salescast.workdir import Workdir

    return Workdir((root or settings().workdir).resolve())


@contextmanager
def locked_workdir(root: Path | None) -> Iterator["Workdir"]:
    """The workdir, held by this process only. Raises UserError when another command holds it."""
    from salescast.runtime.lock import locked

    work = workdir_of(root)
    with locked(work.root):
        yield work


def workdir_beside(data: Path) -> Path:
    """The workdir for a dataset folder: beside it, since an import replaces everything inside of it."""
    data = data.resolve()
    return data.with_name(f"{data.name}.work")


def config_of(service: str | None = None, horizon: int | None = None) -> "TrainConfig":
    """The training settings: these options, else the environment, else the defaults."""
    from salescast.model.config import train_config

    return train_config(feature_service=service, horizon=horizon)


def dates_of(text: str, option: str = "--cutoffs") -> list[date]:
    try:
        return [datetime.strptime(part.strip(), "%Y-%m-%d").date() for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} must be dates like 2012-01-27,2012-04-27, got {text!r}") from None


def names_of(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()
