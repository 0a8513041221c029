"""The report in headless Chromium: search, exceptions, downloads, keyboard, dark mode, phone, print, accessibility."""

import base64
import csv
import io
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from salescast.data import dataset
from salescast.data.names import SCHEMA
from salescast.report.build import build_report, day
from salescast.workdir import Workdir

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
)
HORIZON = 8
AXE = Path(__file__).parents[1] / "assets" / "axe-core" / "axe.min.js"
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
    "--force-prefers-reduced-motion",
)  # fmt: skip
Rows = list[list[str]]


def seasonal(raw: dataset.Raw) -> pl.DataFrame:
    """Last year's sales as the forecast of every series."""
    rows = raw.sales.filter(pl.col("week").is_between(*(raw.meta.last_week - timedelta(weeks=w) for w in (51, 44))))
    ahead = rows.with_columns(pl.col("week") + timedelta(weeks=52), forecast="weekly_sales").collect()
    steps = ((pl.col("week") - pl.lit(raw.meta.last_week)).dt.total_days() // 7).cast(pl.Int32)
    return ahead.with_columns(horizon=steps, p10=pl.col("forecast") * 0.9, p90=pl.col("forecast") * 1.1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """Demo data of 4 stores with forecasts and a backtest of two models."""
    work = Workdir(tmp_path_factory.mktemp("report"))
    dataset.generate(work.raw, stores=4, depts=3)
    raw = dataset.load(work.raw)
    seasonal(raw).drop("weekly_sales").write_parquet(work.forecasts)
    cutoff = raw.meta.last_week - timedelta(weeks=HORIZON)
    tested = raw.sales.filter(pl.col("week") > cutoff).rename({"weekly_sales": "y"}).collect()
    tested = tested.with_columns(
        cutoff=pl.lit(cutoff), horizon=((pl.col("week") - pl.lit(cutoff)).dt.total_days() // 7).cast(pl.Int32)
    )
    models = [
        tested.with_columns(
            yhat=pl.col("y") * (1 + off * (1 - 2 * (pl.col("horizon") % 2))),
            p10=pl.col("y") * 0.8,
            p90=pl.col("y") * 1.2,
            model=pl.lit(name),
        )
        for name, off in (("salescast", 0.05), ("naive", 0.3))
    ]
    pl.concat(models).write_parquet(work.backtest)
    build_report(work)
    return work


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    folder = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, work: Workdir) -> Iterator[webdriver.Chrome]:
    """The report, freshly opened; afterwards nothing may stand in the console and nothing was asked of a network."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(work.report.as_uri())
    drawn(browser)
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []


def drawn(page: webdriver.Chrome) -> None:
    WebDriverWait(page, 20).until(lambda p: p.execute_script("return document.documentElement.dataset.ready"))


def emulate(page: webdriver.Chrome, scheme: str = "light") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def screen(page: webdriver.Chrome, width: int) -> Iterator[None]:
    """A window of `width` CSS pixels, a phone's if that is narrow."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        WebDriverWait(page, 5).until(
            lambda p: p.execute_script(
                "const c = document.getElementById('chart'); return c.plot.width === c.clientWidth"
            )
        )
        yield
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def shown(page: webdriver.Chrome, name: str) -> None:
    WebDriverWait(page, 5).until(lambda p: p.find_element(By.ID, "picked").text == name)


def search(page: webdriver.Chrome, query: str) -> list[str]:
    """The names of the matches of `query`."""
    box = page.find_element(By.ID, "query")
    box.send_keys(Keys.ESCAPE, query)
    matches = page.find_elements(By.CSS_SELECTOR, "#matches:not([hidden]) [role=option]")
    return [page.execute_script("return arguments[0].firstChild.textContent", match) for match in matches]


def choose(page: webdriver.Chrome, query: str, name: str) -> None:
    assert search(page, query)[0] == name
    page.find_element(By.CSS_SELECTOR, "#matches [role=option]").click()
    shown(page, name)


def table(page: webdriver.Chrome) -> Rows:
    rows = page.find_elements(By.CSS_SELECTOR, "#weeks tbody tr")
    return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]


def numbers(rows: Rows, column: int) -> list[float]:
    return [float(row[column].replace(",", "")) for row in rows]


def forecast_line(page: webdriver.Chrome) -> list[float]:
    """What the chart holds under the name "forecast"."""
    return page.execute_script(
        """const { data, series } = document.getElementById("chart").plot;
        return data[series.findIndex((one) => one.label === "forecast")].filter((value) => value !== null);"""
    )


