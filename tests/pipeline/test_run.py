"""The whole pipeline from the command line: complete, repeatable, online equal to offline, one-line errors."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_series_equal

from salescast import schema
from salescast.evaluation.metrics import COLUMNS
from salescast.feature_store import repo
from salescast.model import bundle
from salescast.serving import batch, smoke_test
from salescast.workdir import Workdir

from .conftest import SMALL, salescast

pytestmark = pytest.mark.slow

Finished = tuple[Path, subprocess.CompletedProcess[str]]


def test_a_run_writes_all_results(finished_run: Finished) -> None:
    workdir, done = finished_run
    summary = json.loads(done.stdout)
    assert summary["rows"] == 1200 and summary["series"] == 12 and summary["features"] == 22
    assert {row["model"] for row in summary["scores"]} >= {
        "salescast",
        "growth_seasonal_naive",
        "seasonal_naive",
        "naive",
    }
    assert summary["version"] == 1 and summary["champion"] and summary["served"] == "the champion", summary["reason"]
    assert all(len(answer["forecast"]) == 8 for answer in summary["answers"])
    backtest = pl.read_parquet(workdir / "backtest.parquet")
    assert tuple(backtest.columns) == COLUMNS
    assert (backtest["week"] > backtest["cutoff"]).all()
    forecasts = pl.read_parquet(workdir / "forecasts.parquet")
    assert forecasts.height == 12 * 8 and forecasts.null_count().sum_horizontal().item() == 0
    assert (workdir / "report.html").stat().st_size > 100_000
    assert pl.read_parquet(workdir / "importance.parquet").height >= len(schema.FEATURE_GROUPS)


def test_a_second_run_changes_nothing(finished_run: Finished, sales_csv: Path, tmp_path: Path) -> None:
    workdir, done = finished_run
    copy = tmp_path / "work"
    shutil.copytree(workdir, copy)
    again = salescast("run", "--sales", str(sales_csv), "--workdir", str(workdir), "--json")
    assert again.returncode == 0, again.stderr
    first, second = json.loads(done.stdout), json.loads(again.stdout)
    assert second["version"] == 1 and second["digest"] == first["digest"]
    assert second["scores"] == first["scores"] and second["answers"][0]["forecast"] == first["answers"][0]["forecast"]
    for name in ("backtest.parquet", "forecasts.parquet", "data/sales_features.parquet"):
        assert (workdir / name).read_bytes() == (copy / name).read_bytes(), name
    assert len(list((workdir / "data" / "training").iterdir())) == 1


def test_the_same_seed_gives_the_same_bundle_in_another_folder(finished_run: Finished, tmp_path: Path) -> None:
    work = Workdir(tmp_path / "other")
    shutil.copytree(finished_run[0] / "data", work.root / "data", ignore=shutil.ignore_patterns("training"))
    shutil.copytree(finished_run[0] / "feature_repo", work.root / "feature_repo")
    for command in ("apply", "train"):
        again = salescast(command, "--workdir", str(work.root))
        assert again.returncode == 0, again.stderr
    assert bundle.load(work.models).digest == json.loads(finished_run[1].stdout)["digest"]


def test_online_features_are_the_offline_features_of_the_upcoming_week(finished_run: Finished) -> None:
    work = Workdir(finished_run[0])
    offline = batch.upcoming(work).sort(schema.KEYS)
    store = repo.open_store(work)
    answer = store.get_online_features(
        features=store.get_feature_service(schema.INFERENCE_SERVICE_SEASONAL),
        entity_rows=offline.select(schema.KEYS).to_dicts(),
    ).to_dict()
    names = [name for name in offline.columns if name not in (*schema.KEYS, schema.TIMESTAMP)]
    assert set(names) == set(answer) - set(schema.KEYS)
    for name in names:
        online = pl.Series(name, answer[name], dtype=offline[name].dtype)
        if isinstance(online.dtype, pl.List):  # what is missing in a list is NaN online
            online = online.list.eval(pl.element().fill_nan(None))
        assert_series_equal(online, offline[name], rel_tol=1e-6)


def test_the_evaluated_bundle_is_registered_and_served(
    finished_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train`, `backtest`, `register`, `serve` in another registry, with an unevaluated model between."""
    work = Workdir(tmp_path / "work")
    shutil.copytree(finished_run[0], work.root, ignore=shutil.ignore_patterns("champion", "mlflow.db", "mlartifacts"))
    shutil.copytree(work.models, tmp_path / "evaluated")
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    place = ("--workdir", str(work.root))

    def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
        return salescast(*arguments, *place, cwd=tmp_path, MLFLOW_TRACKING_URI=uri)

    assert command_line("train", "--horizon", "4").returncode == 0
    shutil.copytree(work.models, tmp_path / "not-evaluated")
    refused = command_line("register")
    assert refused.returncode == 1
    assert "not what the backtest evaluated (horizon: 4, 8)" in refused.stderr and "`salescast train`" in refused.stderr
    assert "has no sales-forecast@champion" in command_line("serve").stderr, "the last model is not evaluated"
    for command in ("train", "backtest", "register"):
        done = command_line(command)
        assert done.returncode == 0, done.stderr
    evaluated = bundle.load(work.models).digest
    assert evaluated == bundle.load(tmp_path / "evaluated").digest
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(work.models)  # the last bundle differs from the champion again
    shutil.copytree(tmp_path / "not-evaluated", work.models)
    one = {"instances": [{"store_id": 1, "dept_id": 2}]}
    with smoke_test.server(work) as url:
        answer = httpx.post(f"{url}/v1/models/{schema.MODEL_NAME}:predict", json=one, timeout=60).json()
    assert answer["model_version"] == evaluated[:12]
    offline = json.loads(command_line("forecast", "--store", "1", "--dept", "2", "--json").stdout)
    assert np.allclose([row["forecast"] for row in offline], answer["predictions"][0]["forecast"], rtol=1e-6)


