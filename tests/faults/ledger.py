"""A pytest plugin: what the tests marked `fault` have tried becomes the table of docs/reliability.md.

python -m pytest -p tests.faults.ledger -m fault --reliability docs/reliability.md
"""

import os
import platform
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

HEAD = """# Reliability: what can go wrong has been tried

Written by `make faults`, not by hand: {date}, {machine}, {minutes:.0f} minutes. Every fault is tried on real processes
and files, at random moments and places where there are any. After each one: a clear error in one line or the right
result, earlier results as they were or the whole new ones, and the same command again succeeds without cleaning up.

| fault | tried | promised | what happened |
|---|---|---|---|
"""
FOOT = """
{total} tries, {failed} failed. Left out on this machine: {skipped}.

Fuzzing of imports (`make fuzz`) and the soak of the server (`make soak`) have their numbers in [LOG.md](LOG.md).
"""


@dataclass
class Row:
    """One fault over all tests that try it."""

    promised: str
    tried: int = 0
    failed: int = 0
    happened: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Ledger:
    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.skipped, self.began = path, {}, set(), time.monotonic()

    def add(self, item: pytest.Item, report: pytest.TestReport) -> None:
        mark = item.get_closest_marker("fault")
        if mark is None or (report.when != "call" and report.passed):
            return
        what, promised = mark.args
        if report.skipped:
            self.skipped.add(what)
            return
        row = self.rows.setdefault(what, Row(promised))
        outcomes = [value for name, value in report.user_properties if name == "happened"]
        row.tried += max(len(outcomes), 1)
        row.failed += report.failed
        for outcome in outcomes or ["as promised"]:
            row.happened["FAILED" if report.failed else outcome] += 1

    def write(self) -> None:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        minutes = (time.monotonic() - self.began) / 60
        text = HEAD.format(date=datetime.now(UTC).date(), machine=machine, minutes=minutes)
        for what, row in self.rows.items():
            happened = ", ".join(f"{count} x {name}" for name, count in sorted(row.happened.items()))
            text += f"| {what} | {row.tried} | {row.promised} | {happened} |\n"
        total, failed = (sum(getattr(row, name) for row in self.rows.values()) for name in ("tried", "failed"))
        skipped = ", ".join(sorted(self.skipped - self.rows.keys())) or "nothing"
        self.path.write_text(text + FOOT.format(total=total, failed=failed, skipped=skipped))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, help="File to write the table of faults to.")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--reliability")
    if path:
        config.stash[LEDGER] = Ledger(path)


LEDGER = pytest.StashKey[Ledger]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    ledger = item.config.stash.get(LEDGER, None)
    if ledger:
        ledger.add(item, report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    ledger = session.config.stash.get(LEDGER, None)
    if ledger:
        ledger.write()
