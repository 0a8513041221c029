"""What is known of stores and products besides their sales: labels, groups, and when they are in the assortment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final, Self

import polars as pl

from salescast.runtime import parquet
from salescast.schema import KEYS, PRODUCT, SEASON

FILE: Final = "attributes.parquet"
GROUPS: Final = ("category", "brand", "price_class")  # of products
SCHEMA: Final[dict[str, pl.DataType]] = {
    "entity": pl.String(),
    "id": pl.Int32(),
    "label": pl.String(),
    **dict.fromkeys(GROUPS, pl.String()),
    "begins": pl.Date(),  # the first day in the assortment
    "ends": pl.Date(),  # the last day
}


@dataclass(frozen=True)
class Attributes:
    """Attributes of stores and departments. `table` has the columns SCHEMA, sorted, a row for each id with any."""

    table: pl.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The attributes of a dataset folder; none without the file."""
        if not (folder / FILE).is_file():
            return cls(pl.DataFrame(schema=SCHEMA))
        return cls(parquet.read(folder / FILE, "import the data again"))

    @classmethod
    def of(cls, tables: Sequence[tuple[str, pl.DataFrame]]) -> Self:
        """The attributes in parsed rows of files: pairs of an entity and a table with some of the columns."""
        parts = [
            rows.select(
                pl.lit(entity).alias("entity"),
                pl.col(entity).alias("id"),
                *(pl.col(name) for name in SCHEMA if name in rows.columns),
            )
            for entity, rows in tables
        ]
        table = pl.concat([pl.DataFrame(schema=SCHEMA), *parts], how="diagonal_relaxed").cast(pl.Schema(SCHEMA))
        return cls(table.filter(pl.any_horizontal(pl.all().exclude("entity", "id").is_not_null())).sort("entity", "id"))

    def values(self, entity: str, column: str) -> dict[int, str]:
        """The known values of a column by id."""
        known = self.table.filter((pl.col("entity") == entity) & pl.col(column).is_not_null())
        return dict(known.select("id", column).iter_rows())

    def of_products(self, depts: pl.Series) -> pl.DataFrame:
        """The columns of GROUPS with any value, with the prefix PRODUCT, for departments [n]; null = not known."""
        known = {name: self.values("dept_id", name) for name in GROUPS}
        return pl.DataFrame(
            {
                f"{PRODUCT}{name}": depts.replace_strict(values, default=None, return_dtype=pl.String)
                for name, values in known.items()
                if values
            }
        )

    def closed(self, series: pl.DataFrame, first: date, last: date) -> pl.DataFrame:
        """Weeks in which a series is not in the assortment: keys, week; of weeks `first` to `last` and a year after.

        `series`: keys. A week counts when all its seven days, which end on its date, lie outside.
        """
        dated = self.table.filter(pl.col("begins").is_not_null() | pl.col("ends").is_not_null())
        weeks = pl.DataFrame({"week": pl.date_range(first, last + timedelta(weeks=SEASON), "1w", eager=True)})
        outside = (pl.col("week") < pl.col("begins")) | (pl.col("week").dt.offset_by("-6d") > pl.col("ends"))
        parts = [
            series.select(KEYS)
            .join(dated.filter(pl.col("entity") == entity), left_on=entity, right_on="id")
            .join(weeks, how="cross")
            .filter(outside)
            .select(*KEYS, "week")
            for entity in KEYS
        ]
        return pl.concat(parts).unique().sort(*KEYS, "week")
