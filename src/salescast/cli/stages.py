"""Commands that run one stage of the pipeline each."""

from pathlib import Path
from typing import Annotated

import typer

from salescast.cli import output
from salescast.cli.options import (
    CutoffsOption,
    DataOption,
    HorizonOption,
    JsonOption,
    ServiceOption,
    WorkdirOption,
    config_of,
    dates_of,
    locked_workdir,
    names_of,
    workdir_beside,
)


def build_features(
    workdir: WorkdirOption = None, data: DataOption = None, horizon: HorizonOption = None, as_json: JsonOption = False
) -> None:
    """Compute the feature tables.

    Example: `salescast features --data mydata`
    """
    from salescast.pipeline import stages

    with locked_workdir(workdir) as work:
        summary = stages.features_stage(work, data or work.raw, config_of(horizon=horizon).horizon)
    output.features(summary, as_json)


def apply_repo(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Register entities, views and services in Feast.

    Example: `salescast apply`
    """
    from salescast.feature_store import repo

    with locked_workdir(workdir) as work:
        repo.apply(work)
    output.result(f"applied {work.feature_repo}", {"feature_repo": work.feature_repo}, as_json)


def retrieve_training_set(
    workdir: WorkdirOption = None, service: ServiceOption = None, as_json: JsonOption = False
) -> None:
    """Retrieve the training set by a point-in-time join.

    Example: `salescast retrieve --feature-service training_features`
    """
    from salescast.feature_store import retrieval

    with locked_workdir(workdir) as work:
        training = retrieval.retrieve(work, config_of(service).feature_service)
    output.result(f"training set in {training}", {"training": training}, as_json)


def train_model(
    workdir: WorkdirOption = None,
    horizon: HorizonOption = None,
    service: ServiceOption = None,
    cutoff: Annotated[
        str | None, typer.Option(help="Last week to learn from.", show_default="the last week of the data")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train one model with torchrun and write its bundle.

    Example: `salescast train --horizon 13`
    """
    from salescast.data import dataset
    from salescast.model.metadata import read_metadata
    from salescast.pipeline import stages

    with locked_workdir(workdir) as work:
        final = dates_of(cutoff, "--cutoff")[0] if cutoff else dataset.Dataset.read(work.data).last_week
        trained = stages.train_stage(work, config_of(service, horizon), [], final=final)
    output.trained(trained, read_metadata(trained.final).metadata.metrics, as_json)


def run_backtest(
    workdir: WorkdirOption = None,
    data: DataOption = None,
    cutoffs: CutoffsOption = None,
    horizon: HorizonOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .csv, .parquet, .xlsx.", show_default="WORKDIR/backtest.parquet")
    ] = None,
    service: ServiceOption = None,
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Train at the first cutoff only.")] = False,
    others: Annotated[
        str | None, typer.Option("--with", help="Reference models (extra `bench`): lightgbm,mstl,svd.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the model with the baselines on past weeks that it has not seen.

    With --data D and without --workdir, features and models go to the folder D.work beside D.

    Example: `salescast backtest --data mydata --cutoffs 2012-01-27,2012-04-27 --horizon 8 --out backtest.parquet`
    """
    from salescast.evaluation import metrics
    from salescast.pipeline import stages

    with locked_workdir(workdir or (data and workdir_beside(data))) as work:
        frame = stages.run_backtest(
            work,
            data or work.raw,
            config_of(service, horizon),
            dates_of(cutoffs) if cutoffs else None,
            out or work.backtest,
            refit=not no_refit,
            references=names_of(others),
        )
    output.scores(metrics.scores(frame), as_json)


def register_model(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Register the trained bundle; the winner of the backtest becomes the champion.

    The backtest must have the same settings and data: `salescast train`, `salescast backtest`, then this.

    Example: `salescast register`
    """
    from salescast.pipeline import stages
    from salescast.tracking.mlflow import require_tracking

    require_tracking()
    with locked_workdir(workdir) as work:
        result = stages.register_stage(work)
    output.registration(result, as_json)


def materialize_features(workdir: WorkdirOption = None, as_json: JsonOption = False) -> None:
    """Write the upcoming week of every series to the online store.

    Example: `salescast materialize`
    """
    from salescast.feature_store import repo

    with locked_workdir(workdir) as work:
        series = repo.materialize(work)
    output.result(f"the upcoming week of {series:,} series is in the online store", {"series": series}, as_json)
