"""What an import says in the terminal, or as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from salescast.cli import output

if TYPE_CHECKING:
    from salescast.data.import_report import FileReport, ImportReport, OpeningDays


def import_report(report: "ImportReport", out: Path | None, as_json: bool) -> None:
    """What became of the rows of the files; `out`: the folder that was written, None when the files were only read."""
    from salescast.data.import_report import reasons

    if as_json:
        values = asdict(report) | {"rejected": reasons(report.rejected).to_dicts()}
        output.console.print_json(json.dumps(values.pop("dataset") | {"report": values}, default=str))
        return
    output.dataset(report.dataset, out, as_json)
    for file in report.files:
        _file(file)
    for decision in report.decisions:
        output.done(decision)
    for sentence in report.warnings:
        output.warning(sentence)
    kinds = report.kinds
    output.done(
        f"series: {kinds.regular:,} regular, {kinds.slow:,} slow (no sale in half of their weeks), "
        f"{kinds.young:,} younger than a year, {kinds.ended:,} ended"
    )
    output.done(f"negative sales kept: {report.negative:,}; gaps inside series: {report.gaps:,} weeks")
    if report.opening is not None and report.opening.rows:
        _opening(report.opening)
    if report.empty_weeks:
        output.done(
            f"{report.empty_weeks:,} weeks between the first and the last have no sales at all: is a year mistyped?"
        )
    if report.rejected.height:
        table = Table(box=box.SIMPLE_HEAD, title="rejected rows", title_justify="left")
        for column in ("reason", "rows", "sales", "first row", "value"):
            table.add_column(column)
        for row in reasons(report.rejected).iter_rows(named=True):
            share = f"{report.lost.get(row['reason'], 0.0):.1%}"
            cells = (row["reason"], row["rows"], share, row["first_row"], row["value"])
            table.add_row(*(escape(str(cell)) for cell in cells))
        output.console.print(table)


def _file(file: "FileReport") -> None:
    parts = {
        "plan": file.plan_rows,
        "rejected": file.rejected,
        "repeated": file.merged,
        "without an amount": file.empty,
        "left out": file.left_out,
    }
    others = "".join(f", {count:,} {what}" for what, count in parts.items() if count)
    output.done(f"{file.file}: {file.rows:,} rows, {file.accepted:,} accepted{others}")
    if file.notes:
        output.done(f"  read as: {'; '.join(file.notes)}")
    if file.ignored_columns:
        names = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in file.ignored_columns)
        output.done(f"  not used: {names} (name columns known ahead with --planned)")


def _opening(opening: "OpeningDays") -> None:
    output.done(
        f"opening days are known for {opening.rows:,} of {opening.of_rows:,} rows of sales, "
        f"in {opening.weeks:,} of {opening.of_weeks:,} weeks; the others count as usual weeks"
    )
    if opening.closed:
        output.done(
            f"{opening.closed:,} rows with sales on 0 opening days are not used for training: are the days wrong?"
        )
