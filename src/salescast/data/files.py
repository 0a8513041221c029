"""Several files, or a file with a column per week, as one table of rows."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl

from salescast.data.readers import ROW, Table, read_table, short
from salescast.errors import UserError

_DATE_NAME: Final = r"\d{4}-?W\d{1,2}|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|(?:19|20)\d{6}"


def read_tables(path: Path, sheet: str | None = None) -> Table:
    """Read a file, all files of a folder, or the files of a pattern such as `sales/*.csv`, as one table.

    The files are read in the order of their names; rows of the later files are numbered on. Raises UserError as
    `read_table`, and when there is no file or the columns differ.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    elif any(letter in path.name for letter in "*?["):
        files = sorted(path.parent.glob(path.name))
    else:
        return read_table(path, sheet)
    if not files:
        raise UserError(f"{path} has no files; give a file, a folder with files or a pattern such as 'sales/*.csv'")
    tables = [read_table(file, sheet) for file in files]
    if len(tables) == 1:
        return tables[0]
    for table in tables[1:]:
        if set(table.columns) != set(tables[0].columns):
            other = sorted(set(table.columns) ^ set(tables[0].columns))
            raise UserError(
                f"{table.path} and {tables[0].path} differ in the columns {other}; files must have the same"
            )
    notes = dict.fromkeys(note for table in tables for note in table.notes)
    cells, broken, offset = [], [], 0
    for table in tables:
        cells.append(table.cells.with_columns(pl.col(ROW) + offset))
        broken.append(table.broken.with_columns(pl.col(ROW) + offset))
        offset += max(pl.concat([table.cells[ROW], table.broken[ROW]]), default=0)
    together = pl.concat(cells, how="diagonal_relaxed")
    return Table(path, together, pl.concat(broken), (f"{len(files)} files", *notes))


def unpivoted(table: Table, day: str, value: str) -> Table:
    """A table with a column per week, whose names are dates, as rows with the columns `day` and `value`.

    Raises UserError when fewer than two columns are named by a date.
    """
    weekly = [name for name in table.columns if re.fullmatch(_DATE_NAME, name)]
    if len(weekly) < 2:
        raise UserError(
            f"{table.path}: --wide needs columns whose names are dates such as 2024-09-15 or weeks such as 2024-W37, "
            f"its columns are {[short(name, 30) for name in table.columns[:8]]}; rename the columns of the weeks"
        )
    others = [name for name in table.cells.columns if name not in weekly]
    rows = table.cells.unpivot(weekly, index=others, variable_name=day, value_name=value)
    # A row of the file becomes a row per week; the number of the file's row stays that of its first one.
    rows = rows.sort(ROW, maintain_order=True)
    numbered = rows.with_columns((pl.col(ROW) - 1) * len(weekly) + pl.int_range(pl.len()).over(ROW) + 1)
    return replace(table, cells=numbered, notes=(*table.notes, f"a column per week: {len(weekly)} weeks"))
