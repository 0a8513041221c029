"""The options that say how a retailer's files are to be read, for every command that reads them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from salescast.cli.options import names_of
from salescast.errors import UserError

SALES_HELP: Final = "CSV, Excel or Parquet with Store, Dept, Date, Weekly_Sales; a file, a folder or a pattern"
_FILES: Final = "Files"
_FORM: Final = "How files are read"


def _option(text: str, *names: str, panel: str = _FORM) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


@dataclass(frozen=True)
class ImportOptions:
    """The options of `data import` and `run` besides --sales."""

    features: Annotated[Path | None, _option("File with Store, Date and columns of the week.", panel=_FILES)] = None
    stores: Annotated[
        Path | None, _option("File with Store, Type, Size, Region, Label, Opened, Closed.", panel=_FILES)
    ] = None
    products: Annotated[
        Path | None,
        _option("File with Dept, Label, Category, Brand, Price_Class, Listed, Delisted.", panel=_FILES),
    ] = None
    rename: Annotated[list[str], _option("NAME=COLUMN, when a column has another name.", "--map", panel=_FILES)] = (
        field(default_factory=list)
    )
    planned: Annotated[str | None, _option("Columns known ahead, comma-separated.", panel=_FILES)] = None
    open_days: Annotated[str | None, _option("The planned column with the open days of a week.", panel=_FILES)] = None
    out_of_stock: Annotated[
        str | None, _option("Column with the stock, or yes when sold out; demand is then unknown.", panel=_FILES)
    ] = None
    country: Annotated[str, _option("Country of the holidays, as the library `holidays` names it.", panel=_FILES)] = (
        "US"
    )
    daily: Annotated[bool | None, _option("Dates are days, or weeks.", "--daily/--weekly")] = None
    summed: Annotated[bool, _option("Add up several rows of a series and date (receipts, tills).", "--sum")] = False
    week_starts: Annotated[str | None, _option("Dates name the first day of a week: this weekday.")] = None
    week_ends: Annotated[str | None, _option("The weekday that ends a week.")] = None
    gaps: Annotated[str, _option("What a week without a row means: zero, unknown or auto.")] = "auto"
    wide: Annotated[bool, _option("The sales file has a column per week.", "--wide")] = False
    date_format: Annotated[str | None, _option("Such as %d/%m/%Y, %G%V (year, week) or excel.")] = None
    decimal: Annotated[str | None, _option("The decimal mark, . or ,")] = None
    sheet: Annotated[str | None, _option("The sheet of an Excel workbook.")] = None
    skip_bad_rows: Annotated[bool, _option("Import the good rows although some are bad.", "--skip-bad-rows")] = False

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of `ingest.import_sales`."""
        from salescast.data.validation import Form
        from salescast.data.weeks import Weeks, weekday_of

        starts, ends = (None if day is None else weekday_of(day) for day in (self.week_starts, self.week_ends))
        return {
            "products": self.products,
            "mapping": mapping_of(self.rename),
            "planned": names_of(self.planned),
            "open_days": self.open_days,
            "out_of_stock": self.out_of_stock,
            "country": self.country,
            "skip_bad_rows": self.skip_bad_rows,
            "form": Form(self.date_format, self.decimal, self.sheet),
            "weeks": Weeks(self.daily, self.summed, starts, ends),
            "gaps": self.gaps,
            "wide": self.wide,
        }


def with_import_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a parameter `options: ImportOptions`, as a command with one option for each of its fields."""
    types = get_type_hints(ImportOptions, include_extras=True)
    own = inspect.signature(command)
    added = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=[] if option.name == "rename" else option.default,
            annotation=types[option.name],
        )
        for option in fields(ImportOptions)
    ]

    @wraps(command)
    def expanded(**values: Any) -> None:
        given = {option.name: values.pop(option.name) for option in fields(ImportOptions)}
        command(**values, options=ImportOptions(**given))

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.parameters.items()
        if name != "options"
    ]
    vars(expanded)["__signature__"] = own.replace(parameters=[*parameters, *added])
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in (*parameters, *added)}
    return expanded


def mapping_of(pairs: list[str]) -> dict[str, str]:
    """`Store=shop_id` pairs: the standard column name, and the name in the file."""
    split = [pair.partition("=") for pair in pairs]
    wrong = [pair for pair, (name, sign, column) in zip(pairs, split, strict=True) if not (name and sign and column)]
    if wrong:
        raise UserError(f"--map must be NAME=COLUMN, such as Store=shop_id, got {wrong[0]!r}")
    return {name: column for name, _, column in split}
