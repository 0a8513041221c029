"""salescast: from a retailer's weekly sales to calibrated forecasts.

    import salescast

    run = salescast.run("train.csv", workdir="my-run")
    run.scores()                        # accuracy beside the baselines
    run.forecast(store=1, dept=3)       # the coming weeks of one series
    run.write_report()                  # one HTML file

    with run.serve() as client:         # or salescast.Client("http://localhost:8080")
        client.forecast([(1, 3), (1, 4)], weeks=8)

Everything is imported when it is used: `import salescast` is fast. Errors that a user can cause are UserError.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salescast.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from salescast.pipeline.finished import FinishedRun
    from salescast.pipeline.source import Table
    from salescast.serving.client import Client

__all__ = ["Client", "FinishedRun", "UserError", "backtest", "load", "run", "scores"]
__version__ = "0.1.0"


def run(
    sales: "Table | None" = None,
    *,
    features: "Table | None" = None,
    stores: "Table | None" = None,
    workdir: str | Path | None = None,
    cutoffs: Sequence[date] | None = None,
    horizon: int | None = None,
    feature_service: str | None = None,
    **import_options: Any,
) -> "FinishedRun":
    """Run the whole pipeline in `workdir` (default: SALESCAST_WORKDIR, else `shared`). Work that is valid is reused.

    `sales`, `features`, `stores`: a file (CSV, Excel, Parquet), or a frame (Polars, pandas, Arrow), with the columns
    that docs/your-data.md describes; without sales, demo data. `import_options` are those of `ingest.import_sales`:
    products (a file or a frame), mapping, planned, open_days, country, skip_bad_rows, and those on the form of the
    files. `cutoffs`: last weeks with known sales of the backtest. `horizon`: weeks ahead, 1 to 52; None:
    SALESCAST_HORIZON, else 8.

    Raises UserError when the data or a setting cannot be used, or another process holds the workdir.
    """
    from salescast.model.config import train_config
    from salescast.pipeline.finished import FinishedRun
    from salescast.pipeline.run import run as run_stages
    from salescast.pipeline.source import dataset_source
    from salescast.runtime.lock import locked

    work = _workdir(workdir)
    config = train_config(feature_service=feature_service, horizon=horizon)
    with locked(work.root):
        source = dataset_source(work, sales, features, stores, import_options)
        run_stages(work, source, config, cutoffs, lambda _stage: None)
    return FinishedRun(work)


def backtest(
    sales: "Table | None" = None,
    *,
    features: "Table | None" = None,
    stores: "Table | None" = None,
    workdir: str | Path | None = None,
    cutoffs: Sequence[date] | None = None,
    horizon: int | None = None,
    feature_service: str | None = None,
    refit: bool = True,
    reference_models: Sequence[str] = (),
    **import_options: Any,
) -> "pl.DataFrame":
    """Forecasts of the model and of every baseline from past cutoffs, with the sales that followed; see `scores`.

    Arguments as in `run`. Without `refit` the model of the first cutoff is used for all cutoffs. `reference_models`:
    lightgbm, mstl, svd (extra `bench`).

    Returns one row for each model, cutoff, series and week. Raises UserError as `run` does.
    """
    from salescast.model.config import train_config
    from salescast.pipeline.source import dataset_source
    from salescast.pipeline.stages import run_backtest
    from salescast.runtime.lock import locked

    work = _workdir(workdir)
    config = train_config(feature_service=feature_service, horizon=horizon)
    with locked(work.root):
        dataset_source(work, sales, features, stores, import_options)(work.raw)
        return run_backtest(work, work.raw, config, cutoffs, work.backtest, refit=refit, references=reference_models)


def load(workdir: str | Path | None = None) -> "FinishedRun":
    """The finished run in `workdir` (default: SALESCAST_WORKDIR, else `shared`).

    Raises UserError when there is no trained model in it.
    """
    from salescast.pipeline.finished import FinishedRun

    return FinishedRun(_workdir(workdir))


def scores(backtest: "pl.DataFrame", by: Sequence[str] = ("model",)) -> "pl.DataFrame":
    """Pooled WMAPE, MAPE, bias, wQL and coverage of p10 to p90 for a frame of `backtest`, lowest WMAPE first.

    `by`: any of model, cutoff, horizon, store_id, dept_id.
    """
    from salescast.evaluation import metrics

    return metrics.scores(backtest, by)


def _workdir(root: str | Path | None) -> Any:
    from salescast.config import settings
    from salescast.workdir import Workdir

    return Workdir(Path(root or settings().workdir).resolve())


_LAZY: Mapping[str, str] = {"Client": "salescast.serving.client", "FinishedRun": "salescast.pipeline.finished"}


def __getattr__(name: str) -> Any:
    """The classes of the public API, imported at their first use."""
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
