"""How long a person waits: for the import, the help, a command's first output, and the report's first chart.

    python benchmarks/experience.py            # the chart needs chromium and chromedriver
    python benchmarks/experience.py --write    # also write docs/bench/experience.md

Every command runs in a new process, the median of five; the Python interpreter alone is the first row. The report is
one of demo data whose forecasts are last year's sales, opened from its file in headless Chromium.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from salescast.data import dataset
from salescast.report.build import build_report
from salescast.workdir import Workdir

TIMES = 5
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "python -c 'import salescast'": ("-c", "import salescast"),
    "salescast --version": ("-m", "salescast.cli.app", "--version"),
    "salescast --help": ("-m", "salescast.cli.app", "--help"),
}
FIRST: dict[str, tuple[str, ...]] = {
    "salescast run": ("run", "--workdir", "work"),
    "salescast data generate --out demo": ("data", "generate", "--out", "demo"),
    "salescast forecast --store 1 --dept 1": ("forecast", "--store", "1", "--dept", "1", "--workdir", "work"),
}
SERIES = {630: (45, 14), 30_000: (1000, 30)}
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1440,1000")


def whole(arguments: tuple[str, ...]) -> float:
    """Seconds of a command, the median of TIMES."""
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def first_output(arguments: tuple[str, ...]) -> float:
    """Seconds until a command writes anything, the median of TIMES; it is stopped then."""
    seconds = []
    for _ in range(TIMES):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "salescast.cli.app", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder)
            assert process.stdout
            process.stdout.read(1)
            seconds.append(time.perf_counter() - start)
            process.kill()
            process.communicate()
    return statistics.median(seconds)


def report_of(folder: Path, stores: int, depts: int) -> tuple[Path, float]:
    """A report, and the seconds that it took to write."""
    work = Workdir(folder)
    dataset.generate(work.raw, stores=stores, depts=depts)
    raw = dataset.load(work.raw)
    last = raw.meta.last_week
    rows = raw.sales.filter(pl.col("week").is_between(last - timedelta(weeks=51), last - timedelta(weeks=44))).collect()
    value = pl.col("weekly_sales")
    ahead = rows.select(
        "store_id", "dept_id", pl.col("week") + timedelta(weeks=52), forecast=value, mean=value,
        p10=0.9 * value, p90=1.1 * value,
    )  # fmt: skip
    steps = ((pl.col("week") - pl.lit(last)).dt.total_days() // 7).cast(pl.Int32)
    ahead.with_columns(horizon=steps).write_parquet(work.forecasts)
    start = time.perf_counter()
    return build_report(work), time.perf_counter() - start


def first_chart(path: Path) -> float:
    """Seconds from the address to the first chart, the median of TIMES."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in CHROMIUM:
        options.add_argument(argument)
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    seconds = []
    for _ in range(TIMES):
        page.get("about:blank")
        start = time.perf_counter()
        page.get(path.as_uri())
        WebDriverWait(page, 60, poll_frequency=0.01).until(
            lambda shown: shown.execute_script("return document.documentElement.dataset.ready")
        )
        seconds.append(time.perf_counter() - start)
    page.quit()
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    lines = ["| what | seconds |", "|---|---:|"]
    lines += [f"| `{title}` | {whole(arguments):.2f} |" for title, arguments in COMMANDS.items()]
    lines += [f"| `{title}`, first output | {first_output(arguments):.2f} |" for title, arguments in FIRST.items()]
    lines += ["", "| report of | written in s | MiB | first chart after s |", "|---:|---:|---:|---:|"]
    for series, (stores, depts) in SERIES.items():
        with tempfile.TemporaryDirectory() as folder:
            path, seconds = report_of(Path(folder), stores, depts)
            size = path.stat().st_size / 2**20
            chart = f"{first_chart(path):.2f}" if shutil.which("chromedriver") else "not measured"
            lines.append(f"| {series:,} series | {seconds:.1f} | {size:.2f} | {chart} |")
    print("\n".join(lines))
    if write:
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end"
        text = "\n\n".join((__doc__ or "").strip().split("\n\n")[::2])
        page = f"# Experience\n\n{text}\n\n`make bench-experience`, {datetime.now(UTC):%Y-%m-%d}, {machine}\n\n"
        Path("docs/bench/experience.md").write_text(page + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
