"""Which column of a file has which meaning."""

from collections.abc import Mapping, Sequence
from typing import Final

from salescast.data import plain
from salescast.data.readers import Table, short
from salescast.errors import UserError
from salescast.schema import LABEL

# The names that columns have in the files, and in the dataset.
COLUMNS: Final[dict[str, str]] = {
    "Store": "store_id",
    "Dept": "dept_id",
    "Date": "week",
    "Weekly_Sales": LABEL,
    "Temperature": "temperature",
    "Fuel_Price": "fuel_price",
    "CPI": "cpi",
    "Unemployment": "unemployment",
    "Type": "store_type",
    "Size": "store_size",
    "Region": "region",
    "Label": "label",
    "Category": "category",
    "Brand": "brand",
    "Price_Class": "price_class",
    "Listed": "begins",
    "Delisted": "ends",
    "Opened": "begins",
    "Closed": "ends",
    "known_at": "known_at",
}
REQUIRED: Final = ("Date", "Weekly_Sales")
JOINED: Final = "+"  # --map Date=Year+Week: a year and a week of it


def labels_of(table: Table, wanted: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Name inside -> name in the file, for each of the `wanted` columns that the file has.

    Case, and blanks at the ends, do not matter. Raises UserError when a required column is missing.
    """
    labels = {}
    required = REQUIRED if "Date" in wanted else wanted[:1]
    for name in wanted:
        # A mapping holds for all files, but another file may use the standard name.
        found = [_find(table, label) for label in (mapping.get(name, name), name)]
        label = found[0] or found[1]
        if label is not None:
            labels[COLUMNS[name]] = label
        elif name in required:
            raise UserError(_missing(table, name, mapping))
    return labels


def _find(table: Table, label: str) -> str | None:
    """A column by its name, or by a name that differs in case only; of `A+B` both."""
    if label in table.columns:
        return label
    if JOINED in label:
        parts = [_find(table, part) for part in label.split(JOINED, 1)]
        return None if None in parts else JOINED.join(part or "" for part in parts)
    same = [name for name in table.columns if name.strip().casefold() == " ".join(label.split()).casefold()]
    if len(same) > 1:
        raise UserError(f"{table.path}: the columns {same} differ by case only; rename one")
    return same[0] if same else None


def _missing(table: Table, name: str, mapping: Mapping[str, str]) -> str:
    weekly = [column for column in table.columns if plain.names_a_week(column)]
    if len(weekly) > 7:
        return (
            f"{table.path} has a column per week ({weekly[0]} to {weekly[-1]}); "
            "say --wide, with dates as the names of these columns"
        )
    columns = [short(column, 30) for column in table.columns[:20]]
    more = f" and {len(table.columns) - 20} more" if len(table.columns) > 20 else ""
    return (
        f"{table.path} has no column {mapping.get(name, name)!r}, its columns are {columns}{more}; "
        f"name the right one with --map {name}=COLUMN"
    )
