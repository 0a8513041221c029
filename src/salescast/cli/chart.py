"""A line chart of one series for the terminal, in Braille dots: 2 x 4 dots a character."""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    import polars as pl

HEIGHT: Final = 14  # rows of the plot itself
NARROWEST: Final = 40  # columns; below that the chart is cut off by the terminal
LEGEND: Final = 38  # columns of the legend
BRAILLE: Final = 0x2800
DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of a dot by row and column in its cell
BAND: Final = "░"
SALES_STYLE, FORECAST_STYLE, BAND_STYLE, AXIS_STYLE = "", "bold cyan", "cyan", "dim"

Point = tuple[date, float]
Cell = tuple[int, int]  # column from the left, row from the top


def chart(past: "pl.DataFrame", forecast: "pl.DataFrame", width: int = 80, height: int = HEIGHT) -> Text:
    """Sales and forecast by week: value axis on the left, dates below, a legend last.

    `past` has week and weekly_sales, `forecast` has week, forecast, p10, p90; nulls are left out and break the line.
    The text has `height` + 3 lines of at most `width` columns (at least NARROWEST).
    """
    sales = list(past.select("week", "weekly_sales").iter_rows())
    middle = list(forecast.select("week", "forecast").iter_rows())
    band = [row for row in forecast.select("week", "p10", "p90").iter_rows() if _known(row[1]) and _known(row[2])]
    values = [value for _, *numbers in (*sales, *middle, *band) for value in numbers if _known(value)]
    if not values:
        return Text("nothing to draw: no sales and no forecast")
    ticks = value_ticks(min(values), max(values), max(2, height // 3))
    labels = _labels(ticks)
    gutter = max(map(len, labels)) + 2
    weeks = [row[0] for row in (*sales, *middle)]
    plot = _Plot((min(weeks), max(weeks)), (ticks[0], ticks[-1]), max(width, NARROWEST) - gutter, height)
    layers = [
        (plot.line(middle), FORECAST_STYLE),
        (plot.line(sales), SALES_STYLE),
        (plot.band(band), BAND_STYLE),
        (plot.divider(sales, middle), AXIS_STYLE),
    ]
    rows = {plot.row(tick): label for tick, label in zip(ticks, labels, strict=True)}
    text = Text()
    for row in range(height):
        mark = "┤" if row in rows else "│"
        text.append(f"{rows.get(row, ''):>{gutter - 2}} {mark}", style=AXIS_STYLE)
        _append_row(text, layers, row, plot.width)
    _append_dates(text, plot, gutter)
    text.append(" " * min(gutter, max(width, NARROWEST) - LEGEND))
    for mark, name, style in (
        ("⠒⠒", "sales", SALES_STYLE),
        ("⠒⠒", "forecast", FORECAST_STYLE),
        (BAND * 2, "p10 to p90", BAND_STYLE),
    ):
        text.append(mark, style=style).append(f" {name}  ")
    return text


def value_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`; at most `most` + 2, at least two."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(size, 1e-3):  # too close to tell apart on an axis
        margin = (size if size > 1e-9 else 1.0) / 10
        low, high = low - margin, high + margin
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    # A bound that is a tick, but for rounding, needs no further one.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _labels(ticks: Sequence[float]) -> list[str]:
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0])))
    if decimals > 3 or max(map(abs, ticks)) >= 1e9:
        return [f"{tick:.4g}" for tick in ticks]
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


class _Plot:
    """The plotting area, `width` x `height` characters, and the position of dates and values in it."""

    def __init__(self, weeks: tuple[date, date], values: tuple[float, float], width: int, height: int) -> None:
        self.first, self.last, self.width, self.height = *weeks, width, height
        self._bottom, self._top = values
        self._days = max(1, (self.last - self.first).days)

    def column(self, week: date) -> int:
        return self._dot((week, self._bottom))[0] // 2

    def row(self, value: float) -> int:
        return self._dot((self.first, value))[1] // 4

    def _dot(self, point: Point) -> tuple[int, int]:
        """Dots from the left and from the top."""
        week, value = point
        across = (week - self.first).days / self._days * (2 * self.width - 1)
        down = (self._top - value) / (self._top - self._bottom) * (4 * self.height - 1)
        return round(across), round(down)

    def line(self, points: Iterable[tuple[date, float | None]]) -> dict[Cell, str]:
        """Straight lines between neighbouring points; a null between two points breaks the line."""
        masks: dict[Cell, int] = {}
        before: tuple[int, int] | None = None
        for week, value in points:
            dot = self._dot((week, value)) if value is not None and math.isfinite(value) else None
            for x, y in _between(before or dot, dot) if dot else ():
                masks[x // 2, y // 4] = masks.get((x // 2, y // 4), 0) | DOTS[y % 4][x % 2]
            before = dot
        return {cell: chr(BRAILLE + mask) for cell, mask in masks.items()}

    def band(self, rows: Sequence[tuple[date, float, float]]) -> dict[Cell, str]:
        """The cells between low and high, interpolated between the weeks."""
        cells = {(self.column(week), self.row(value)) for week, low, high in rows for value in (low, high)}
        corners = [(self.column(week), self.row(low), self.row(high)) for week, low, high in rows]
        for (start, *left), (stop, *right) in pairwise(corners):
            for column in range(start, stop + 1):
                share = (column - start) / max(1, stop - start)
                low, high = (round(a + share * (b - a)) for a, b in zip(left, right, strict=True))
                cells.update((column, row) for row in range(high, low + 1))
        cells.update((column, row) for column, low, high in corners for row in range(high, low + 1))
        return dict.fromkeys(cells, BAND)

    def divider(self, past: Sequence[Point], ahead: Sequence[Point]) -> dict[Cell, str]:
        """A vertical line between the last week of sales and the first of the forecast."""
        if not past or not ahead:
            return {}
        column = (self.column(past[-1][0]) + self.column(ahead[0][0])) // 2
        return {(column, row): "┊" for row in range(self.height)}

    def months(self) -> Iterator[date]:
        """First days of the months inside, as many as have room for a label."""
        count = (self.last.year - self.first.year) * 12 + self.last.month - self.first.month
        room = max(1, self.width // len("2012-01  "))
        step = next((step for step in (1, 2, 3, 6, 12) if count <= step * room), 12 * math.ceil(count / 12 / room))
        for number in range(count + 1):
            year, month = divmod(self.first.year * 12 + self.first.month - 1 + number, 12)
            day = date(year, month + 1, 1)
            if self.first <= day <= self.last and (year * 12 + month) % step == 0:
                yield day


def _between(start: tuple[int, int] | None, stop: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots of a straight line, both ends included."""
    (x0, y0), (x1, y1) = start or stop, stop
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    for step in range(steps + 1):
        yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)


def _append_row(text: Text, layers: Sequence[tuple[dict[Cell, str], str]], row: int, width: int) -> None:
    """One row of the plot; the first layer that has a mark in a cell wins."""
    for column in range(width):
        mark, style = next(
            ((marks[column, row], style) for marks, style in layers if (column, row) in marks), (" ", "")
        )
        text.append(mark, style=style)
    text.append("\n")


def _append_dates(text: Text, plot: _Plot, gutter: int) -> None:
    """The axis of dates and the labels below it."""
    axis, labels = ["─"] * plot.width, [" "] * plot.width
    free = 0
    for month in list(plot.months()) or [plot.first]:
        column = plot.column(month)
        label = f"{month:%Y-%m}"
        axis[column] = "┬"
        start = min(max(0, column - len(label) // 2), plot.width - len(label))
        if start >= free:
            labels[start : start + len(label)] = label
            free = start + len(label) + 1
    text.append(f"{'':{gutter - 1}}└{''.join(axis)}\n", style=AXIS_STYLE)
    text.append(f"{'':{gutter}}{''.join(labels).rstrip()}\n", style=AXIS_STYLE)