def downloaded(page: webdriver.Chrome, button: str, folder: Path) -> tuple[str, Rows]:
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.find_element(By.ID, button).click()
    while not (found := list(folder.glob("*.csv"))):
        time.sleep(0.05)
    return found[0].name, list(csv.reader(io.StringIO(found[0].read_text("utf-8-sig"))))


def test_it_opens_on_all_stores_and_any_series_can_be_found(page: webdriver.Chrome, work: Workdir) -> None:
    assert page.find_element(By.ID, "picked").text == "All stores, all departments"
    before_line, before_table = forecast_line(page), table(page)
    choose(page, "3 2", "Store 3, department 2")
    expected = pl.read_parquet(work.forecasts).filter(store_id=3, dept_id=2).sort("week")
    assert forecast_line(page) == pytest.approx(expected["forecast"].to_list(), rel=1e-6)
    assert forecast_line(page) != before_line
    rows = table(page)
    assert rows != before_table
    assert [row[0] for row in rows] == [day(week) for week in expected["week"]]
    for column, name in ((1, "p10"), (2, "forecast"), (3, "p90")):
        assert numbers(rows, column) == pytest.approx(expected[name].to_list(), abs=0.51)
        assert all(re.fullmatch(r"\d{1,3}(,\d{3})*", row[column]) for row in rows)
    assert "place=s%3A3&dept=2" in page.current_url


def test_the_search_reads_ids_names_and_fields(page: webdriver.Chrome, work: Workdir) -> None:
    assert search(page, "store 2 dept 3") == ["Store 2, department 3"]
    assert search(page, "dept 3 store 2") == ["Store 2, department 3"]
    assert search(page, "4")[0] == "Store 4, all departments"
    assert search(page, "2")[0] == "Store 2, all departments"
    assert set(search(page, "department 2")) == {
        "All stores, department 2", *(f"Store {store}, department 2" for store in range(1, 5)),
        *(f"Region {region}, department 2" for region in dataset.load(work.raw).stores["region"].unique()),
    }  # fmt: skip
    region = dataset.load(work.raw).stores.row(0, named=True)["region"]
    assert search(page, region[:3].lower())[0] == f"Region {region}, all departments"
    assert "Store 1, department 1" in search(page, region)
    assert search(page, "store 99") == []
    assert page.find_element(By.ID, "count").text == "Nothing matches."


def test_the_search_finds_every_series(page: webdriver.Chrome, work: Workdir) -> None:
    for store, dept in dataset.load(work.raw).sales.select("store_id", "dept_id").unique().collect().iter_rows():
        assert search(page, f"{store} {dept}") == [f"Store {store}, department {dept}"]


