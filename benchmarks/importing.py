"""Import of receipts to weeks, beside Polars reading and grouping the same file without any check.

    python benchmarks/importing.py                    # 1 and 10 million receipts
    python benchmarks/importing.py --rows 1000000
    python benchmarks/importing.py --write            # also write docs/bench/importing.md

The receipts are made up: 40 shops with names, 500 articles with EAN-13, two years, a time of day, 1 to 5 pieces. Each
measurement runs in its own process; memory is its peak. The two must find the same sums by shop, article and week.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from salescast.data import ingest
from salescast.data.names import Names
from salescast.data.weeks import Weeks

COLUMNS = {"Store": "shop", "Dept": "article", "Date": "time", "Weekly_Sales": "pieces"}
SHOPS, ARTICLES, DAYS = 40, 500, 728  # days: whole weeks
WAYS = {"polars": "Polars, read_csv and group_by", "salescast": "`salescast data import --sum`"}


def generate(path: Path, rows: int) -> None:
    """A CSV file of receipts in the order of their days."""
    rng = np.random.default_rng(0)
    day = np.sort(rng.integers(0, DAYS, rows)).astype("timedelta64[D]")
    minute = rng.integers(9 * 60, 20 * 60, rows).astype("timedelta64[m]")
    article = (ARTICLES * rng.beta(1, 3, rows)).astype(np.int32)
    frame = pl.DataFrame(
        {
            "receipt": np.arange(rows) // 4,
            "shop": pl.Series([f"Shop {i:02d}" for i in range(SHOPS)]).gather(rng.integers(0, SHOPS, rows)),
            "article": pl.Series([str(4006381000000 + 37 * i) for i in range(ARTICLES)]).gather(article),
            "pieces": rng.integers(1, 6, rows),
            "time": (np.datetime64("2024-01-01T00:00:00") + day + minute).astype("datetime64[us]"),
        }
    )
    frame.write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S")


def with_polars(path: Path, out: Path) -> None:
    week = pl.col("time").str.to_datetime("%Y-%m-%d %H:%M:%S").dt.date().dt.truncate("1w").dt.offset_by("6d")
    table = pl.read_csv(path, schema_overrides={"article": pl.String}).group_by("shop", "article", week)
    table.agg(pl.col("pieces").sum()).write_parquet(out)


def with_salescast(path: Path, out: Path) -> None:
    ingest.import_sales(path, None, None, out, mapping=COLUMNS, weeks=Weeks(summed=True), gaps="unknown")


def same_sums(polars: Path, dataset: Path) -> bool:
    """Whether both found the same sums of the same series and weeks."""
    names = Names.read(dataset)
    ours = names.named(pl.read_parquet(dataset / "sales.parquet")).select("store", "dept", "week", "weekly_sales")
    theirs = pl.read_parquet(polars).select(
        pl.col("shop").alias("store"), pl.col("article").alias("dept"), pl.col("time").alias("week"), pl.col("pieces")
    )
    both = ours.join(theirs, on=["store", "dept", "week"], how="full")
    return both.height == ours.height == theirs.height and bool((both["weekly_sales"] == both["pieces"]).all())


def measure(way: str, path: Path, out: Path) -> None:
    """Run one way in this process and print its seconds and peak memory."""
    start = time.perf_counter()
    (with_polars if way == "polars" else with_salescast)(path, out)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "mib": peak}))


def compare(folder: Path, rows: int) -> list[str]:
    """The rows of the table for one file. Raises ValueError when the sums differ."""
    path = folder / "receipts.csv"
    generate(path, rows)
    lines, base = [], 0.0
    for way, title in WAYS.items():
        command = [sys.executable, __file__, "--one", way, str(path), str(folder / way)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        base = base or found["seconds"]
        size = path.stat().st_size / 2**20
        lines.append(
            f"| {rows:,} | {size:,.0f} | {title} | {found['seconds']:.1f} | {found['seconds'] / base:.1f} "
            f"| {found['mib']:,.0f} |"
        )
        print(lines[-1], flush=True)
    if not same_sums(folder / "polars", folder / "salescast"):
        raise ValueError(f"the sums of {rows} receipts differ")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "FILE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, path, out = options.one
        measure(way, Path(path), Path(out))
        return
    lines = ["| receipts | MiB | way | seconds | ratio | peak MiB |", "|---:|---:|---|---:|---:|---:|"]
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            lines += compare(Path(folder), rows)
    if options.write:
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end"
        text = "\n\n".join((__doc__ or "").split("\n\n")[::2])
        page = f"# Import\n\n{text.strip()}\n\n`make bench-import`, {datetime.now(UTC):%Y-%m-%d}, {machine}\n\n"
        Path("docs/bench/importing.md").write_text(page + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
