"""The rules for cells and rows of an imported file, and the list of rows that break them.

Inside, columns have the names of the dataset (`labels.COLUMNS`); reasons name them as the file does. Ids stay text
here: `records` gives them their numbers when all files are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import polars as pl

from salescast import retail_calendar
from salescast.data import names, plain
from salescast.data.attributes import GROUPS
from salescast.data.labels import JOINED
from salescast.data.readers import ROW, Table, short
from salescast.errors import UserError
from salescast.schema import KEYS, LABEL

PLANNED: Final = "planned:"  # prefix inside, since a planned column may have any name in the file
STOCK: Final = "stock:"  # the column that says when an article was out of stock
MAX_SALES: Final = 1e15  # with larger values, sums over stores lose single sales
REJECTED: Final[dict[str, pl.DataType]] = {
    "file": pl.String(),
    "row": pl.Int64(),
    "column": pl.String(),
    "value": pl.String(),
    "reason": pl.String(),
}
_TEXTS: Final = (*KEYS, "store_type", "region", "label", *GROUPS)
_DATES: Final = ("begins", "ends")
_NO_DATE: Final = date(1, 1, 1)  # stands for a cell that is not a date
_VALUE: Final = 200  # letters of a cell that are kept in the list of rejected rows


@dataclass(frozen=True)
class Form:
    """How cells are to be read where the file does not say: see `plain.dates`, `plain.numbers`, `read_table`."""

    date_format: str | None = None
    decimal: str | None = None
    sheet: str | None = None

    def __post_init__(self) -> None:
        if self.decimal not in (None, ".", ","):
            raise UserError(f"--decimal must be . or , and is {self.decimal!r}")


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
    if name == LABEL:
        return Rule(value.abs() <= MAX_SALES, f"{label} is not a number within +-{MAX_SALES:.0e}", name)
    if name == "store_size":
        whole = value == value.floor()
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
        elif name in _DATES:
            first, last = retail_calendar.FIRST_DAY, retail_calendar.LAST_DAY
            rules.append(Rule(pl.col(name).is_between(first, last), f"{label} is not a date, {first} to {last}", name))
        elif name == "known_at":
            rules.append(Rule(pl.col(name) > plain.INVALID_TIME, f"{label} is not an ISO date or time", name))
        elif name in KEYS:
            rounded = "is a number that a spreadsheet has rounded, export it as text"
            rules.append(Rule(~names.lost_digits(pl.col(name)), f"{label} {rounded}", name))
        elif name not in _TEXTS:
            rules.append(_number_rule(name, label, name == open_days))
    hints = {"week": " or not a date like 2012-10-26"}
    missing = (
        Rule(pl.col(name).is_not_null(), f"{labels[name]} is missing{hints.get(name, '')}", name)
        for name in labels
        if name in (*KEYS, "week")
    )
    return [*rules, *missing]


class Source:
    """The rows of one kind of table (sales, conditions of a week, stores) while they are being validated.

    `rows` has the parsed rows that no rule has rejected: ROW and the columns of `label`, by their names inside.
    `label` maps a name inside to the column's name in the file; `planned` lists the planned columns of the file.
    `notes` says what was read otherwise than plainly. `merged` counts rows that others contain.
    """

    def __init__(
        self, table: Table, labels: Mapping[str, str], planned: Sequence[str], form: Form, open_days: str | None = None
    ) -> None:
        """Parse the cells and apply the rules for them. Raises UserError when the meaning of a column stays open."""
        self.path, self.total, self.columns, self.merged = table.path, table.rows, table.columns, 0
        self.planned = [name for name in planned if name in table.columns]
        self.label = {**labels, **{PLANNED + name: name for name in self.planned}}
        self.notes = list(table.notes)
        cells = pl.DataFrame({name: _cells(table, label) for name, label in self.label.items()})
        parsed = [self._parsed(name, cells[name], form) for name in self.label]
        self.rows = pl.DataFrame(parsed).with_columns(table.cells[ROW])
        self._cells = cells.with_columns(table.cells[ROW])
        self._unused = table.cells.select(ROW, *self.ignored())
        self._amounts = self.rows.filter(pl.col("week").is_not_null()).select(ROW, LABEL) if LABEL in labels else None
        self._rejected = [
            table.broken.select(
                pl.lit(str(self.path)).alias("file"),
                pl.col(ROW).alias("row"),
                pl.lit(None).alias("column"),
                "value",
                "reason",
            )
        ]
        self._apply(_cell_rules(self.label, f"{PLANNED}{open_days}"))

    def _parsed(self, name: str, cells: pl.Series, form: Form) -> pl.Series:
        """The values of a column by the name inside."""
        label = self.label[name]
        notes: list[str] = []
        if name == "week":
            values, notes = plain.dates(cells, label, form.date_format)
        elif name in _DATES:
            found, notes = plain.dates(cells, label, form.date_format)
            values = pl.select(pl.when(plain.stripped(cells).is_not_null()).then(found.fill_null(_NO_DATE))).to_series()
        elif name == "known_at":
            values = plain.times(cells)
        elif name in KEYS:
            values = names.own_ids(plain.stripped(cells))
        elif name in _TEXTS:
            values = plain.stripped(cells)
        elif name.startswith((PLANNED, STOCK)):
            values, notes = plain.number_or_yes_no(cells, label, form.decimal)
        else:
            values, notes = plain.numbers(cells, label, form.decimal, ask=name == LABEL)
        self.notes += [note if name == "week" else f"{short(label, 30)}: {note}" for note in notes]
        return values.alias(name)

    def keep(self, passes: pl.Expr, reason: str, column: str | None = None) -> None:
        """Reject the rows for which `passes` is false; `column` is that of the wrong cell (see `Rule`)."""
        self._apply([Rule(passes, reason, column)])

    def merge_identical(self) -> None:
        """Keep one of the rows that are equal in every column of the file, also in those that are not used."""
        whole = self.rows.join(self._unused, on=ROW, how="left", maintain_order="left")
        found = whole.unique([name for name in whole.columns if name != ROW], keep="first", maintain_order=True)
        self.merged, self.rows = self.rows.height - found.height, found.select(self.rows.columns)

    def keep_unique(self, *columns: str) -> None:
        """Keep the first of the rows with the same values in these columns, as far as the file has them."""
        keys = [name for name in columns if name in self.label]
        if keys:
            same = ", ".join(self.label[key] for key in keys)
            self.keep(pl.struct(keys).is_first_distinct(), f"a second row for the same {same}")

    def apart(self) -> str | None:
        """The unused column whose value tells rows of the same series and date apart, if there is one."""
        keys = [name for name in (*KEYS, "week") if name in self.label]
        rows = self._cells.select(ROW, *keys).join(self._unused, on=ROW)
        candidates = (
            name for name in self.ignored() if not rows.select(pl.struct(*keys, name).is_duplicated().any()).item()
        )
        return next(candidates, None)

    def _apply(self, rules: Sequence[Rule]) -> None:
        """Remove the rows that break a rule and record the first rule that each of them breaks."""
        broken = pl.coalesce(pl.lit(None), *(pl.when(~rule.passes).then(i) for i, rule in enumerate(rules)))
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
            pl.lit(str(self.path)).alias("file"),
            pl.col(ROW).alias("row"),
            index.replace_strict(labels, default=None, return_dtype=pl.String).alias("column"),
            pl.coalesce(*(pl.when(index == i).then(cell) for i, cell in cells.items()), pl.lit(None, pl.String))
            .str.head(_VALUE)
            .alias("value"),
            index.replace_strict({i: rule.reason for i, rule in enumerate(rules)}).alias("reason"),
        )

    def rejected(self) -> pl.DataFrame:
        """The rejected rows (REJECTED) in the order of the file."""
        return pl.concat([part.cast(pl.Schema(REJECTED)) for part in self._rejected]).sort("row")

    def lost(self) -> dict[str, float]:
        """The share of all sales, without their signs, that the rejected rows have, by reason."""
        if self._amounts is None:
            return {}
        sizes = self._amounts.with_columns(pl.col(LABEL).abs()).filter(pl.col(LABEL).is_finite())
        total = float(sizes[LABEL].sum()) or 1.0
        found = self.rejected().join(sizes, left_on="row", right_on=ROW).group_by("reason").agg(pl.col(LABEL).sum())
        return {reason: amount / total for reason, amount in found.iter_rows()}

    def values(self, column: str) -> pl.Series:
        """The texts of an unused column."""
        return plain.stripped(self._unused[column])

    def ignored(self) -> tuple[str, ...]:
        """The columns of the file that are not used."""
        used = {part for label in self.label.values() for part in (label, *label.split(JOINED))}
        return tuple(name for name in self.columns if name not in used)


def _cells(table: Table, label: str) -> pl.Series:
    """The cells of a column, or of a year and a week together in ISO form."""
    if label in table.columns or JOINED not in label:
        return table.cells[label]
    year, week = (names.own_ids(plain.stripped(table.cells[part])) for part in label.split(JOINED, 1))
    return pl.select(pl.format("{}-W{}", year, week.str.zfill(2))).to_series()
