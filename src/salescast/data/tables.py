"""Write a table as CSV, Parquet or Excel."""

from io import BytesIO
from pathlib import Path
from typing import Final

import polars as pl

from salescast.errors import UserError
from salescast.runtime import parquet
from salescast.runtime.atomic_files import replace_file

WRITTEN: Final = (".csv", ".parquet", ".xlsx")
EXCEL_ROWS: Final = 1_048_576  # of a sheet, including the header


def check_target(path: Path) -> None:
    """Raises UserError when the file's name does not end with a format of WRITTEN. Call it before the work starts."""
    if path.suffix.lower() not in WRITTEN:
        raise UserError(f"{path} names no known format; end the name with .csv, .parquet or .xlsx")


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table atomically, in the format that the file's name ends with (WRITTEN).

    Raises UserError for another format and for more rows than fit into an Excel sheet.
    """
    check_target(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        parquet.write(frame, path)
        return
    if kind == ".xlsx" and frame.height >= EXCEL_ROWS:
        raise UserError(
            f"{frame.height:,} rows do not fit into an Excel sheet, which holds {EXCEL_ROWS - 1:,} below its header; "
            f"write {path.with_suffix('.csv').name} or {path.with_suffix('.parquet').name} instead"
        )
    with replace_file(path) as temporary:
        if kind == ".csv":
            frame.write_csv(temporary)
        else:
            workbook = BytesIO()  # Polars accepts only paths that end with .xlsx
            frame.write_excel(workbook, autofit=True)
            temporary.write_bytes(workbook.getbuffer())
