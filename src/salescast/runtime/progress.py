"""Signs of life of what takes longer than a moment, on stderr."""

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

EVERY: Final = 15.0  # seconds between two lines where there is no terminal


class Part(Protocol):
    """Some stores' share of a dataset."""

    @property
    def sales(self) -> pl.DataFrame: ...


Chunk = TypeVar("Chunk", bound=Part)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} rows/s" if task.speed else "")


def counted(chunks: Iterable[Chunk], title: str, rows: int) -> Iterator[Chunk]:
    """The chunks; while somebody watches, their rows of sales are counted on stderr as they are worked on."""
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
    """Yields a function that is called again and again with what the other side is doing, for as long as it takes.

    On a terminal that is a spinner with the seconds so far, elsewhere a line every `EVERY` seconds.
    """
    start = clock()
    if sys.stderr.isatty():
        with Console(stderr=True).status(escape(title)) as status:
            yield lambda doing: status.update(escape(_line(title, clock() - start, doing)))
        return
    told = start

    def tell(doing: str) -> None:
        nonlocal told
        if clock() - told >= EVERY:
            told = clock()
            sys.stderr.write(f"{_line(title, told - start, doing)} ...\n")
            sys.stderr.flush()

    yield tell


def _line(title: str, seconds: float, doing: str) -> str:
    return f"{title}, {seconds:.0f} s: {doing[:80]}"
