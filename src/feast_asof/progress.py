"""Progress bars: on a terminal, or with FEAST_ASOF_PROGRESS=1."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def wanted() -> bool:
    """Whether to show a progress bar."""
    asked = os.environ.get("FEAST_ASOF_PROGRESS", "")
    return asked == "1" or (asked != "0" and sys.stderr.isatty())


def steps(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """The items, with_row_count on stderr while they are consumed."""
    if not wanted():
        yield from items
        return
    yield from track(items, description=title, total=total, console=Console(stderr=True))
