"""The report of an import as one HTML file."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from salescast.data.import_report import ImportReport, LargeSeries, reasons
from salescast.report.build import environment
from salescast.runtime.atomic_files import replace_file

HEIGHT: Final = 56.0  # of a line, in the units of the template


def write_import_page(report: ImportReport, path: Path) -> None:
    """Write what an import did as an HTML file that needs nothing else."""
    jinja = environment()
    jinja.filters["lines"] = lines
    page = jinja.get_template("import.html").render(
        report=report,
        dataset=report.dataset,
        source=Path(report.dataset.source).name,
        reasons=reasons(report.rejected).to_dicts(),
        made=datetime.now(UTC),
    )
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def lines(series: LargeSeries) -> Iterator[str]:
    """The points of a line through the sales, interrupted where a week is missing."""
    known = [value for value in series.sales if value is not None]
    low, high = min(0.0, *known), max(0.0, *known)
    scale = HEIGHT / (high - low or 1.0)
    part: list[str] = []
    for week, value in enumerate(series.sales):
        if value is None:
            yield from [" ".join(part)] if part else []
            part = []
        else:
            part.append(f"{week},{2 + scale * (high - value):.1f}")
    yield from [" ".join(part)] if part else []
