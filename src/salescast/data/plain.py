"""What the cells of a file mean: numbers and dates in the forms in which people and programs write them.

A form is decided for a column as a whole, from all of its cells. What stays open is asked and never guessed. A parsed
number is null where the cell is missing (empty, `NA` ...) and NaN where it is not a number.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Final

import polars as pl

from salescast.data.readers import short
from salescast.errors import UserError

MISSING: Final = ("", "-", "na", "n/a", "#n/a", "nan", "null", "none")
YES_NO: Final = {"true": "1", "yes": "1", "y": "1", "on": "1", "false": "0", "no": "0", "n": "0", "off": "0"}
# Stands for a time that cannot be parsed; earlier than every valid one.
INVALID_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
EXCEL: Final = "excel"  # `--date-format excel`: days since 1899-12-30
_EXCEL_DAY_0: Final = date(1899, 12, 30)
_SIGN: Final = r"(?:[$€£¥₹]|[a-z]{3}|fr\.|kr\.?|zł)"
_SIGN_BEFORE: Final = rf"(?i)^(-?)\s*{_SIGN}\s*(-?[\d(.,])"
_SIGN_BEHIND: Final = rf"(?i)([\d).,-])\s*{_SIGN}$"
_BLANKS: Final = "[\\s\u00a0\u202f'\u2019]"
_TIME: Final = r"[T ]\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?\s*(?:[AaPp][Mm])?(?:Z|[+-]\d\d:?\d\d)?$"
_NAMED_MONTHS: Final = (
    "%d-%b-%y", "%d-%b-%Y", "%d %b %y", "%d %b %Y", "%d %B %Y", "%d. %B %Y", "%b %d, %Y", "%B %d, %Y",
)  # fmt: skip


def stripped(cells: pl.Series) -> pl.Series:
    """Cells as text without surrounding blanks; null where the cell is one of MISSING."""
    if isinstance(cells.dtype, pl.List | pl.Array | pl.Struct | pl.Object | pl.Binary):
        raise UserError(f"column {cells.name!r} holds {cells.dtype}; give numbers, dates or text")
    text = cells.cast(pl.String).str.strip_chars()
    return text.to_frame().select(pl.when(~pl.first().str.to_lowercase().is_in(MISSING)).then(pl.first())).to_series()


def numbers(
    cells: pl.Series, label: str, decimal: str | None = None, *, ask: bool = False
) -> tuple[pl.Series, list[str]]:
    """Cells as Float64 (null = missing, NaN = not a number), and what was read otherwise than plainly.

    `decimal` is the decimal mark, `.` or `,`; None = find it. Raises UserError when `ask` and `1.519` may be 1519.
    """
    if cells.dtype.is_numeric() or cells.dtype == pl.Boolean:
        return cells.cast(pl.Float64).fill_nan(None), []
    text = stripped(cells)
    if decimal is None and not _has_marks(text):
        return _to_float(text), []
    notes = []
    signless = text.str.replace(_SIGN_BEFORE, "${1}${2}").str.replace(_SIGN_BEHIND, "${1}")
    money = bool((signless != text).any())
    bare = signless.str.replace(r"^\((.*)\)$", "-${1}").str.replace(r"^([^-].*)-$", "-${1}")
    if money:
        notes.append("currency signs")
    if (bare != signless).any():
        notes.append("negative amounts in parentheses or with the sign behind")
    closed = _ungrouped(bare, _BLANKS)
    values = closed.drop_nulls().unique()
    mark = decimal or _decimal(values.filter(values.str.contains("[.,]")), values, label, money, ask)
    amounts = _ungrouped(closed, r"\." if mark == "," else ",")
    if (amounts != bare).any():
        notes.append("thousands marks")
    if mark == ",":
        amounts = amounts.str.replace(",", ".", literal=True)
        notes.append("decimal comma")
    return _to_float(amounts), notes


def _ungrouped(text: pl.Series, mark: str) -> pl.Series:
    """Numbers without the marks between their groups of three digits; other texts as they are."""
    grouped = pl.first().str.contains(rf"^[+-]?\d{{1,3}}(?:{mark}\d{{3}})+(?:[.,]\d*)?$")
    bare = pl.when(grouped).then(pl.first().str.replace_all(rf"{mark}(\d{{3}})", "${1}")).otherwise(pl.first())
    return text.to_frame().select(bare).to_series()


def _has_marks(text: pl.Series) -> bool:
    """Whether a column needs a closer look: a cell is no plain number, or may be thousands with a dot."""
    odd = text.cast(pl.Float64, strict=False).is_null() & text.is_not_null()
    return bool(odd.any()) or bool(text.str.contains(r"^-?\d{1,3}\.\d{3}$").any())


def _to_float(text: pl.Series) -> pl.Series:
    number = text.cast(pl.Float64, strict=False)
    return (
        number.to_frame("n").select(pl.when(text.is_not_null()).then(pl.col("n").fill_null(float("nan")))).to_series()
    )


def _decimal(marked: pl.Series, values: pl.Series, label: str, money: bool, ask: bool) -> str:
    """The decimal mark of a column: by cells with both marks, or with other than three digits behind the mark."""

    def count(pattern: str) -> int:
        return int(marked.str.contains(pattern).sum())

    dot = count(r",.*\.\d*$") + count(r"^[^,]*\.(\d{0,2}|\d{4,})$") + count(r"^-?\d{1,3}(,\d{3}){2,}$")
    comma = count(r"\..*,\d*$") + count(r"^[^.]*,(\d{0,2}|\d{4,})$") + count(r"^-?\d{1,3}(\.\d{3}){2,}$")
    if dot or comma:
        return "." if dot >= comma else ","
    open_ones = marked.filter(marked.str.contains(r"^-?\d{1,3}[.,]\d{3}$")).sort()
    if open_ones.is_empty():
        return "."
    mark = "." if "." in open_ones[0] else ","
    other = "," if mark == "." else "."
    if money:
        return other  # amounts have no thousandths
    whole = values.str.contains(r"^-?\d{4,}$").any() or marked.str.contains(r"^-?0[.,]").any()
    if whole or not ask:
        return mark if whole or mark == "." else other
    given = open_ones[-1]
    raise UserError(
        f"{label}: {given!r} is {given.replace(mark, '')} or {given.replace(mark, '.')}; "
        f"say which mark is the decimal one, --decimal '{other}' or --decimal '{mark}'"
    )


def number_or_yes_no(cells: pl.Series, label: str, decimal: str | None = None) -> tuple[pl.Series, list[str]]:
    """Like `numbers`; yes, true, y, on are 1 and no, false, n, off are 0."""
    if cells.dtype.is_numeric() or cells.dtype == pl.Boolean:
        return numbers(cells, label)
    return numbers(stripped(cells).str.to_lowercase().replace(YES_NO), label, decimal)


def times(cells: pl.Series) -> pl.Series:
    """Cells as UTC times: ISO date or time, with or without a zone; null = missing, INVALID_TIME = not a time."""
    dtype = cells.dtype
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return cells.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    if isinstance(dtype, pl.Date | pl.Datetime):
        return cells.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    text = pl.col("t")
    full = text.str.replace(" ", "T").str.replace("^(.{10})$", "${1}T00:00:00")
    zoned = pl.when(full.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$")).then(full).otherwise(full + "Z")
    parsed = zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", strict=False)
    return (
        stripped(cells)
        .to_frame("t")
        .select(pl.when(text.is_not_null()).then(parsed.fill_null(INVALID_TIME)))
        .to_series()
    )


def dates(cells: pl.Series, label: str, pattern: str | None = None) -> tuple[pl.Series, list[str]]:
    """Cells as Date (null = missing or not a date), and what was read otherwise than as an ISO date.

    A time of day is left out; the date is that of the place, also with a zone. A week of a year (2024-W37) is the
    Sunday that ends it. `pattern` is a format of strptime, or EXCEL. Raises UserError when the order of day and month,
    or the meaning of a number, stays open.
    """
    if isinstance(cells.dtype, pl.Date):
        return cells, []
    if isinstance(cells.dtype, pl.Datetime):
        midnight = cells.dt.time() == pl.Series([0]).cast(pl.Time)[0]
        return cells.dt.date(), [] if midnight.fill_null(True).all() else ["times of day left out"]
    text = stripped(cells)
    day = text.str.replace(_TIME, "")
    notes = ["times of day left out"] if (day != text).any() and _has_hours(text) else []
    values = day.drop_nulls().unique().sort()
    found, note = (_by_pattern(values, pattern), f"dates as {pattern}") if pattern else _by_form(values, label)
    known = pl.DataFrame({"text": values, "day": found}, schema={"text": pl.String, "day": pl.Date})
    parsed = day.to_frame("text").join(known, on="text", how="left", maintain_order="left")["day"]
    return parsed, [*([note] if note else []), *notes]


def names_a_week(column: str) -> bool:
    """Whether the name of a column looks like a date or the number of a week."""
    return (
        re.fullmatch(r"[Ww](eek|k)?[ _-]?\d{1,3}|\d{4}-?[Ww]\d{1,2}|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}", column)
        is not None
    )


def _has_hours(text: pl.Series) -> bool:
    return bool(text.str.contains(r"[1-9]").any() and text.str.contains(r"[T ]\d{1,2}:\d{2}").any()) and not bool(
        text.str.contains(r"[T ]0?0:00(?::00(?:[.,]0+)?)?(?:Z|[+-]\d\d:?\d\d)?$").fill_null(True).all()
    )


def _by_form(values: pl.Series, label: str) -> tuple[pl.Series, str | None]:
    """Dates of texts in the form that fits most of them, and its name."""
    forms: list[tuple[str, Callable[[pl.Series], tuple[pl.Series, str | None]]]] = [
        (r"^\d{4}[-/.]\d{1,2}[-/.]\d{1,2}$", lambda texts: (_year_first(texts), None)),
        (r"^(19|20)\d{6}$", lambda texts: (texts.str.to_date("%Y%m%d", strict=False), "dates as yyyymmdd")),
        (r"^\d{4}-?W\d{1,2}$", lambda texts: (_iso_weeks(texts), "weeks of ISO years, dated by their Sunday")),
        (r"^\d{1,2}\.\d{1,2}\.\d{2,4}$", lambda texts: (_in_order(texts, "dmy"), "dates as day.month.year")),
        (r"^\d{1,2}[/-]\d{1,2}[/-]\d{2,4}$", lambda texts: _day_or_month(texts, label)),
        (r"^(\d{1,2}[. -]+)?[A-Za-zäû]{3,9}", lambda texts: (_named_month(texts), "months by name")),
        (r"^\d{5}(\.0+)?$", lambda texts: _refuse(texts, label, "an Excel serial number", EXCEL)),
        (r"^(19|20)\d{4}$", lambda texts: _refuse(texts, label, "a year and a week (or month)", "%G%V")),
    ]
    counts = [int(values.str.contains(form).sum()) for form, _ in forms]
    if not values.len() or 2 * max(counts) < values.len():
        return pl.Series([None] * values.len(), dtype=pl.Date), None
    form, parse = forms[counts.index(max(counts))]
    texts = values.to_frame("t").select(pl.when(pl.col("t").str.contains(form)).then("t")).to_series()
    return parse(texts)


def _refuse(texts: pl.Series, label: str, what: str, pattern: str) -> tuple[pl.Series, str | None]:
    raise UserError(f"{label}: {texts.drop_nulls()[0]!r} looks like {what}; if so, say --date-format {pattern}")


def _year_first(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all("[/.]", "-").str.to_date("%Y-%m-%d", strict=False)


def _in_order(texts: pl.Series, order: str) -> pl.Series:
    """Dates of three numbers in an order such as dmy. Of two digits, years below 70 are those of this century."""
    parts = texts.str.extract_groups(r"^(\d{1,2})\D(\d{1,2})\D(\d{2}|\d{4})$").struct.unnest()
    frame = parts.rename(dict(zip(parts.columns, order, strict=True))).cast(pl.Int32)
    year = (
        pl.when(pl.col("y") >= 100)
        .then("y")
        .otherwise(pl.col("y") + pl.when(pl.col("y") < 70).then(2000).otherwise(1900))
    )
    text = pl.format(
        "{}-{}-{}", year, pl.col("m").cast(pl.String).str.zfill(2), pl.col("d").cast(pl.String).str.zfill(2)
    )
    return frame.select(text.str.to_date("%Y-%m-%d", strict=False)).to_series()


def _day_or_month(texts: pl.Series, label: str) -> tuple[pl.Series, str | None]:
    """Whether day or month comes first: a number above 12 is a day; else the order in which all weekdays agree."""
    first, second = (texts.str.extract(form).cast(pl.Int32).max() or 0 for form in (r"^(\d+)", r"^\d+\D(\d+)"))
    names = {"dmy": "dates as day/month/year", "mdy": "dates as month/day/year"}
    if isinstance(first, int) and isinstance(second, int) and (first > 12) != (second > 12):
        order = "dmy" if first > 12 else "mdy"
        return _in_order(texts, order), names[order]
    if first > 12:  # type: ignore[operator]
        example = texts.filter(texts.str.contains(r"^(1[3-9]|[23]\d)"))[0]
        raise UserError(
            f"{label}: the month comes first in some dates and second in others, as in {example!r}; use one"
        )
    parsed = {order: _in_order(texts, order) for order in names}
    steady = [order for order, days in parsed.items() if not days.is_null().all() and days.dt.weekday().n_unique() == 1]
    if len(steady) == 1 and texts.len() > 2:
        return parsed[steady[0]], names[steady[0]]
    year = "%y" if texts.str.contains(r"\D\d\d$").any() else "%Y"
    mark = "/" if texts.str.contains("/", literal=True).any() else "-"
    raise UserError(
        f"{label}: {texts.drop_nulls()[0]!r} may name the day or the month first; "
        f"say --date-format %d{mark}%m{mark}{year} or --date-format %m{mark}%d{mark}{year}"
    )


def _named_month(texts: pl.Series) -> pl.Series:
    found = [texts.str.to_date(pattern, strict=False) for pattern in _NAMED_MONTHS]
    return pl.DataFrame({str(i): days for i, days in enumerate(found)}).select(pl.coalesce(pl.all())).to_series()


def _iso_weeks(texts: pl.Series) -> pl.Series:
    return pl.Series([_sunday(text) for text in texts.str.replace("-?W", "-W")], dtype=pl.Date)


def _sunday(text: str | None) -> date | None:
    """The last day of an ISO week such as 2024-W37; None when the year has no such week."""
    year, _, week = (text or "").partition("-W")
    try:
        return date.fromisocalendar(int(year), int(week), 7)
    except ValueError:
        return None


def _by_pattern(values: pl.Series, pattern: str) -> pl.Series:
    """Raises UserError when no value has the form of the pattern."""
    parse = _excel_day if pattern == EXCEL else lambda text: _strptime(text, pattern)
    days = pl.Series([parse(text) for text in values], dtype=pl.Date)
    if values.len() and days.null_count() == values.len():
        raise UserError(f"--date-format {pattern} does not fit {short(values[0])!r}; the dates have another form")
    return days


def _excel_day(text: str) -> date | None:
    return _EXCEL_DAY_0 + timedelta(int(float(text))) if re.fullmatch(r"\d{1,6}(\.\d+)?", text) else None


def _strptime(text: str, pattern: str) -> date | None:
    """A date by a pattern; a pattern with a week and no day means the Sunday of the week."""
    weekly = "%V" in pattern and "%u" not in pattern
    try:
        return datetime.strptime(*((f"{text} 7", f"{pattern} %u") if weekly else (text, pattern))).date()
    except ValueError:
        return None
