"""Whose sales stand for the department of a series: those of the department, or of its category while it is new."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from salescast.features.history import Floats, Ints, group_sums
from salescast.schema import SEASON

# Features that compare years are null in the first SEASON + LEAD_IN weeks: with less history before last year's target
# week they are mostly noise.
LEAD_IN = 4


@dataclass(frozen=True)
class Siblings:
    """Groups of n series. Sums by group have a row for each department, then one for each category, if any is known."""

    dept: Ints  # [n]: 0, 1, ...
    category: Ints | None  # [n]: 0, 1, ...; a department without one is its own
    begins: Ints  # [n]: first week with sales of the department in any store

    @classmethod
    def of(cls, depts: pl.Series, begins: Ints, categories: Mapping[int, str]) -> Self:
        """`depts`: dept_id by series; `begins`: first observed week by series; `categories`: by dept_id."""
        dept = depts.rank("dense").cast(pl.Int64).to_numpy() - 1
        first = np.full(int(dept.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, dept, begins)
        if not categories:
            return cls(dept, None, first[dept])
        named = {id_: f"category {categories[id_]}" if id_ in categories else f"{id_}" for id_ in depts.unique()}
        names = depts.replace_strict(named, return_dtype=pl.String)
        return cls(dept, names.rank("dense").cast(pl.Int64).to_numpy() - 1, first[dept])

    def sums(self, values: Floats) -> Floats:
        """Sums of [n, T] over the series of each group, [groups, T]; NaN where none is observed."""
        groups = [self.dept] if self.category is None else [self.dept, self.category]
        return np.concatenate([group_sums(values, group) for group in groups])

    def group(self, row: Ints, base: Ints) -> Ints:
        """[m]: the row of `sums` for series `row` [m] in base week `base` [m].

        The category's, as long as the department has less than a year of history in all stores.
        """
        if self.category is None:
            return self.dept[row]
        young = base - self.begins[row] < SEASON + LEAD_IN
        return np.where(young, int(self.dept.max()) + 1 + self.category[row], self.dept[row])
