"""Terminal output: results on stdout as tables of at most 80 columns or as JSON; progress and errors on stderr."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from salescast.data.dataset import Dataset
    from salescast.features.build import FeatureSummary
    from salescast.pipeline.monitor import Report
    from salescast.pipeline.reproduce import Comparison
    from salescast.pipeline.run import RunSummary
    from salescast.pipeline.stages import Trained
    from salescast.tracking.registry import Registration
    from salescast.workdir import Workdir

console: Final = Console(highlight=False)
progress_console: Final = Console(stderr=True, highlight=False)

OWN_BAR: Final = ("data", "features", "retrieval", "training", "serving")  # stages with a progress bar of their own
FIRST_COLUMN: Final = 9  # columns for the name before a path or an address
TITLES: Final = {"wmape": "WMAPE", "mape": "MAPE", "bias": "bias", "wql": "wQL", "coverage": "cov80"}

FORECAST: Final = ("p10", "forecast", "mean", "p90")  # columns of the table of one series


def failure(message: str) -> None:
    """One line on stderr."""
    progress_console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)


def warning(message: str) -> None:
    """One line on stderr."""
    progress_console.print(f"[bold yellow]warning:[/] {escape(' '.join(message.split()))}", soft_wrap=True)


def done(message: str) -> None:
    """A line on stdout, never wrapped: a path in it can be copied and opened."""
    console.print(escape(message), soft_wrap=True)


def lines(rows: Mapping[str, object]) -> None:
    """Names and paths, addresses or commands, one pair a line, never wrapped."""
    for name, value in rows.items():
        console.print(f"[dim]{name:<{FIRST_COLUMN}}[/] {escape(str(value))}", soft_wrap=True)


def as_json_or(values: Any, as_json: bool, text: Any) -> None:
    """Print `values` as JSON, or `text`, anything that Rich prints."""
    if as_json:
        console.print_json(json.dumps(values, default=str))
    else:
        console.print(text)


def result(text: str, values: dict[str, Any], as_json: bool) -> None:
    """The result of a stage in one line."""
    if as_json:
        as_json_or(values, True, None)
    else:
        done(text)


def addresses(urls: dict[str, str], as_json: bool) -> None:
    """The addresses of `salescast up`, each on a line of its own so that a terminal can open it."""
    if as_json:
        as_json_or(urls, True, None)
        return
    lines(urls)
    console.print("\nCtrl-C stops all of it")


@contextmanager
def stages() -> Iterator[Any]:
    """A spinner with the current stage; yields the function that sets its name."""
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


def dataset(meta: "Dataset", out: Path | None, as_json: bool) -> None:
    rows: list[tuple[str, object]] = [
        ("rows", f"{meta.rows:,}"),
        ("series", f"{meta.series:,} in {meta.stores:,} stores"),
        ("weeks", f"{meta.first_week} to {meta.last_week}"),
    ]
    if meta.noise_floor_mape is not None:
        rows.append(("best possible MAPE", f"{meta.noise_floor_mape:.2%} (the noise of the generator)"))
    as_json_or(asdict(meta), as_json, pairs("dataset", rows))
    if out and not as_json:
        lines({"folder": out})


def features(summary: "FeatureSummary", as_json: bool) -> None:
    rows = [(view, f"{count:,} rows") for view, count in summary.rows.items()]
    as_json_or(asdict(summary), as_json, pairs("features", [*rows, ("upcoming week", summary.upcoming)]))


def trained(result: "Trained", metrics: dict[str, Any], as_json: bool) -> None:
    as_json_or(asdict(result) | metrics, as_json, pairs("trained", list(metrics.items())))
    if not as_json:
        lines({"bundle": result.final})


def registration(result: "Registration | None", as_json: bool) -> None:
    if result is None:
        as_json_or(None, as_json, "tracking is switched off: nothing was registered")
        return
    rows = [("version", result.version), ("champion", "yes" if result.champion else "no"), ("why", result.reason)]
    as_json_or(asdict(result), as_json, pairs("registered", rows))


def monitored(report: "Report", as_json: bool) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="forecasts and the sales that followed", title_justify="left")
    for column in report.by_week.columns:
        table.add_column(TITLES.get(column, column), justify="right")
    for week, rows, *measures in report.by_week.iter_rows():
        table.add_row(str(week), f"{rows:,}", *(share(value) for value in measures))
    as_json_or(asdict(report) | {"by_week": report.by_week.to_dicts()}, as_json, table)
    for text in report.beyond:
        failure(f"{text} in the last weeks; check the data, then train again")


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def reproduced(comparisons: "Sequence[Comparison]", as_json: bool) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="recorded run and repeated run", title_justify="left")
    for column in ("", "recorded", "now", "same"):
        table.add_column(column)
    for row in comparisons:
        table.add_row(row.what, escape(row.recorded[:24]), escape(row.now[:24]), "yes" if row.same else "no")
    as_json_or([asdict(row) | {"same": row.same} for row in comparisons], as_json, table)
    if not comparisons[-1].same:
        others = ", ".join(row.what for row in comparisons[:-1] if not row.same) or "nothing that the run record holds"
        failure(f"the bundle differs; also different: {others}")


def score_table(rows: Sequence[Mapping[str, Any]], noise_floor: float | None = None) -> Table:
    """Models and baselines with their pooled metrics, best first."""
    table = Table(box=box.SIMPLE_HEAD, title="backtest, all cutoffs", title_justify="left", caption_justify="left")
    if any((row["mape"] or 0) > 1 for row in rows):
        table.caption = "weeks with almost no sales dominate MAPE; see WMAPE, the error as a share of all sales"
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


def scores(rows: "pl.DataFrame", as_json: bool) -> None:
    as_json_or(rows.to_dicts(), as_json, score_table(rows.to_dicts()))


def forecast_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("week", *FORECAST):
        table.add_column(column, justify="left" if column == "week" else "right")
    for row in rows:
        table.add_row(
            str(row["week"]),
            *("-" if row[name] is None else f"{row[name]:,.0f}" for name in FORECAST),
        )
    return table


def forecast(rows: "pl.DataFrame", title: str, past: "pl.DataFrame | None", as_json: bool) -> None:
    """One series: its coming weeks, and a chart of them after its `past` sales where those are given."""
    as_json_or(rows.to_dicts(), as_json, forecast_table(rows.to_dicts(), title))
    if past is not None and not as_json:
        from salescast.cli.chart import chart

        console.print(chart(past, rows, console.width))


def summary(result: "RunSummary", work: "Workdir", as_json: bool) -> None:
    """The end of `salescast run`."""
    if as_json:
        console.print_json(json.dumps(asdict(result), default=str))
    else:
        _summary(result)
        console.print("\nwhat to do next", style="bold")
        lines(next_steps(result, work))
    if result.warning:
        warning(result.warning)


def _summary(result: "RunSummary") -> None:
    seconds = result.seconds
    rows: list[tuple[str, object]] = [
        ("rows", f"{result.rows:,} ({result.series:,} series, {result.first_week} to {result.last_week})"),
        ("features", f"{result.features} published, {result.seasonal_features} seasonal"),
        ("time", f"{sum(seconds.values()):.0f} s ({seconds['training']:.1f} s of it training)"),
        ("model", f"version {result.version}" if result.version else "not registered"),
        ("champion", f"{'yes' if result.champion else 'no'}: {result.reason}"),
        ("served", result.served),
    ]
    console.print(score_table(result.scores, result.noise_floor_mape))
    console.print(pairs("salescast", rows))
    if result.answers:
        console.print(answer_table(result.answers))
    lines({name: uri.removeprefix("sqlite:///") for name, uri in result.paths.items()})


def next_steps(result: "RunSummary", work: "Workdir") -> dict[str, str]:
    """Commands to type after a run: they use this workdir and the model that the run ended with."""
    from salescast.runtime import extras

    chosen = ["--workdir", str(work.root)] if work.root != Path("shared").resolve() else []
    if not result.served.startswith("the champion"):
        chosen += ["--model-dir", str(work.models)]
    first = result.answers[0] if result.answers else {"store": "1", "dept": "1"}
    series = ["--store", str(first["store"]), "--dept", str(first["dept"])]
    history = "SALESCAST_MAX_FEATURE_AGE_DAYS=inf " if _too_old_to_serve(result) else ""
    steps = {
        "forecast": shlex.join(["salescast", "forecast", *series, "--draw", *chosen]),
        "all": shlex.join(["salescast", "forecast", "--all", "--out", "forecasts.xlsx", *chosen]),
    }
    if extras.installed(extras.SERVE):
        steps["serve"] = history + shlex.join(["salescast", "up", *chosen])
    return steps


def _too_old_to_serve(result: "RunSummary") -> bool:
    """Whether the server would refuse the upcoming week as out of date. Demo data are served at any age."""
    from salescast.config import settings

    upcoming_age = (date.today() - date.fromisoformat(str(result.last_week))).days - 7
    return result.noise_floor_mape is None and upcoming_age > settings().max_feature_age_days


def answer_table(answers: Sequence[dict[str, Any]]) -> Table:
    """Answers of the server: one row a week, one column a series."""
    took = answers[0]["milliseconds"]
    table = Table(box=box.SIMPLE_HEAD, title=f"answer of the forecast server, {took} ms", title_justify="left")
    table.add_column("week")
    for answer in answers:
        table.add_column(f"store {answer['store']}, dept {answer['dept']}", justify="right")
    for week, *cells in zip(answers[0]["weeks"], *(_cells(answer) for answer in answers), strict=True):
        table.add_row(week, *cells)
    return table


def _cells(answer: dict[str, Any]) -> list[str]:
    columns = zip(answer["forecast"], answer["p10"], answer["p90"], strict=True)
    return ["-" if mid is None else f"{mid:,.0f} [dim]({low:,.0f}-{high:,.0f})[/]" for mid, low, high in columns]