def test_the_keyboard_is_enough(page: webdriver.Chrome) -> None:
    def press(*keys: str) -> None:
        page.switch_to.active_element.send_keys(*keys)

    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    while page.switch_to.active_element.get_attribute("id") != "query":
        press(Keys.TAB)
    press("dept 2", Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    option = page.find_element(By.CSS_SELECTOR, "#matches [aria-selected=true]")
    assert page.switch_to.active_element.get_attribute("aria-activedescendant") == option.get_attribute("id")
    name = page.execute_script("return arguments[0].firstChild.textContent", option)
    press(Keys.ENTER)
    shown(page, name)
    press("1 1", Keys.ESCAPE)
    assert page.find_elements(By.CSS_SELECTOR, "#matches:not([hidden])") == []
    while page.switch_to.active_element.get_attribute("data-place") is None:
        press(Keys.TAB)
    who = page.switch_to.active_element.find_element(By.CSS_SELECTOR, ".who").text
    press(Keys.ENTER)
    shown(page, who)


def test_all_stores_have_a_range_of_their_own_and_one_department_of_them_has_none(
    page: webdriver.Chrome, work: Workdir
) -> None:
    forecasts = pl.read_parquet(work.forecasts)
    sums = forecasts.group_by("week").agg(pl.col("forecast").sum()).sort("week")
    assert numbers(table(page), 2) == pytest.approx(sums["forecast"].to_list(), abs=0.51)
    low, mid, high = (float(cell.replace(",", "")) for cell in table(page)[0][1:4])
    assert low <= mid <= high
    choose(page, "all dept 2", "All stores, department 2")
    sums = forecasts.filter(dept_id=2).group_by("week").agg(pl.col("forecast").sum()).sort("week")
    assert numbers(table(page), 2) == pytest.approx(sums["forecast"].to_list(), abs=0.51)
    assert {(row[1], row[3]) for row in table(page)} == {("–", "–")}
    labels = page.execute_script("return document.getElementById('chart').plot.series.map((one) => one.label)")
    assert "forecast" in labels and "low" not in labels


def test_exceptions_and_links_open_their_series(page: webdriver.Chrome, work: Workdir) -> None:
    first = page.find_element(By.CSS_SELECTOR, "#exceptions [data-place]")
    name = first.find_element(By.CSS_SELECTOR, ".who").text
    first.click()
    shown(page, name)
    page.get("about:blank")
    page.get(f"{work.report.as_uri()}#place=s:2&dept=3")
    drawn(page)
    assert page.find_element(By.ID, "picked").text == "Store 2, department 3"
    page.find_element(By.CSS_SELECTOR, '#totals [data-place="s:4"]').click()
    shown(page, "Store 4, all departments")
    page.back()
    shown(page, "Store 2, department 3")
    up = [button.text for button in page.find_elements(By.CSS_SELECTOR, "#up button")]
    assert up == ["Store 2, all departments", "All stores, department 3", "All stores, all departments"]
    page.find_element(By.CSS_SELECTOR, "#up button").click()
    shown(page, "Store 2, all departments")


def test_tables_can_be_saved(page: webdriver.Chrome, work: Workdir, tmp_path: Path) -> None:
    choose(page, "2 1", "Store 2, department 1")
    name, rows = downloaded(page, "download", tmp_path / "one")
    assert name == "forecast-store-2-department-1.csv"
    assert rows[0] == ["week", "low", "forecast", "high", "a_year_before", "holiday"]
    expected = pl.read_parquet(work.forecasts).filter(store_id=2, dept_id=1).sort("week")
    assert [row[0] for row in rows[1:]] == [str(week) for week in expected["week"]]
    assert [float(row[2]) for row in rows[1:]] == pytest.approx(expected["forecast"].to_list(), rel=1e-6)
    assert [float(row[4]) for row in rows[1:]] == pytest.approx(expected["forecast"].to_list(), rel=1e-6)
    _, everything = downloaded(page, "download-all", tmp_path / "all")
    assert everything[0] == ["store_id", "dept_id", "week", "low", "forecast", "high"]
    made = pl.read_parquet(work.forecasts).sort("store_id", "dept_id", "week")
    assert [row[:3] for row in everything[1:]] == [
        [str(key) for key in keys] for keys in made.select("store_id", "dept_id", "week").iter_rows()
    ]
    for column, values in ((3, "p10"), (4, "forecast"), (5, "p90")):
        assert [float(row[column]) for row in everything[1:]] == pytest.approx(made[values].to_list(), rel=1e-6)
    page.find_element(By.ID, "copy").click()
    WebDriverWait(page, 5).until(lambda p: "table is" in p.find_element(By.ID, "said").text)


def test_columns_can_be_sorted(page: webdriver.Chrome) -> None:
    heads = page.find_elements(By.CSS_SELECTOR, "#totals thead .sort")
    by_next = next(head for head in reversed(heads) if head.text.startswith("Next"))

    def column() -> list[float]:
        rows = by_next.find_elements(By.XPATH, "./ancestor::table/tbody/tr")
        return [float(row.find_elements(By.TAG_NAME, "td")[3].text.replace(",", "")) for row in rows]

    by_next.click()
    assert column() == sorted(column(), reverse=True)
    by_next.click()
    assert column() == sorted(column())
    assert by_next.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2) of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page: webdriver.Chrome, scheme: str) -> None:
    emulate(page, scheme)
    style: Callable[[WebElement, str], str] = lambda found, name: page.execute_script(  # noqa: E731
        "return getComputedStyle(arguments[0])[arguments[1]]", found, name
    )
    card = luminance(style(page.find_element(By.CSS_SELECTOR, ".card"), "backgroundColor"))
    assert (card > 0.5) == (scheme == "light")
    for selector in (".card h2", ".note", ".link", ".tiles dt", "thead th", "label"):
        text = luminance(style(page.find_element(By.CSS_SELECTOR, selector), "color"))
        low, high = sorted((text, card))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector
    stroke = "const u = document.getElementById('chart').plot; return u.series[1].stroke(u, 1)"
    WebDriverWait(page, 5).until(lambda p: (int(p.execute_script(stroke)[1:3], 16) > 128) == (scheme == "dark"))
    emulate(page)


