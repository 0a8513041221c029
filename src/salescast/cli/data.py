"""Commands that write a dataset folder: generate, import."""

from pathlib import Path
from typing import Annotated

import typer

from salescast.cli import output
from salescast.cli.import_options import SALES_HELP, ImportOptions, with_import_options
from salescast.cli.options import JsonOption, SeedOption


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


@with_import_options
def data_import(
    sales: Annotated[Path, typer.Option(help=f"{SALES_HELP}.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write.")],
    options: ImportOptions,
    as_json: JsonOption = False,
) -> None:
    """Import your own sales; every row is checked.

    Example: `salescast data import --sales train.csv --features features.csv --stores stores.csv --out mydata`
    """
    from salescast.data import ingest

    report = ingest.import_sales(sales, options.features, options.stores, out, **options.keywords())
    output.import_report(report, out, as_json)
