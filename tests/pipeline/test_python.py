"""The Python interface: light to import, the same results as the command line, frames as good as files."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import salescast
from salescast.data import dataset
from salescast.errors import UserError
from salescast.pipeline.source import dataset_source
from salescast.runtime.processes import free_port
from salescast.schema import KEYS
from salescast.workdir import Workdir

Finished = tuple[Path, subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
COLUMNS = {"store_id": "Store", "dept_id": "Dept", "week": "Date", "weekly_sales": "Weekly_Sales"}


def test_the_import_loads_no_library() -> None:
    heavy = {"polars", "numpy", "torch", "feast", "mlflow", "kserve", "pydantic", "httpx", "rich", "typer"}
    code = f"import salescast, sys; dir(salescast); print(sorted({heavy!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", salescast.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    assert getattr(salescast, name).__doc__
    assert name in dir(salescast)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'forecst'"):
        _ = salescast.forecst  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["file", "text", "polars", "pandas", "arrow"])
def test_files_and_frames_make_the_same_dataset(kind: str, raw: Path, sales_csv: Path, tmp_path: Path) -> None:
    sales = pl.read_parquet(raw / "sales.parquet").rename(COLUMNS)
    frames = {"polars": sales, "pandas": sales.to_pandas(), "arrow": sales.to_arrow()}
    given = {"file": sales_csv, "text": str(sales_csv), **frames}[kind]
    assert kind != "arrow" or isinstance(given, pa.Table)
    work = Workdir(tmp_path / "work")
    dataset_source(work, given, None, None, {"country": "US"})(work.raw)
    written = dataset.load(work.raw).sales.collect()
    assert written.equals(dataset.load(raw).sales.collect())


def test_a_bad_row_of_a_frame_is_named(tmp_path: Path) -> None:
    work = Workdir(tmp_path / "work")
    sales = pl.DataFrame({"Store": [1, 1], "Dept": [1, 1], "Date": ["2024-01-05", "soon"], "Weekly_Sales": [1.0, 2.0]})
    with pytest.raises(UserError, match=r"1 of 2 rows cannot be used"):
        dataset_source(work, sales, None, None, {})(work.raw)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run in .*run `salescast run` first"):
        salescast.load(tmp_path)


def test_a_server_that_is_not_there_is_an_error_that_says_so() -> None:
    from salescast.serving.client import ServerError

    with salescast.Client(f"http://127.0.0.1:{free_port()}") as client:
        assert client.ready() is False
        with pytest.raises(ServerError, match=r"no answer from .*; is the server running there") as caught:
            client.forecast([(1, 1)])
    assert caught.value.status is None


@pytest.fixture(scope="module")
def served(finished_run: Finished) -> Iterator[tuple[salescast.FinishedRun, salescast.Client]]:
    run = salescast.load(finished_run[0])
    with run.serve() as client:
        yield run, client


@pytest.mark.slow
def test_a_loaded_run_has_what_the_files_have(finished_run: Finished, tmp_path: Path) -> None:
    workdir = finished_run[0]
    run = salescast.load(workdir)
    assert run.summary()["rows"] == run.sales().height == 1200
    assert run.scores().to_dicts() == run.summary()["scores"]
    assert run.scores().equals(salescast.scores(run.backtest()))
    forecasts = pl.read_parquet(workdir / "forecasts.parquet").sort(*KEYS, "week")
    assert_frame_equal(run.forecast().sort(*KEYS, "week"), forecasts, rel_tol=1e-6)
    assert_frame_equal(run.forecast(2, 3, weeks=4), forecasts.filter(store_id=2, dept_id=3).head(4), rel_tol=1e-6)
    assert run.series().height == 12
    assert run.history(2, 3, weeks=10)["week"].max() == date.fromisoformat(run.summary()["last_week"])
    assert pl.read_csv(run.write_forecasts(tmp_path / "forecasts.csv")).height == forecasts.height


@pytest.mark.slow
def test_the_client_has_the_offline_numbers(served: tuple[salescast.FinishedRun, salescast.Client]) -> None:
    run, client = served
    assert client.ready() and client.model()["name"] == "sales-forecast"
    series = run.series().rows()
    columns = [*KEYS, "week", "horizon", "forecast", "p10", "p90"]
    answer = client.forecast(series)
    expected = run.forecast().sort(*KEYS, "week")
    assert answer.select(columns[:4]).equals(expected.select(columns[:4]))
    for name in columns[4:]:
        assert (answer[name] / expected[name] - 1).abs().max() < 1e-6
    few = client.forecast(reversed(series[:2]), weeks=3, quantiles=[0.5, 0.8])
    assert few["store_id", "dept_id"].unique(maintain_order=True).rows() == series[1::-1]
    assert few.height == 6 and {"p50", "p80"} <= set(few.columns)
    assert client.forecast([]).is_empty()


@pytest.mark.slow
def test_many_series_are_asked_for_in_parts(
    served: tuple[salescast.FinishedRun, salescast.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    from salescast.serving import client as module

    run, client = served
    complete = client.forecast(run.series().rows())
    monkeypatch.setattr(module, "SERIES", 5)
    assert client.forecast(run.series().rows()).equals(complete)


@pytest.mark.slow
def test_the_servers_reason_is_in_the_error(served: tuple[salescast.FinishedRun, salescast.Client]) -> None:
    from salescast.serving.client import ServerError

    with pytest.raises(ServerError, match=r"answered 400: .*instances\[0\] \(store_id 99, dept_id 1\)") as caught:
        served[1].forecast([(99, 1)])
    assert caught.value.status == 400


@pytest.mark.slow
def test_the_examples_run(served: tuple[salescast.FinishedRun, salescast.Client]) -> None:
    _, client = served
    expected = client.forecast([(1, 1), (1, 2)], weeks=4)
    for command in ([sys.executable, "examples/client.py"], ["sh", "examples/request.sh"]):
        done = subprocess.run([*command, client.url], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if command[0] == "sh":
            shown = [value for answer in json.loads(done.stdout)["predictions"] for value in answer["forecast"]]
        else:
            shown = pl.read_csv(done.stdout.encode())["forecast"].to_list()
        assert shown == expected["forecast"].to_list()