@pytest.mark.parametrize("width", [1440, 768, 390])
def test_nothing_is_cut_off(page: webdriver.Chrome, width: int) -> None:
    with screen(page, width):
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        cut = page.execute_script(
            """return [...document.querySelectorAll(".scroll, .card, .chart, .tiles div")]
              .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.outerHTML.slice(0, 200));"""
        )
        assert cut == []
        choose(page, "4 1", "Store 4, department 1")
        cells = page.find_elements(By.CSS_SELECTOR, "#weeks tbody tr:first-child td.main")
        assert cells[0].text.split()[0] == f"{forecast_line(page)[0]:,.0f}"
        chart = page.find_element(By.ID, "chart").rect
        below = page.find_element(By.ID, "weeks").rect
        assert chart["y"] + chart["height"] <= below["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_is_dark_on_white_and_the_chart_stays_in_its_card(page: webdriver.Chrome, scheme: str) -> None:
    emulate(page, scheme)
    page.execute_script(
        """window.printed = null;
        window.matchMedia("print").addEventListener("change", (event) => {
          if (!event.matches) return;
          const one = (selector) => document.querySelector(selector);
          const box = (selector) => one(selector).getBoundingClientRect().toJSON();
          const { plot } = one("#chart");
          window.printed = {
            ink: getComputedStyle(one("h1")).color, card: getComputedStyle(one(".card")).backgroundColor,
            line: plot.series[1].stroke(plot, 1), canvas: box("#chart canvas"),
            forecast: box("#forecast"), chart: box("#chart"), weeks: box("#weeks"),
          };
        });"""
    )
    pdf = page.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True})
    assert base64.b64decode(pdf["data"]).startswith(b"%PDF")
    printed = page.execute_script("return window.printed")
    assert luminance(printed["ink"]) < 0.05 and luminance(printed["card"]) > 0.95
    red, green, blue = struct.unpack("3B", bytes.fromhex(printed["line"][1:]))
    assert luminance(f"rgb({red}, {green}, {blue})") < 0.1
    assert printed["canvas"]["right"] <= printed["forecast"]["right"]
    assert printed["canvas"]["bottom"] <= printed["chart"]["bottom"] <= printed["weeks"]["top"]
    assert not page.execute_script("return document.documentElement.classList.contains('printing')")
    emulate(page)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (768, "light"), (390, "dark")])
def test_axe_finds_nothing(page: webdriver.Chrome, width: int, scheme: str) -> None:
    emulate(page, scheme)
    page.execute_script(AXE.read_text())
    with screen(page, width):
        search(page, "1")
        found = page.execute_async_script(
            """const done = arguments[0];
            const named = (one) => [one.id, one.nodes.map((node) => node.html)];
            axe.run().then(({ violations }) => done(violations.map(named)));"""
        )
    assert found == []
    emulate(page)


def test_every_control_and_chart_has_a_name(page: webdriver.Chrome) -> None:
    unnamed = page.execute_script(
        """const all = [...document.querySelectorAll("input, button, [role=img], [role=figure], [role=region]")];
          const named = (found) => found.labels?.length || found.textContent.trim() || found.getAttribute("aria-label")
            || found.getAttribute("aria-labelledby");
          return all.filter((found) => !named(found)).map((found) => found.outerHTML);"""
    )
    assert unnamed == []
    assert page.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


def test_stores_and_departments_have_the_retailers_ids(
    browser: webdriver.Chrome, work: Workdir, tmp_path: Path
) -> None:
    named = Workdir(tmp_path / "named")
    shutil.copytree(work.root, named.root)
    own = [("store_id", 1, "1"), ("store_id", 2, "München Süd"), ("store_id", 3, "007"), ("store_id", 4, "4")]
    own += [("dept_id", 1, "Bread & rolls"), ("dept_id", 2, "2"), ("dept_id", 3, "3")]
    pl.DataFrame(own, schema=SCHEMA, orient="row").write_parquet(named.raw / "names.parquet")
    browser.get(build_report(named).as_uri())
    drawn(browser)
    choose(browser, "münchen bread", "Store München Süd, department Bread & rolls")
    assert search(browser, "007")[0] == "Store 007, all departments"
    _, rows = downloaded(browser, "download-all", tmp_path / "saved")
    assert rows[0][:4] == ["store", "dept", "store_id", "dept_id"]
    assert ["München Süd", "Bread & rolls", "2", "1"] in [row[:4] for row in rows]
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "table.sortable th[scope=row]")]
    assert {"München Süd", "007", "Bread & rolls"} <= set(cells)
