"""The options that verbs of the command line share, and what their texts mean."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from salescast.config import settings
from salescast.errors import UserError
from salescast.schema import TRAINING_SERVICE, TRAINING_SERVICE_SEASONAL
from salescast.workdir import Workdir

WorkdirOption = Annotated[
    Path | None,
    typer.Option(
        "--workdir", help="Folder of everything a pipeline makes.", envvar="SALESCAST_WORKDIR", show_default="shared"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON, for machines.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Dataset folder.", show_default="WORKDIR/data/raw")]
# Without these, the settings hold: what the environment says, else what TrainConfig says.
HorizonOption = Annotated[
    int | None, typer.Option(min=1, max=52, help="Weeks ahead.", show_default="SALESCAST_HORIZON, else 8")
]
ServiceOption = Annotated[
    str | None,
    typer.Option(
        "--feature-service",
        help=f"{TRAINING_SERVICE_SEASONAL}, or {TRAINING_SERVICE} for the published base.",
        show_default="SALESCAST_FEATURE_SERVICE, else the first",
    ),
]
SalesHelp: Final = "CSV or Parquet with Store, Dept, Date, Weekly_Sales"
FeaturesOption = Annotated[Path | None, typer.Option(help="CSV or Parquet with Store, Date and columns of the week.")]
StoresOption = Annotated[Path | None, typer.Option(help="CSV or Parquet with Store, Type, Size, Region.")]
RenameOption = Annotated[list[str], typer.Option("--map", help="NAME=COLUMN, when a column has another name.")]
PlannedOption = Annotated[str | None, typer.Option(help="Columns known ahead, comma-separated.")]
OpenDaysOption = Annotated[str | None, typer.Option(help="The planned column with the open days of a week.")]
CountryOption = Annotated[str, typer.Option(help="Country of the holidays, as the library `holidays` names it.")]
SkipOption = Annotated[bool, typer.Option("--skip-bad-rows", help="Import the good rows although some are bad.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the demo data.")]
CutoffsOption = Annotated[
    str | None,
    typer.Option(help="Last weeks seen, comma-separated dates; by default quarterly, as many as the data allow."),
]
ModelDirOption = Annotated[
    Path | None, typer.Option(help="Bundle folder, SALESCAST_MODEL_DIR too.", show_default="the champion's")
]


def workdir_of(root: Path | None) -> Workdir:
    return Workdir((root or settings().workdir).resolve())


def workdir_beside(data: Path) -> Path:
    """The workdir of a dataset folder: beside it, as an import replaces all that is in it."""
    data = data.resolve()
    return data.with_name(f"{data.name}.work")


def dates_of(text: str) -> list[date]:
    try:
        return [datetime.strptime(part.strip(), "%Y-%m-%d").date() for part in text.split(",")]
    except ValueError:
        raise UserError(f"--cutoffs must be dates like 2012-01-27,2012-04-27, got {text!r}") from None


def mapping_of(pairs: list[str]) -> dict[str, str]:
    """`Store=shop_id` pairs: the name this program knows, the name in the file."""
    split = [pair.partition("=") for pair in pairs]
    wrong = [pair for pair, (name, sign, column) in zip(pairs, split, strict=True) if not (name and sign and column)]
    if wrong:
        raise UserError(f"--map must be NAME=COLUMN, such as Store=shop_id, got {wrong[0]!r}")
    return {name: column for name, _, column in split}


def names_of(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()
