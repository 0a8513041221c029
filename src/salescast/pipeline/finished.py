"""A finished run, for Python: its accuracy, its forecasts, its report, its server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from salescast.data import dataset
from salescast.data.names import Names
from salescast.errors import UserError
from salescast.evaluation import metrics
from salescast.model import bundle
from salescast.model.metadata import read_metadata
from salescast.pipeline import stages
from salescast.report.build import build_report
from salescast.runtime import parquet
from salescast.serving import batch
from salescast.workdir import Workdir

if TYPE_CHECKING:
    from salescast.serving.client import Client


class FinishedRun:
    """What a run left in its workdir. Frames are Polars; `.to_pandas()` and `.to_arrow()` convert them.

    Raises UserError when there is no trained model in the workdir.
    """

    def __init__(self, work: Workdir) -> None:
        if not work.models.is_dir():
            raise UserError(f"no finished run in {work.root}: {work.models} is missing; run `salescast run` first")
        self._work = work

    def __repr__(self) -> str:
        return f"FinishedRun({str(self.workdir)!r})"

    @property
    def workdir(self) -> Path:
        """The folder of the run."""
        return self._work.root

    @cached_property
    def model_dir(self) -> Path:
        """The bundle that forecasts: the champion's, or this run's own where there is no champion to use."""
        horizon = read_metadata(self._work.models).metadata.config.horizon
        return stages.served(self._work, horizon)[0]

    def summary(self) -> dict[str, Any]:
        """run.json: rows, seconds by stage, model version, champion and why. Raises UserError without one."""
        path = self.workdir / "run.json"
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); run `salescast run` again") from None
        return values

    def sales(self) -> pl.DataFrame:
        """Observed sales: store_id, dept_id, week, weekly_sales."""
        return dataset.load(self._work.raw).sales.collect()

    def backtest(self) -> pl.DataFrame:
        """One row for each model, cutoff, series and week, with the sales that followed."""
        return parquet.read(self._work.backtest, "run `salescast backtest` again")

    def scores(self, by: tuple[str, ...] = ("model",)) -> pl.DataFrame:
        """Accuracy of the model and the baselines, see `salescast.scores`."""
        return metrics.scores(self.backtest(), by)

    def series(self) -> pl.DataFrame:
        """store_id, dept_id of every series that can be forecast, and `store`, `dept`: own ids that are text."""
        pairs = batch.upcoming(self._work).select("store_id", "dept_id").unique().sort("store_id", "dept_id")
        return Names.read(self._work.raw).named(pairs)

    def history(self, store: str | int, dept: str | int = 0, weeks: int = batch.PAST) -> pl.DataFrame:
        """The last `weeks` weeks of a series: week, weekly_sales (null in gaps)."""
        return batch.history(self._work, store, dept, weeks)

    def forecast(self, store: str | int | None = None, dept: str | int = 0, weeks: int | None = None) -> pl.DataFrame:
        """The coming weeks of one series, by the retailer's own ids, or of every series without `store`.

        Columns: store_id, dept_id, week, horizon (1 = first week), forecast (the median), mean, p10 ... p90; null where
        a series has nothing to start from. `weeks`: None for all that the model forecasts.
        Raises UserError for an unknown series and for more weeks than the model forecasts.
        """
        if store is not None:
            return batch.forecast_one(self._work, store, dept, weeks, self.model_dir)
        return batch.long_form(bundle.load(self.model_dir), batch.upcoming(self._work), weeks)

    def write_forecasts(self, out: str | Path | None = None) -> Path:
        """Write the forecasts of every series to a .csv, .parquet or .xlsx file (default: forecasts.parquet)."""
        path = Path(out) if out is not None else self._work.forecasts
        batch.write_all(self._work, path, self.model_dir)
        return path

    def write_report(self) -> Path:
        """Write report.html of the workdir; its path."""
        return build_report(self._work)

    @contextmanager
    def serve(self) -> "Iterator[Client]":
        """A forecast server of this run on a free port; yields its client and stops the server at the end.

        It reads the features that were last materialized, of any age.
        """
        from salescast.serving import smoke_test
        from salescast.serving.client import Client

        own = self.model_dir if self.model_dir == self._work.models else None
        with smoke_test.server(self._work, own) as url, Client(url) as client:
            yield client
