"""Progress of long work on stderr: a bar with a rate, and messages while waiting."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

EVERY: Final = 15.0  # seconds between two lines when stderr is not a terminal


class HasSales(Protocol):
    """A chunk of a dataset."""

    @property
    def sales(self) -> pl.DataFrame: ...


Chunk = TypeVar("Chunk", bound=HasSales)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


def track_rows(chunks: Iterable[Chunk], title: str, rows: int) -> Iterator[Chunk]:
    """Yield the chunks; on a terminal, show a bar of the sales rows done, out of `rows`."""
    if not sys.stderr.isatty():
        yield from chunks
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=rows)
        for chunk in chunks:
            yield chunk
            bar.advance(task, chunk.sales.height)


@contextmanager
def waiting(title: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[str], None]]:
    """Yield a function to call repeatedly, while waiting, with the current activity of the other side.

    A terminal shows a spinner with the seconds so far; elsewhere a line is written every `EVERY` seconds.
    """
    start = clock()
    if sys.stderr.isatty():
        with Console(stderr=True).status(escape(title)) as status:
            yield lambda activity: status.update(escape(_line(title, clock() - start, activity)))
        return
    last = start

    def notify(activity: str) -> None:
        nonlocal last
        if clock() - last >= EVERY:
            last = clock()
            sys.stderr.write(f"{_line(title, last - start, activity)} ...\n")
            sys.stderr.flush()

    yield notify


def _line(title: str, seconds: float, activity: str) -> str:
    return f"{title}, {seconds:.0f} s: {activity[:80]}"
