"""The rules for cells and rows of an imported file, and the list of rows that break them.

Inside, columns have the names of the dataset (`COLUMNS`); reasons name them as the file does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from salescast import retail_calendar
from salescast.data import tables
from salescast.data.tables import ROW
from salescast.errors import UserError
from salescast.schema import KEYS, LABEL

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
    "known_at": "known_at",
}
REQUIRED: Final = ("Store", "Date", "Weekly_Sales")
PLANNED: Final = "planned:"  # prefix inside, since a planned column may have any name in the file
MAX_SALES: Final = 1e15  # with larger values, sums over stores lose single sales
REJECTED: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "column": pl.String(),
    "value": pl.String(),
    "reason": pl.String(),
}
_INT32: Final = (-(2**31), 2**31 - 1)
_PARSERS: Final[dict[str, tables.Parser]] = {
    "week": tables.day,
    "known_at": tables.time,
    "store_type": tables.text,
    "region": tables.text,
}


@dataclass(frozen=True)
class Rule:
    """A row for which `passes` is false is rejected with `reason`; null passes.

    `column` names the cell that is wrong, by its name inside; None = the row as a whole.
    """

    passes: pl.Expr
    reason: str
    column: str | None = None


def _number_rule(name: str, label: str, open_days: bool) -> Rule:
    """What a parsed number must be. NaN stands for a cell that is not a number."""
    value = pl.col(name)
    whole = value == value.floor()
    if name in KEYS:
        return Rule(value.is_between(*_INT32) & whole, f"{label} is not a whole number of 32 bits", name)
    if name == LABEL:
        return Rule(value.abs() <= MAX_SALES, f"{label} is not a number within +-{MAX_SALES:.0e}", name)
    if name == "store_size":
        return Rule(value.is_between(0, MAX_SALES) & whole, f"{label} is not a whole number, 0 or more", name)
    if open_days:
        return Rule(value.is_between(0, 7), f"{label} is not a number of days, 0 to 7", name)
    return Rule(value.cast(pl.Float32).is_finite(), f"{label} is not a finite number", name)


def _cell_rules(labels: Mapping[str, str], open_days: str) -> list[Rule]:
    """What the parsed cells must be, in the order in which reasons are given. `labels` are the names in the file."""
    rules = []
    for name, label in labels.items():
        if name == "week":
            first, last = retail_calendar.FIRST_DAY, retail_calendar.LAST_DAY
            rules.append(Rule(pl.col(name).is_between(first, last), f"{label} is not within {first} to {last}", name))
        elif name == "known_at":
            rules.append(Rule(pl.col(name) > tables.INVALID_TIME, f"{label} is not an ISO date or time", name))
        elif name not in _PARSERS:
            rules.append(_number_rule(name, label, name == open_days))
    hints = {"week": " or not a date like 2012-10-26"}
    missing = (
        Rule(pl.col(name).is_not_null(), f"{labels[name]} is missing{hints.get(name, '')}", name)
        for name in labels
        if name in (*KEYS, "week")
    )
    return [*rules, *missing]


class Source:
    """An input file while its rows are being validated.

    `rows` has the parsed rows that no rule has rejected: ROW and the columns of `label`, by their names inside.
    `label` maps a name inside to the column's name in the file; `planned` lists the planned columns of the file.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        mapping: Mapping[str, str],
        planned: Sequence[str],
        open_days: str | None = None,
    ) -> None:
        """Read the file and apply the rules for cells. Raises UserError when it or a required column is missing."""
        table = tables.read_table(path)
        self.path, self.total, self.columns = path, table.rows, table.columns
        self.label = _labels(path, table.columns, columns, mapping)
        self.planned = [name for name in planned if name in table.columns]
        self.label |= {PLANNED + name: name for name in self.planned}
        cells = pl.DataFrame({name: table.cells[label] for name, label in self.label.items()})
        parsed = [_parser(name)(cells, name).alias(name) for name in self.label]
        self.rows = cells.select(parsed).with_columns(table.cells[ROW])
        self._cells = cells.with_columns(table.cells[ROW])
        self._rejected = [
            table.broken.select(pl.col(ROW).alias("row"), pl.lit(None).alias("column"), "value", "reason")
        ]
        self._apply(_cell_rules(self.label, f"{PLANNED}{open_days}"))

    def keep(self, passes: pl.Expr, reason: str, column: str | None = None) -> None:
        """Reject the rows for which `passes` is false; `column` is that of the wrong cell (see `Rule`)."""
        self._apply([Rule(passes, reason, column)])

    def keep_unique(self, *names: str) -> None:
        """Keep the first of the rows with the same values in these columns, as far as the file has them."""
        keys = [name for name in names if name in self.label]
        same = ", ".join(self.label[key] for key in keys)
        self.keep(pl.struct(keys).is_first_distinct(), f"a second row for the same {same}")

    def _apply(self, rules: Sequence[Rule]) -> None:
        """Remove the rows that break a rule and record the first rule that each of them breaks."""
        broken = pl.coalesce(pl.when(~rule.passes).then(i) for i, rule in enumerate(rules))
        found = self.rows.select(ROW, rule=broken)
        rejected = found.filter(pl.col("rule").is_not_null())
        if rejected.height:
            self._rejected.append(self._described(rejected, rules))
            self.rows = self.rows.filter(found["rule"].is_null())

    def _described(self, rejected: pl.DataFrame, rules: Sequence[Rule]) -> pl.DataFrame:
        """Rejected rows (ROW, rule = index into `rules`) as REJECTED, with the cells as they are in the file."""
        cells = {i: pl.col(rule.column).cast(pl.String) for i, rule in enumerate(rules) if rule.column}
        labels = {i: self.label[rule.column] for i, rule in enumerate(rules) if rule.column}
        index = pl.col("rule")
        return rejected.join(self._cells, on=ROW, how="left", maintain_order="left").select(
            pl.col(ROW).alias("row"),
            index.replace_strict(labels, default=None, return_dtype=pl.String).alias("column"),
            pl.coalesce(*(pl.when(index == i).then(cell) for i, cell in cells.items()), pl.lit(None)).alias("value"),
            index.replace_strict({i: rule.reason for i, rule in enumerate(rules)}).alias("reason"),
        )

    def rejected(self) -> pl.DataFrame:
        """The rejected rows (REJECTED) in the order of the file."""
        return pl.concat([part.cast(pl.Schema(REJECTED)) for part in self._rejected]).sort("row")

    def ignored(self) -> tuple[str, ...]:
        """The columns of the file that are not used."""
        used = set(self.label.values())
        return tuple(name for name in self.columns if name not in used)


def _parser(name: str) -> tables.Parser:
    return tables.number_or_yes_no if name.startswith(PLANNED) else _PARSERS.get(name, tables.number)


def _labels(path: Path, columns: Sequence[str], wanted: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Name inside -> name in the file, for each of the `wanted` columns that the file has."""
    labels = {}
    for name in wanted:
        # A mapping holds for all files, but another file may use the standard name.
        label = next((label for label in (mapping.get(name, name), name) if label in columns), None)
        if label is not None:
            labels[COLUMNS[name]] = label
        elif name in REQUIRED:
            raise UserError(
                f"{path} has no column {mapping.get(name, name)!r}, its columns are {list(columns)}; "
                f"name the right one with --map {name}=COLUMN"
            )
    return labels
