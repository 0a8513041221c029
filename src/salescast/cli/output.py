"""What a person sees in the terminal: tables on stdout that fit 80 columns, or JSON; progress and errors on stderr."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from salescast.schema import LABEL

if TYPE_CHECKING:
    from salescast.data.dataset import Dataset
    from salescast.data.ingest import ImportReport
    from salescast.features.build import FeatureSummary
    from salescast.pipeline.monitor import Report
    from salescast.pipeline.reproduce import Comparison
    from salescast.pipeline.run import RunSummary
    from salescast.pipeline.stages import Trained
    from salescast.tracking.registry import Registration


def chart(past: pl.DataFrame, forecast: pl.DataFrame, height: int = 14) -> Text:
    """History and forecast fan for a terminal, one column a week: o sales, * forecast, a bar from p10 to p90."""
    sales = past[LABEL].cast(pl.Float64).to_numpy()
    middle, low, high = (forecast[name].cast(pl.Float64).to_numpy() for name in ("forecast", "p10", "p90"))
    known = np.concatenate([sales, low, high])
    known = known[np.isfinite(known)]
    if not len(known):
        return Text("nothing to draw: no sales and no forecast")
    bottom, top = float(known.min()), float(known.max())
    scale = (height - 1) / ((top - bottom) or 1.0)

    def line(values: NDArray[np.float64]) -> NDArray[Any]:
        return np.where(np.isfinite(values), np.round((values - bottom) * scale), -1)

    grid = [[" "] * (len(sales) + len(middle)) for _ in range(height)]
    for column, at in enumerate(line(sales).astype(int)):
        if at >= 0:
            grid[at][column] = "o"
    for column, (at, start, stop) in enumerate(zip(*(line(v).astype(int) for v in (middle, low, high)), strict=True)):
        if at >= 0:
            for between in range(start, stop + 1):
                grid[between][len(sales) + column] = "|"
            grid[at][len(sales) + column] = "*"
    text = Text()
    for number in range(height - 1, -1, -1):
        label = f"{bottom + number / scale:>12,.0f} " if number in (0, height // 2, height - 1) else " " * 13
        text.append(label, style="dim")
        text.append("".join(grid[number][: len(sales)]))
        text.append("".join(grid[number][len(sales) :]) + "\n", style="bold cyan")
    first = past["week"].item(0) if past.height else forecast["week"].item(0)
    text.append(f"{'':13}{first} to {forecast['week'].item(-1)}", style="dim")
    return text


console: Final = Console(highlight=False)
progress_console: Final = Console(stderr=True, highlight=False)

OWN_BAR: Final = (
    "data",
    "features",
    "retrieval",
    "training",
    "serving",
)  # stages that show how far they are themselves
TITLES: Final = {"wmape": "WMAPE", "mape": "MAPE", "bias": "bias", "wql": "wQL", "coverage": "cov80"}


def failure(message: str) -> None:
    """One line on stderr."""
    progress_console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)


def warning(message: str) -> None:
    """One line on stderr."""
    progress_console.print(f"[bold yellow]warning:[/] {escape(' '.join(message.split()))}", soft_wrap=True)


def done(message: str) -> None:
    console.print(escape(message), soft_wrap=True)


def as_json_or(values: Any, as_json: bool, text: Any) -> None:
    """Print `values` as JSON for machines, or `text` for people."""
    if as_json:
        console.print_json(json.dumps(values, default=str))
    else:
        console.print(text)


def result(text: str, values: dict[str, Any], as_json: bool) -> None:
    """What a stage did, in a line."""
    if as_json:
        as_json_or(values, True, None)
    else:
        done(text)


def addresses(found: dict[str, str], as_json: bool) -> None:
    """Where `salescast up` can be reached, each on a line of its own so that a terminal can open it."""
    lines = [f"[dim]{name:<9}[/] {escape(url)}" for name, url in found.items()]
    as_json_or(found, as_json, "\n".join([*lines, "", "Ctrl-C stops all of it"]))


@contextmanager
def stages() -> Iterator[Any]:
    """A spinner with the stage under way; yields the function that names it."""
    with progress_console.status("starting") as status:

        def started(stage: str) -> None:
            own = stage in OWN_BAR
            status.update(f"[bold]{stage}[/] ...")
            (status.stop if own else status.start)()
            if own or not progress_console.is_terminal:
                progress_console.print(f"{stage} ...")

        yield started


def pairs(title: str, rows: Sequence[tuple[str, object]]) -> Panel:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(str(value)))
    return Panel(table, title=title, title_align="left", box=box.ROUNDED, expand=False)


def dataset(meta: "Dataset", out: Path, as_json: bool) -> None:
    rows: list[tuple[str, object]] = [
        ("rows", f"{meta.rows:,}"),
        ("series", f"{meta.series:,} in {meta.stores:,} stores"),
        ("weeks", f"{meta.first_week} to {meta.last_week}"),
        ("folder", out),
    ]
    if meta.noise_floor_mape is not None:
        rows.append(("best possible MAPE", f"{meta.noise_floor_mape:.2%} (the noise of the generator)"))
    as_json_or(asdict(meta), as_json, pairs("dataset", rows))


def import_report(report: "ImportReport", out: Path, as_json: bool) -> None:
    from salescast.data.ingest import reasons

    dataset(report.dataset, out, as_json)
    if as_json:
        return
    for file in report.files:
        left_out = f", {file.rejected:,} rejected" if file.rejected else ""
        plan = f", {file.plan_rows:,} plan" if file.plan_rows else ""
        done(f"{file.file}: {file.rows:,} rows, {file.accepted:,} accepted{plan}{left_out}")
        if file.ignored_columns:
            done(f"  not used: {', '.join(file.ignored_columns)} (declare what is known ahead with --planned)")
    done(f"negative sales kept: {report.negative:,}; gaps inside series: {report.gaps:,} weeks")
    if report.opening is not None:
        opening = report.opening
        done(
            f"opening days are known for {opening.rows:,} of {opening.of_rows:,} rows of sales, "
            f"in {opening.weeks:,} of {opening.of_weeks:,} weeks; the others count as usual weeks"
        )
        if opening.closed:
            done(f"{opening.closed:,} rows with sales on 0 opening days are not learned from: are their days wrong?")
    if report.empty_weeks:
        done(f"{report.empty_weeks:,} weeks between the first and the last have no sales at all: is a year mistyped?")
    if report.rejected.height:
        table = Table(box=box.SIMPLE_HEAD, title="rejected rows", title_justify="left")
        for column in ("reason", "rows", "first_row", "value"):
            table.add_column(column.replace("_", " "))
        for row in reasons(report.rejected).iter_rows(named=True):
            table.add_row(*(escape(str(row[name])) for name in ("reason", "rows", "first_row", "value")))
        console.print(table)


def features(summary: "FeatureSummary", as_json: bool) -> None:
    rows = [(view, f"{count:,} rows") for view, count in summary.rows.items()]
    as_json_or(asdict(summary), as_json, pairs("features", [*rows, ("upcoming week", summary.upcoming)]))


def trained(result: "Trained", metrics: dict[str, Any], as_json: bool) -> None:
    as_json_or(asdict(result) | metrics, as_json, pairs("trained", [("bundle", result.final), *metrics.items()]))


def registration(result: "Registration | None", as_json: bool) -> None:
    if result is None:
        done("tracking is switched off: nothing was registered")
        return
    rows = [("version", result.version), ("champion", "yes" if result.champion else "no"), ("why", result.reason)]
    as_json_or(asdict(result), as_json, pairs("registered", rows))


def monitored(report: "Report", as_json: bool) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="forecasts beside the sales that followed", title_justify="left")
    for column in report.by_week.columns:
        table.add_column(TITLES.get(column, column), justify="right")
    for week, rows, *measures in report.by_week.iter_rows():
        table.add_row(str(week), f"{rows:,}", *(share(value) for value in measures))
    as_json_or(asdict(report) | {"by_week": report.by_week.to_dicts()}, as_json, table)
    for text in report.beyond:
        failure(f"{text} in the last weeks; look at the data first, then train again")


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def reproduced(found: "Sequence[Comparison]", as_json: bool) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="the run and its repetition", title_justify="left")
    for column in ("", "recorded", "now", "same"):
        table.add_column(column)
    for row in found:
        table.add_row(row.what, escape(row.recorded[:24]), escape(row.now[:24]), "yes" if row.same else "no")
    as_json_or([asdict(row) | {"same": row.same} for row in found], as_json, table)
    if not found[-1].same:
        others = ", ".join(row.what for row in found[:-1] if not row.same) or "nothing else that is recorded"
        failure(f"the bundle is another one; what differs beside it: {others}")


def score_table(rows: Sequence[Mapping[str, Any]], noise_floor: float | None = None) -> Table:
    """Models and baselines with their pooled metrics, best first."""
    table = Table(box=box.SIMPLE_HEAD, title="backtest, all cutoffs", title_justify="left", caption_justify="left")
    if any((row["mape"] or 0) > 1 for row in rows):
        table.caption = "MAPE is ruled by weeks with next to no sales; see WMAPE, the missed share of all"
    table.add_column("model")
    for title in TITLES.values():
        table.add_column(title, justify="right")
    for row in rows:
        cells = [
            "-" if row[name] is None else f"{row[name]:.4f}" if name == "wql" else f"{row[name]:.2%}" for name in TITLES
        ]
        table.add_row(row["model"], *cells, style="bold" if row is rows[0] else "")
    if noise_floor is not None:
        table.add_row("(noise of the data)", "", f"{noise_floor:.2%}", "", "", "", style="dim")
    return table


def scores(rows: pl.DataFrame, as_json: bool) -> None:
    as_json_or(rows.to_dicts(), as_json, score_table(rows.to_dicts()))


def forecast_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("week", "p10", "forecast", "p90"):
        table.add_column(column, justify="left" if column == "week" else "right")
    for row in rows:
        table.add_row(
            str(row["week"]),
            *("-" if row[name] is None else f"{row[name]:,.0f}" for name in ("p10", "forecast", "p90")),
        )
    return table


def forecast(rows: pl.DataFrame, title: str, drawing: Text | None, as_json: bool) -> None:
    """One series: its coming weeks, and a drawing if one was asked for."""
    as_json_or(rows.to_dicts(), as_json, forecast_table(rows.to_dicts(), title))
    if drawing is not None and not as_json:
        console.print(drawing)


def summary(result: "RunSummary", as_json: bool) -> None:
    """The end of `salescast run`."""
    if as_json:
        console.print_json(json.dumps(asdict(result), default=str))
    else:
        _summary(result)
    if result.warning:
        warning(result.warning)


def _summary(result: "RunSummary") -> None:
    seconds = result.seconds
    rows: list[tuple[str, object]] = [
        ("rows", f"{result.rows:,} ({result.series:,} series, {result.first_week} to {result.last_week})"),
        ("features", f"{result.features} published, {result.seasonal_features} seasonal"),
        ("retrieval", f"{seconds['retrieval']:.1f} s"),
        ("training", f"{seconds['training']:.1f} s"),
        ("all", f"{sum(seconds.values()):.0f} s"),
        ("model", f"version {result.version}" if result.version else "not registered"),
        ("champion", f"{'yes' if result.champion else 'no'}: {result.reason}"),
        ("served", result.served),
        *result.paths.items(),
    ]
    console.print(score_table(result.scores, result.noise_floor_mape))
    console.print(pairs("salescast", rows))
    if result.answers:
        console.print(answer_table(result.answers))


def answer_table(answers: Sequence[dict[str, Any]]) -> Table:
    """What the server answered: one row a week, one column a series."""
    took = answers[0]["milliseconds"]
    table = Table(box=box.SIMPLE_HEAD, title=f"the running server's answer, in {took} ms", title_justify="left")
    table.add_column("week")
    for answer in answers:
        table.add_column(f"store {answer['store_id']}, dept {answer['dept_id']}", justify="right")
    for week, *cells in zip(answers[0]["weeks"], *(_cells(answer) for answer in answers), strict=True):
        table.add_row(week, *cells)
    return table


def _cells(answer: dict[str, Any]) -> list[str]:
    columns = zip(answer["forecast"], answer["p10"], answer["p90"], strict=True)
    return ["-" if mid is None else f"{mid:,.0f} [dim]({low:,.0f}-{high:,.0f})[/]" for mid, low, high in columns]
