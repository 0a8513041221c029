"""The real data sets of the accuracy benchmark: how each is imported, and from which weeks it is forecast."""

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final

import polars as pl

from salescast.data import ingest
from salescast.data.weeks import SUNDAY, Weeks
from salescast.schema import KEYS


@dataclass(frozen=True)
class Set:
    """A data set as published.

    `origins`: last observed weeks. `required_weeks`: a series is scored if it was observed in each of so many first
    weeks. `sold_weeks`: it is scored if it sold in at least so many weeks before the first origin.
    """

    name: str
    sales: str
    origins: tuple[str, ...]
    country: str
    features: str | None = None
    stores: str | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    planned: tuple[str, ...] = ()
    weeks: Weeks = field(default_factory=Weeks)
    gaps: str = "auto"
    required_weeks: int = 0
    sold_weeks: int = 0

    def dates(self) -> list[date]:
        return [date.fromisoformat(origin) for origin in self.origins]

    def load(self, folder: Path, out: Path) -> None:
        """Import the set from the folder of all sets."""
        files = (folder / self.name / name if name else None for name in (self.features, self.stores))
        ingest.import_sales(
            folder / self.name / self.sales,
            *files,
            out=out,
            mapping=self.mapping,
            planned=self.planned,
            country=self.country,
            weeks=self.weeks,
            gaps=self.gaps,
            skip_bad_rows=True,
        )

    def scored(self, sales: pl.DataFrame, first_week: date) -> pl.DataFrame:
        """The keys of the series that are scored."""
        begin = pl.lit(first_week) + pl.duration(weeks=self.required_weeks)
        counts = sales.group_by(KEYS).agg(
            observed=(pl.col("week") < begin).sum(),
            sold=((pl.col("week") <= self.dates()[0]) & (pl.col("weekly_sales") > 0)).sum(),
        )
        enough = (pl.col("observed") >= self.required_weeks) & (pl.col("sold") >= self.sold_weeks)
        return counts.filter(enough).select(KEYS)


SETS: Final = {
    entry.name: entry
    for entry in (
        Set(
            "walmart",
            "train.csv",
            ("2011-10-28", "2012-01-27", "2012-04-27", "2012-07-27"),
            "US",
            features="features.csv",
            stores="stores.csv",
            required_weeks=104,
        ),
        Set(
            "orange-juice",
            "orange_juice.csv",
            ("1991-10-09", "1992-01-08", "1992-04-08", "1992-07-08"),
            "US",
            mapping={"Store": "store", "Dept": "brand", "Date": "date", "Weekly_Sales": "units"},
            planned=("price", "deal", "feat"),
        ),
        Set(
            "bakery",
            "bakery.csv",
            ("2018-04-29", "2018-07-29", "2018-10-28", "2019-01-27"),
            "DE",
            mapping={"Store": "store", "Dept": "product", "Date": "date", "Weekly_Sales": "demand"},
            planned=("is_schoolholiday", "is_holiday", "promotion_currentweek"),
            weeks=Weeks(daily=True, ends=SUNDAY),
        ),
        Set(
            "recruit",
            "air_visit_data.csv",
            ("2016-11-20", "2017-02-19"),
            "JP",
            mapping={"Store": "air_store_id", "Date": "visit_date", "Weekly_Sales": "visitors"},
            weeks=Weeks(daily=True, ends=SUNDAY),
        ),
        Set(
            "online-retail",
            "receipts.parquet",
            ("2011-07-10", "2011-10-09"),
            "GB",
            mapping={"Dept": "StockCode", "Date": "InvoiceDate", "Weekly_Sales": "Quantity"},
            weeks=Weeks(daily=True, summed=True, ends=SUNDAY),
            gaps="zero",
            sold_weeks=26,
        ),
    )
}
