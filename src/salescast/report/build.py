"""One HTML file for the demand planner first, then the engineer: forecasts, their accuracy, the data, the run.

The file holds all it needs and opens without a network. `view` computes what it shows; the browser only draws it, with
uPlot (templates/uPlot.*, version 1.6.32 from npm, MIT license beside it).
"""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import jinja2
import numpy as np
import polars as pl

from salescast.data import dataset
from salescast.data.names import Names
from salescast.errors import UserError
from salescast.report.results import Results, RunRecord
from salescast.report.view import build_view
from salescast.runtime import parquet
from salescast.runtime.atomic_files import replace_file
from salescast.workdir import Workdir

MODEL_TITLES: Final = {
    "seasonal_naive": "same week last year",
    "growth_seasonal_naive": "same week last year, adjusted for growth",
    "naive": "last week repeated",
    "mean_4": "mean of the last 4 weeks",
}


def build_report(workdir: Workdir) -> Path:
    """Write `workdir.report` from what the other stages left in `workdir`; return its path.

    A part whose files do not exist is replaced by a sentence that names the command to run. Raises UserError when
    there are no sales, or a file cannot be read.
    """
    results = _read(workdir)
    view = build_view(results)
    own = {kind: results.shown(entity) for kind, entity in (("store", "store_id"), ("dept", "dept_id"))}
    jinja = environment()
    # Filters: an id as the retailer has it.
    jinja.filters |= {kind: lambda id_, names=names: names.get(int(id_), id_) for kind, names in own.items()}
    page = jinja.get_template("report.html").generate(vars(view))
    with replace_file(workdir.report) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page)
    return workdir.report


def environment() -> jinja2.Environment:
    """The templates of this package, with filters for numbers and dates."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("salescast.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "default": str, "allow_nan": False}
    made.filters |= {"number": number, "percent": percent, "day": day, "title_of": title_of}
    return made


def number(value: float | None) -> str:
    """With thousands separators, and decimals where the number is small; a missing one is a dash."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:,.2f}"


def percent(value: float | None, signed: bool = False) -> str:
    """A share as a percentage with one decimal; one that is missing or not defined is a dash."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:+.1%}" if signed else f"{value:.1%}"


def day(value: date) -> str:
    return f"{value.day} {value:%b %Y}"


def title_of(model: str) -> str:
    """A model's name in plain words."""
    return MODEL_TITLES.get(model, model)


def _read(workdir: Workdir) -> Results:
    path = workdir.root / "run.json"
    try:
        run: RunRecord = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `salescast run` again") from None
    raw = dataset.load(workdir.raw)
    forecasts = _table(workdir.forecasts, "salescast forecast --all", "forecast")
    if forecasts is not None and forecasts["week"].min() != raw.meta.last_week + timedelta(weeks=1):
        raise UserError(
            f"{workdir.forecasts} does not begin after the last week of the sales, {raw.meta.last_week}; "
            "run the stages from `salescast features` to `salescast forecast --all` with the new sales"
        )
    rejected = workdir.raw / dataset.REJECTED
    return Results(
        raw=raw,
        forecasts=forecasts,
        backtest=_table(workdir.backtest, "salescast backtest", "yhat"),
        importance=_table(workdir.root / "importance.parquet", "salescast backtest"),
        rejected=pl.read_csv(rejected, infer_schema=False) if rejected.exists() else None,
        run=run,
        names=Names.read(workdir.raw),
    )


def _table(path: Path, command: str, median: str | None = None) -> pl.DataFrame | None:
    """The table of a path, None without one. Forecasts written before they had a mean add up their `median`."""
    if not path.exists():
        return None
    table = parquet.read(path, f"run `{command}` again")
    return table.with_columns(mean=median) if median and "mean" not in table.columns else table
