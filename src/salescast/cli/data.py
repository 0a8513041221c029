"""Commands on files of sales: generate, import, check."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salescast.cli import output
from salescast.cli.import_options import SALES_HELP, ImportOptions, with_import_options
from salescast.cli.import_output import import_report
from salescast.cli.options import JsonOption, SeedOption

if TYPE_CHECKING:
    from salescast.data.import_report import ImportReport

PageOption = Annotated[Path | None, typer.Option("--html", help="Write the report as an HTML file, too.")]


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
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import your own sales; every row is checked.

    Example: `salescast data import --sales train.csv --features features.csv --stores stores.csv --out mydata`
    """
    from salescast.data import ingest

    report = ingest.import_sales(sales, options.features, options.stores, out, **options.keywords())
    _write_page(report, page)
    import_report(report, out, as_json)


@with_import_options
def data_check(
    sales: Annotated[Path, typer.Option(help=f"{SALES_HELP}.")],
    options: ImportOptions,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read files of sales as an import does, and say what it would do. No dataset is written.

    Example: `salescast data check --sales train.csv --features features.csv --stores stores.csv`
    """
    from salescast.data import ingest

    folder = Path(tempfile.mkdtemp(prefix="salescast-check-"))  # stays when rows are refused: it has their list
    report = ingest.import_sales(sales, options.features, options.stores, folder, **options.keywords())
    shutil.rmtree(folder)
    _write_page(report, page)
    import_report(report, None, as_json)


def _write_page(report: "ImportReport", page: Path | None) -> None:
    from salescast.report.import_page import write_import_page

    if page is not None:
        write_import_page(report, page)
