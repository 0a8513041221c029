"""Writes the pictures of README.md, docs/images/, from the finished run in `shared/`: `make pictures`.

The report as a headless Chromium shows it, on a desk and on a phone, and what `salescast forecast --draw` prints.
"""

import base64
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from salescast.cli import output
from salescast.cli.chart import chart
from salescast.serving import batch
from salescast.workdir import Workdir

FOLDER = Path(__file__).parent / "images"
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
SERIES = {"store": 1, "dept": 3}


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*CHROMIUM, "--force-prefers-reduced-motion"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def shoot(page: webdriver.Chrome, name: str, clip: dict[str, Any]) -> None:
    """A picture of a part of the page, in few enough colours to stay small."""
    shot = page.execute_cdp_cmd("Page.captureScreenshot", {"clip": {"x": 0, "y": 0, "scale": 1} | clip})
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)


def report(page: webdriver.Chrome, work: Workdir, name: str, width: int, height: int, scheme: str) -> None:
    phone = width < 600
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.get("about:blank")
    page.get(work.report.as_uri())
    WebDriverWait(page, 20).until(lambda p: p.execute_script("return document.documentElement.dataset.ready"))
    shoot(page, name, {"width": width, "height": height})


def terminal(page: webdriver.Chrome, work: Workdir, folder: Path) -> None:
    """What the command line draws, as it would look in a terminal of 80 columns."""
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False)
    rows = batch.forecast_one(work, SERIES["store"], SERIES["dept"], 8)
    console.print(output.forecast_table(rows.to_dicts(), f"store {SERIES['store']}, department {SERIES['dept']}"))
    console.print(chart(batch.history(work, SERIES["store"], SERIES["dept"]), rows, console.width))
    drawn = folder / "terminal.svg"
    console.save_svg(str(drawn), title="salescast forecast --store 1 --dept 3 --weeks 8 --draw")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.get(drawn.as_uri())
    box = page.execute_script("const b = document.documentElement.viewBox.baseVal; return [b.width, b.height]")
    width, height = (round(side) for side in box)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    shoot(page, "terminal.png", {"width": width, "height": height})
    drawn.unlink()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    work = Workdir((Path(__file__).parents[1] / "shared").resolve())
    page = browser()
    try:
        report(page, work, "report.png", 1280, 940, "light")
        report(page, work, "phone.png", 390, 844, "dark")
        terminal(page, work, work.root)
    finally:
        page.quit()


if __name__ == "__main__":
    main()