def test_the_forecast_file_comes_from_the_bundle_in_the_workdir(finished_run: Finished) -> None:
    work = Workdir(finished_run[0])
    model = bundle.load(work.models)
    rows = batch.upcoming(work)
    expected = model.predict(rows)
    table = pl.read_parquet(work.forecasts).sort(*schema.KEYS, "horizon")
    assert np.allclose(table["forecast"].to_numpy().reshape(-1, 8), expected.at(0.5), rtol=1e-6)


def test_feast_itself_works_in_the_feature_repo(finished_run: Finished) -> None:
    repo = Workdir(finished_run[0]).feature_repo
    feast = Path(sys.executable).with_name("feast")
    for command in (
        ["apply"],
        ["materialize", "2020-01-01T00:00:00", "2030-01-01T00:00:00"],
        ["feature-services", "list"],
    ):
        done = subprocess.run([feast, *command], cwd=repo, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert schema.INFERENCE_SERVICE_SEASONAL in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run", "--sales", "no-such.csv"], "no-such.csv"),
        (["data", "import", "--sales", "{csv}", "--map", "Store", "--out", "x"], "--map must be NAME=COLUMN"),
        (["data", "import", "--sales", "{csv}", "--map", "Store=shop", "--out", "x"], "shop"),
        (["features", "--data", "nowhere"], "no dataset in nowhere"),
        (["apply"], "run `salescast features` first"),
        (["retrieve"], "run `salescast features` first"),
        (["train"], "no dataset in"),
        (["backtest", "--data", "nowhere"], "no dataset in nowhere"),
        (["backtest", "--cutoffs", "soon"], "--cutoffs must be dates like"),
        (["backtest", "--out", "tested.xls"], "end the name with .csv, .parquet or .xlsx"),
        (["register"], "no model bundle in"),
        (["forecast", "--store", "1", "--model-dir", "m"], "no model bundle in m"),
        (["forecast", "--store", "1"], "has no sales-forecast@champion"),
        (["forecast"], "no series given; add --store"),
        (["forecast", "--all", "--out", "all.txt"], "end the name with .csv, .parquet or .xlsx"),
        (["forecast", "--store", "1", "--out", "one.csv"], "add --all"),
        (["report"], "salescast"),
        (["serve"], "has no sales-forecast@champion"),
        (["serve", "--model-dir", "m"], "no model bundle in m"),
    ],
)
def test_a_user_error_is_one_line(arguments: list[str], error: str, tmp_path: Path, sales_csv: Path) -> None:
    filled = [argument.format(csv=sales_csv) for argument in arguments]
    done = salescast(*filled, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert error in lines[0]


def test_a_taken_port_is_named(finished_run: Finished) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = salescast("serve", "--workdir", str(finished_run[0]), "--port", port)
    assert done.returncode == 1
    assert f"error: HTTP port {port} cannot be used: Address already in use; choose another one" in done.stderr


def test_an_interrupted_run_keeps_earlier_results_and_the_next_run_finishes(
    finished_run: Finished, sales_csv: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(finished_run[0], workdir)
    before = {name: (workdir / name).read_bytes() for name in ("forecasts.parquet", "models/model_metadata.json")}
    command = [sys.executable, "-m", "salescast.cli.app", "run", "--sales", str(sales_csv), "--workdir", str(workdir)]
    process = subprocess.Popen(
        [*command, "--horizon", "4"],
        env={**os.environ, **SMALL, "SALESCAST_VERBOSE": "true"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if "holdout epoch" in line:
            break
    process.send_signal(signal.SIGINT)
    last = process.stderr.read()
    assert process.wait() == 130
    assert "error: interrupted; finished work is kept" in last
    for name, content in before.items():
        assert (workdir / name).read_bytes() == content, name
    time.sleep(1)
    done = salescast("run", "--sales", str(sales_csv), "--workdir", str(workdir), "--horizon", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["answers"][0]["forecast"]) == 4
