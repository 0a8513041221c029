"""Ids of stores and departments as the retailer has them, and the INT32 entity ids they have inside.

An id that is a whole number of 32 bits keeps its number. Any other (`007`, an EAN, `München Süd`) gets the next free
number when it is first imported, and keeps it: later imports append. `names.parquet` is there when an id is text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Self

import polars as pl

from salescast.errors import UserError
from salescast.runtime import parquet

FILE: Final = "names.parquet"
SALES: Final = "sales.parquet"
ENTITIES: Final = {"store_id": "store", "dept_id": "department"}
SCHEMA: Final[dict[str, pl.DataType]] = {"entity": pl.String(), "id": pl.Int32(), "name": pl.String()}
STRAY: Final = 20  # different ids that may be mistakes among numbers
_WHOLE: Final = r"^([+-]?\d+)(?:\.0*)?$"
_LARGEST: Final = 2**31 - 1


@dataclass(frozen=True)
class Names:
    """The dictionary of a dataset. `table` has the columns SCHEMA, sorted, with every id that was ever imported."""

    table: pl.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The dictionary of a dataset folder; where all ids are numbers, these. Empty without a dataset."""
        if (folder / FILE).is_file():
            return cls(parquet.read(folder / FILE, "import the data again"))
        names = cls(pl.DataFrame(schema=SCHEMA))
        if (folder / SALES).is_file():
            sales = pl.scan_parquet(folder / SALES, glob=False)
            for entity in ENTITIES:
                ids = sales.select(pl.col(entity).unique().cast(pl.String)).collect(engine="streaming")
                names = names.extended(entity, ids.to_series())
        return names

    def of(self, entity: str) -> dict[str, int]:
        """The ids by name of an entity, one of ENTITIES."""
        own = self.table.filter(pl.col("entity") == entity)
        return dict(zip(own["name"], own["id"], strict=True))

    def extended(self, entity: str, names: pl.Series) -> Self:
        """The dictionary with these names too. An id keeps the number that it has.

        Raises UserError when no number is left.
        """
        known = self.of(entity)
        new = sorted(set(names.drop_nulls().unique()) - known.keys())
        # A number that another name was given first is not given again.
        added = {name: int(name) for name in new if is_canonical(name) and int(name) not in known.values()}
        following = max((0, *known.values(), *added.values())) + 1
        rest = [name for name in new if name not in added]
        added |= {name: following + place for place, name in enumerate(rest)}
        if rest and following + len(rest) - 1 > _LARGEST:
            raise UserError(f"no number of 32 bits is left for {rest[-1]!r}; the largest id in use is {following - 1}")
        rows = {"entity": [entity] * len(added), "id": list(added.values()), "name": list(added)}
        return type(self)(pl.concat([self.table, pl.DataFrame(rows, schema=SCHEMA)]).sort("entity", "id"))

    def ids(self, entity: str, names: pl.Series) -> pl.Series:
        """The ids (Int32) of names; null for a name that is neither known nor a number of 32 bits."""
        known = self.of(entity)
        values = names.drop_nulls().unique()
        found = {name: known.get(name, int(name) if is_canonical(name) else None) for name in values}
        return names.replace_strict(list(found), list(found.values()), default=None, return_dtype=pl.Int32)

    def id_of(self, entity: str, name: str | int) -> int:
        """The id of one name. Raises UserError when it has none."""
        text = str(name).strip()
        found = self.of(entity).get(text, int(text) if is_canonical(text) else None)
        if found is None:
            near = get_close_matches(text, self.of(entity), cutoff=0.5) or sorted(self.of(entity))[:3]
            form = (
                f"near or first ids: {', '.join(map(repr, near))}" if self.has(entity) else "the ids are whole numbers"
            )
            raise UserError(f"no {ENTITIES[entity]} {text!r} in the data; {form}")
        return found

    def name_of(self, entity: str, id_: int) -> str | int:
        """The name of one id; the id itself when it is its own name."""
        own = self.table.filter((pl.col("entity") == entity) & (pl.col("id") == id_))["name"]
        return own[0] if own.len() and own[0] != str(id_) else id_

    def others(self, entity: str) -> dict[int, str]:
        """The names by id that are not the id itself."""
        return {id_: name for name, id_ in self.of(entity).items() if name != str(id_)}

    def has(self, entity: str) -> bool:
        """Whether an id of the entity has another name than its number."""
        return bool(self.others(entity))

    def named(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A table with the columns `store` and `dept` in front, as far as these entities have names."""
        for entity, column in (("dept_id", "dept"), ("store_id", "store")):
            if entity in frame.columns and self.has(entity):
                known = self.of(entity)
                own = pl.col(entity).cast(pl.Int32)
                name = own.replace_strict(
                    list(known.values()), list(known), default=own.cast(pl.String), return_dtype=pl.String
                )
                frame = frame.select(name.alias(column), pl.all())
        return frame

    @property
    def needed(self) -> bool:
        """Whether any id is text, so that the dataset needs the dictionary."""
        return any(self.has(entity) for entity in ENTITIES)


def is_canonical(name: str) -> bool:
    """Whether a name is a whole number of 32 bits as it would be printed."""
    digits = name.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        return False
    return str(int(name)) == name and -_LARGEST - 1 <= int(name) <= _LARGEST


def lost_digits(ids: pl.Expr) -> pl.Expr:
    """Which ids are numbers that a spreadsheet has rounded, such as 4.00638E+12."""
    return ids.str.contains(r"^\d(?:[.,]\d+)?[Ee]\+?\d+$")


def own_ids(texts: pl.Series) -> pl.Series:
    """Ids as they are meant: `3.0` is 3 when most ids of the column are whole numbers."""
    values = texts.drop_nulls().unique()
    if 2 * int(values.str.contains(_WHOLE).sum()) > values.len():
        return texts.str.replace(_WHOLE, "${1}")
    return texts


def are_numbers(parts: Iterable[pl.Series]) -> bool:
    """Whether ids are numbers, a stray text among them being a mistake, and not text.

    They are text when many of them are (half, or a tenth and more than STRAY), or when numbers would lose digits:
    leading zeros, more than 32 bits.
    """
    values = pl.concat([part.drop_nulls() for part in parts]).unique()
    digits = values.str.contains(r"^-?\d+$")
    padded = values.str.contains(r"^0\d") | (values.filter(digits).str.len_chars() > 10).any()
    texts = values.len() - int(digits.sum())
    many = 2 * texts >= values.len() or (texts > STRAY and 10 * texts >= values.len())
    return not bool(padded.any()) and not many
