"""Bars with a rate for what takes longer than a moment: on a terminal, nowhere else."""

import sys
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


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
