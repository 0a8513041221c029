"""From days and receipts to weeks: sum, name each week by its last day, leave out the unfinished last one."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import polars as pl

from salescast.errors import UserError

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SUNDAY: Final = 7
_DAILY: Final = 4  # different weekdays with at least a tenth of the rows; more are no weekly data


@dataclass(frozen=True)
class Weeks:
    """How dates become weeks.

    `daily`: rows are days; None = find out. `summed`: several rows of a series and day are parts of one amount.
    `starts`, `ends`: the weekday (Monday = 1) on which weeks start or end; at most one is given, None = find out.
    """

    daily: bool | None = None
    summed: bool = False
    starts: int | None = None
    ends: int | None = None

    def __post_init__(self) -> None:
        if self.starts is not None and self.ends is not None:
            raise UserError("weeks have one name; give --week-starts or --week-ends, not both")

    @property
    def last_day(self) -> int | None:
        """The weekday that ends a week, if it was given."""
        return self.ends if self.starts is None else (self.starts + 5) % 7 + 1


@dataclass(frozen=True)
class Dated:
    """What the dates of the sales are: days or weeks, and the weekday (Monday = 1) that ends a week.

    `moved`: dates are brought to the end of their week; False = a date on another weekday is wrong. `note` says what
    was found out and not given.
    """

    daily: bool
    last_day: int
    moved: bool
    note: str | None = None


def weekday_of(text: str) -> int:
    """Monday = 1. Raises UserError for what is not a weekday."""
    found = [number for number, name in enumerate(WEEKDAYS, 1) if len(text) >= 2 and name.startswith(text.lower())]
    if len(found) != 1:
        raise UserError(f"{text!r} is not a weekday; give one of {', '.join(WEEKDAYS)}")
    return found[0]


def dated(days: pl.Series, weeks: Weeks, file: str) -> Dated:
    """What the dates of the sales are. `days` has no nulls and at least one date.

    Raises UserError when the weekday of weekly dates changes at some date, or when they lie on many weekdays.
    """
    counts = days.dt.weekday().value_counts().sort(["count", days.name], descending=[True, False])
    spread = counts.filter(pl.col("count") * 70 >= days.len()).height
    if spread >= _DAILY if weeks.daily is None else weeks.daily:
        last_day = weeks.last_day or SUNDAY
        name = WEEKDAYS[last_day - 1].title()
        said = "" if weeks.last_day else "; --week-ends names another day"
        return Dated(True, last_day, True, f"dates are days, summed to weeks that end on {name}{said}")
    if weeks.last_day is not None:
        return Dated(False, weeks.last_day, True)
    usual = int(counts[days.name][0])
    if spread == 2:
        _check_change(days, usual, int(counts[days.name][1]), file)
    if 2 * counts["count"][0] < days.len():
        raise UserError(
            f"{file} is not weekly: its dates lie on {counts.height} different weekdays; "
            "say --daily if they are days, or --week-ends sunday to bring all to one day"
        )
    note = None
    if usual == 1:
        note = (
            "dates are Mondays, taken as the last day of the week; "
            "say --week-starts monday if they are the first day, so that holidays lie in the right week"
        )
    return Dated(False, usual, False, note)


def _check_change(days: pl.Series, usual: int, other: int, file: str) -> None:
    """Raises UserError when the dates lie on one weekday up to some date and on another one after it."""
    first, second = (days.filter(days.dt.weekday() == day) for day in (usual, other))
    for before, after in ((first, second), (second, first)):
        last, start = before.max(), after.min()
        if isinstance(last, date) and isinstance(start, date) and last < start:
            names = [WEEKDAYS[day.isoweekday() - 1].title() for day in (last, start)]
            raise UserError(
                f"{file}: dates are {names[0]}s up to {last} and {names[1]}s from {start}; "
                f"say --week-ends {names[0].lower()} to bring all of them to one day"
            )


def week_of(day: pl.Expr, last_day: int) -> pl.Expr:
    """The last day of the week of a day."""
    return day + pl.duration(days=(pl.lit(last_day) - day.dt.weekday().cast(pl.Int64)) % 7)


def unfinished(days: pl.Series, last_day: int, open_weekdays: set[int]) -> date | None:
    """The last week, if the data end before the last of its days on which shops are usually open."""
    last = days.max()
    assert isinstance(last, date)
    week = last + timedelta((last_day - last.isoweekday()) % 7)
    following = {(last + timedelta(k)).isoweekday() for k in range(1, (week - last).days + 1)}
    return week if following & open_weekdays else None


def open_weekdays(days: pl.Series) -> set[int]:
    """The weekdays (Monday = 1) with at least a tenth of the dates that an even spread would give them."""
    counts = days.dt.weekday().value_counts()
    return set(counts.filter(pl.col("count") * 70 >= days.len())[days.name])
