"""The rules across rows and files, and the tables of the dataset that the rows become."""

from functools import cached_property
from typing import Final

import polars as pl

from salescast.data import gaps as gap_rules
from salescast.data import weeks as week_rules
from salescast.data.attributes import Attributes
from salescast.data.import_report import FileReport
from salescast.data.names import ENTITIES, Names, are_numbers, is_canonical
from salescast.data.raw_tables import conform, with_keys
from salescast.data.readers import ROW
from salescast.data.suspects import check_currency, reject_far_dates
from salescast.data.validation import PLANNED, STOCK, Source
from salescast.data.weeks import Weeks
from salescast.schema import KEYS, LABEL, RAW_SALES, RAW_STORE_WEEKS, RAW_STORES

OPEN_DAYS: Final = "open_days"  # the planned column that is derived from days
_CONDITIONS: Final = ("temperature", "fuel_price", "cpi", "unemployment")
_USUALLY_OPEN: Final = 5  # days a week; opening days of shops with fewer days of sales are not derived


class Records:
    """The valid rows of all files. Call `check` first; it rejects rows in the sources.

    `names` has the ids of these rows too, `planned` and `open_days` what was derived as well. `decisions` says what was
    found out and not given. `usable`: some row has sales. `second_rows`: what to do about several rows a series and
    date, None when there are none.
    """

    def __init__(
        self,
        sold: Source,
        conditions: Source | None,
        static: Source | None,
        goods: Source | None,
        names: Names,
        planned: tuple[str, ...],
        open_days: str | None,
    ) -> None:
        self.sold, self.conditions, self.static, self.goods = sold, conditions, static, goods
        self.sources = [source for source in (sold, conditions, static, goods) if source is not None]
        self.names, self.open_days, self.decisions = names, open_days, list[str]()
        self.planned = planned
        self.usable = True
        self.second_rows: str | None = None
        self._left_out = pl.DataFrame(schema={ROW: pl.Int64})
        self._empty = sold.rows.clear()
        self.derived: pl.DataFrame | None = None

    def check(self, weeks: Weeks) -> None:
        """Apply the rules across rows and files.

        Raises UserError for a file that cannot be meant: sales in two currencies, dates on many weekdays.
        """
        check_currency(self.sold)
        self._identify()
        if self.static is not None:
            self.static.keep_unique("store_id")
            if "store_id" in self.sold.label:
                known = self.static.rows["store_id"].implode()
                reason = f"{self.sold.label['store_id']} is not in {self.static.path.name}"
                self.sold.keep(pl.col("store_id").is_in(known), reason, "store_id")
        if self.goods is not None:
            self.goods.keep_unique("dept_id")
            unsold = self.goods.rows.filter(~pl.col("dept_id").is_in(with_keys(self.sold.rows)["dept_id"].implode()))
            if unsold.height:
                self.decisions.append(f"{unsold.height:,} of {self.goods.path.name} have no sales")
        reject_far_dates(self.sold)
        self._set_empty_aside()
        observed = self.sold.rows.filter(pl.col(LABEL).is_not_null())
        self.usable = observed.height > 0
        if not self.usable:
            return
        self.dated = week_rules.dated(observed["week"], weeks, str(self.sold.path))
        self.summed = weeks.summed
        if self.conditions is not None and "store_id" not in self.conditions.label:
            self.decisions.append(f"{self.conditions.path.name} has no column of stores: its rows hold for all of them")
        if self.dated.note:
            self.decisions.append(self.dated.note)
        self._reject_second_rows()
        self._leave_out()
        self.usable = self._observed().height > 0

    def _set_empty_aside(self) -> None:
        """Take out the rows of sales without an amount and without a planned value: the amount is unknown."""
        planned = pl.any_horizontal(
            pl.lit(False), *(pl.col(PLANNED + name).is_not_null() for name in self.sold.planned)
        )
        empty = pl.col(LABEL).is_null() & ~planned
        self._empty, self.sold.rows = self.sold.rows.filter(empty), self.sold.rows.filter(~empty)

    def _identify(self) -> None:
        """Give the ids of all files their numbers; reject those that are no numbers where all others are."""
        for entity in KEYS:
            sources = [source for source in self.sources if entity in source.label]
            texts = [source.rows[entity] for source in sources]
            if not texts:
                continue
            if are_numbers(texts):
                for source in sources:
                    whole = [name for name in source.rows[entity].unique() if is_canonical(name)]
                    passes = pl.col(entity).is_in(whole)
                    source.keep(passes, f"{source.label[entity]} is not a whole number of 32 bits", entity)
            else:
                count = pl.concat(texts).n_unique()
                self.decisions.append(f"ids of {ENTITIES[entity]}s are text: {count:,} are numbered inside")
            self.names = self.names.extended(entity, pl.concat(source.rows[entity] for source in sources))
            for source in sources:
                source.rows = source.rows.with_columns(self.names.ids(entity, source.rows[entity]).alias(entity))

    def _reject_second_rows(self) -> None:
        """Rows for the same series and date: equal ones count once, others are parts of an amount or wrong."""
        for source in (self.sold, self.conditions):
            if source is None:
                continue
            if not self.dated.moved:
                reason = f"{source.label['week']} is not on the weekday of the other weeks"
                source.keep(pl.col("week").dt.weekday() == self.dated.last_day, reason, "week")
            if source is self.sold and self.summed:
                continue
            source.merge_identical()
            before = source.rows.height
            source.keep_unique("store_id", "dept_id", "week", "known_at")
            if source is self.sold:
                # A plan that changed has a row for each time at which it was known, all with the same sales.
                keys = [name for name in (*KEYS, "week") if name in source.label]
                first = pl.col(LABEL).drop_nulls().first().over(keys) if "known_at" in source.label else pl.col(LABEL)
                same = ", ".join(source.label[key] for key in keys)
                source.keep(pl.col(LABEL).is_null() | (pl.col(LABEL) == first), f"a second row for the same {same}")
                if source.rows.height < before:
                    apart = source.apart()
                    told = f"column {apart!r} tells them apart: " if apart else ""
                    self.second_rows = f"{told}say --sum if they are parts of one amount"

    def _leave_out(self) -> None:
        """Mark the rows of the unfinished last week, and of weeks in which the article was out of stock."""
        rows, parts = self.sold.rows, []
        week = week_rules.week_of(pl.col("week"), self.dated.last_day)
        sold = rows.filter(pl.col(LABEL).is_not_null())["week"]
        open_weekdays = week_rules.open_weekdays(sold)
        last = week_rules.unfinished(sold, self.dated.last_day, open_weekdays) if self.dated.daily else None
        if last is not None:
            parts.append(rows.filter(week == last))
            self.decisions.append(f"the last week, to {last}, has sales up to {sold.sort()[-1]} only and is left out")
        if STOCK in self.sold.label:
            parts.append(self._out_of_stock(rows, week))
        if parts:
            self._left_out = pl.concat(part.select(ROW) for part in parts).unique()

    def _out_of_stock(self, rows: pl.DataFrame, week: pl.Expr) -> pl.DataFrame:
        """The rows of the weeks in which a series had no stock on a day."""
        is_stock = bool((rows[STOCK] > 1).any())
        out = pl.col(STOCK) <= 0 if is_stock else pl.col(STOCK) > 0
        keys = [name for name in KEYS if name in self.sold.label]
        weeks = rows.filter(out).select(*keys, week.alias("of")).unique()
        found = rows.with_columns(week.alias("of")).join(weeks, on=[*keys, "of"], how="semi")
        what = "a stock of 0" if is_stock else "yes"
        label = self.sold.label[STOCK]
        self.decisions.append(
            f"{label}: {what} means out of stock; sales of {weeks.height:,} weeks of series are unknown demand"
        )
        return found

    def _observed(self) -> pl.DataFrame:
        """The rows with sales that are used."""
        rows = self.sold.rows.filter(pl.col(LABEL).is_not_null())
        return rows.join(self._left_out, on=ROW, how="anti", maintain_order="left")

    def sales(self, gaps: str) -> tuple[pl.DataFrame, str]:
        """The table of sales by week (RAW_SALES, sorted), and what a week without a row means in it.

        `gaps` is one of `gaps.GAPS`.
        """
        days = with_keys(self._observed()).with_columns(
            week_rules.week_of(pl.col("week"), self.dated.last_day).alias("of")
        )
        if self.summed or self.dated.moved:
            found = days.group_by(*KEYS, "of").agg(pl.col(LABEL).sum()).rename({"of": "week"})
            self._derive_open_days(days)
        else:
            found = days.unique([*KEYS, "week"], keep="first").select(*KEYS, "week", LABEL)
        table = conform(found, RAW_SALES)
        without = gap_rules.missing(table)
        # A row without an amount, or one that is left out, says that the amount is unknown.
        unused = self.sold.rows.join(self._observed().select(ROW), on=ROW, how="anti")
        unknown = with_keys(pl.concat([unused, self._empty]))
        weeks = unknown.select(*KEYS, week_rules.week_of(pl.col("week"), self.dated.last_day))
        without = without.join(weeks, on=[*KEYS, "week"], how="anti")
        decision, why = (gaps, "as given") if gaps != "auto" else gap_rules.decide(table, without.height)
        if without.height and (gaps == "auto" or decision == "zero"):
            count = f"{without.height:,} weeks of series without a row"
            self.decisions.append(f"{count} are {decision}: {why} (--gaps zero or --gaps unknown decides otherwise)")
        return (gap_rules.filled(table, without) if decision == "zero" else table), decision

    def _derive_open_days(self, days: pl.DataFrame) -> None:
        """The number of days of each week on which a store sold anything, if it varies and was not given."""
        if not self.dated.daily or self.open_days is not None or OPEN_DAYS in self.planned:
            return
        sold = days.filter(pl.col(LABEL) != 0).group_by("store_id", "of").agg(pl.col("week").n_unique().alias("n"))
        usual = pl.col("n").median().over("store_id")
        inside = pl.col("of") != pl.col("of").min()  # the first week may begin before the data
        found = sold.filter(inside & (usual >= _USUALLY_OPEN))
        if found["n"].n_unique() > 1:
            self.derived = found.select(
                "store_id", pl.col("of").alias("week"), pl.col("n").cast(pl.Float32).alias(OPEN_DAYS)
            )
            self.open_days, self.planned = OPEN_DAYS, (*self.planned, OPEN_DAYS)
            self.decisions.append(
                f"opening days of {found['store_id'].n_unique():,} stores are counted from their days"
            )

    @cached_property
    def attributes(self) -> Attributes:
        """Labels, groups and dates of stores and products."""
        files = zip(KEYS, (self.static, self.goods), strict=True)
        return Attributes.of([(entity, source.rows) for entity, source in files if source is not None])

    def store_weeks(self) -> pl.DataFrame:
        """The table of the conditions of stores by week (RAW_STORE_WEEKS, sorted)."""
        if self.conditions is None:
            return pl.DataFrame(schema=RAW_STORE_WEEKS)
        rows = self.conditions.rows
        if "store_id" not in rows.columns:
            rows = rows.join(with_keys(self.sold.rows).select("store_id").unique(), how="cross")
        present = [name for name in _CONDITIONS if name in rows.columns]
        if "known_at" in rows.columns:
            rows = rows.sort("known_at", nulls_last=False)
        week = week_rules.week_of(pl.col("week"), self.dated.last_day)
        value = pl.col(present).mean() if self.dated.moved else pl.col(present).drop_nulls().last()
        found = rows.group_by("store_id", week, maintain_order=True).agg(value)
        return conform(found, RAW_STORE_WEEKS)

    def stores(self, sales: pl.DataFrame) -> pl.DataFrame:
        """The table of the stores (RAW_STORES, sorted)."""
        return conform(self.static.rows if self.static else sales.select("store_id").unique(), RAW_STORES)

    def file_report(self, source: Source) -> FileReport:
        """The rows of a file by what became of them."""
        used, plan, empty, left_out = source.rows.height, 0, 0, 0
        if source is self.sold:
            used, plan, empty = self._observed().height, int(source.rows[LABEL].null_count()), self._empty.height
            left_out = source.rows.height - plan - used
        return FileReport(
            file=str(source.path),
            rows=source.total,
            accepted=used,
            plan_rows=plan,
            rejected=source.rejected().height,
            ignored_columns=source.ignored(),
            merged=source.merged,
            empty=empty,
            left_out=left_out,
            notes=tuple(source.notes),
        )
