"""From files with the retailer's own ids and products to forecasts, exports, report and API by these ids."""

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import salescast as api

from .conftest import salescast

pytestmark = pytest.mark.slow

STORES = ("München Süd", "S 07", "7")
ARTICLES = ("007", "7", "4006381333901")
LAST_DAY = date(2025, 12, 31)
WEEKS = pl.date_range(date(2024, 1, 7), LAST_DAY, "1w", eager=True)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own-ids")
    rng = np.random.default_rng(0)
    rows = [
        f"{store},{article},{week},{rng.integers(80, 120) * (1 + number)}"
        for store in STORES
        for number, article in enumerate(ARTICLES)
        for week in WEEKS
    ]
    (folder / "sales.csv").write_text("\n".join(["Store,Dept,Date,Weekly_Sales", *rows]))
    leaves = LAST_DAY + timedelta(weeks=3)
    (folder / "products.csv").write_text(
        f"Dept,Label,Category,Delisted\n007,Rye bread,Bread,\n7,Rolls,Bread,{leaves}\n4006381333901,Cheesecake,Cake,\n"
    )
    done = salescast(
        "run", "--sales", str(folder / "sales.csv"), "--products", str(folder / "products.csv"),
        "--workdir", str(folder / "work"), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert {answer["store"] for answer in answers} <= set(STORES)
    assert {answer["dept"] for answer in answers} <= set(ARTICLES)
    return folder / "work"


def test_exports_and_the_command_line_name_series_as_the_files_do(workdir: Path, tmp_path: Path) -> None:
    served = ("--workdir", str(workdir), "--model-dir", str(workdir / "models"))
    out = tmp_path / "forecasts.csv"
    assert salescast("forecast", "--all", "--out", str(out), *served).returncode == 0
    table = pl.read_csv(out, schema_overrides={"store": pl.String, "dept": pl.String})
    assert set(table.select("store", "dept").rows()) == {(s, a) for s in STORES for a in ARTICLES}
    shown = salescast("forecast", "--store", "München Süd", "--dept", "007", *served, "--json")
    assert shown.returncode == 0, shown.stderr
    own = table.filter(store="München Süd", dept="007")
    assert [row["forecast"] for row in json.loads(shown.stdout)] == pytest.approx(own["forecast"].to_list())


def test_a_delisted_article_is_forecast_as_0_after_its_last_day(workdir: Path) -> None:
    forecasts = pl.read_parquet(workdir / "forecasts.parquet")
    rolls = forecasts.filter(pl.col("dept") == "7").select("week", "forecast", "p90", "mean")
    gone = pl.col("week") - timedelta(6) > LAST_DAY + timedelta(weeks=3)
    assert rolls.filter(gone).height and rolls.filter(gone).drop("week").to_numpy().max() == 0
    assert rolls.filter(~gone)["forecast"].min() > 100
    assert forecasts.filter(pl.col("dept") != "7")["forecast"].min() > 50


def test_the_report_shows_labels_and_categories(workdir: Path) -> None:
    page = (workdir / "report.html").read_text()
    assert "007 Rye bread" in page and "By category" in page and "c:Bread" in page


def test_the_server_answers_by_the_ids_of_the_files(workdir: Path) -> None:
    run = api.load(workdir)
    with run.serve() as client:
        served = client.forecast([("München Süd", "007"), ("7", "7")])
    assert served.select("store", "dept").unique(maintain_order=True).rows() == [("München Süd", "007"), ("7", "7")]
    offline = run.forecast("München Süd", "007")
    assert served.filter(dept="007")["forecast"].to_list() == pytest.approx(offline["forecast"].to_list(), rel=1e-5)
