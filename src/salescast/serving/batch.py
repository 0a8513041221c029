"""Forecasts without a server, by the code that also serves: one series to show, or every series to a file."""

from pathlib import Path
from typing import Final

import polars as pl

from salescast import schema
from salescast.data import tables
from salescast.data.names import Names
from salescast.errors import UserError
from salescast.evaluation.forecast_frames import long_frame
from salescast.model import bundle
from salescast.model.bundle import Bundle
from salescast.runtime import checksums, code_digest, parquet
from salescast.schema import KEYS, LABEL, MEDIAN, TIMESTAMP, level_name
from salescast.tracking import champion
from salescast.workdir import Workdir

PAST: Final = 52  # weeks of history beside a forecast


def upcoming(workdir: Workdir, pair: tuple[int, int] | None = None) -> pl.DataFrame:
    """The features of the upcoming week: one row a series, or only that of `pair` (store_id, dept_id).

    Raises UserError when the file is missing or is not what the last build wrote.
    """
    path = workdir.data / schema.UPCOMING
    if not path.is_file():
        raise UserError(f"{path} is missing; run `salescast features` first")
    if checksums.verified([path], workdir.data / checksums.FEATURES) is None:
        raise UserError(f"{path} was changed or damaged; run `salescast features` again")
    if checksums.code_of(workdir.data / checksums.FEATURES) != code_digest.digest(code_digest.FEATURES):
        raise UserError(f"{path} was computed by other code than this; run `salescast features` again")
    selected = [] if pair is None else [pl.col(key) == value for key, value in zip(KEYS, pair, strict=True)]
    return pl.scan_parquet(path).filter(*selected).collect()


def long_form(model: Bundle, rows: pl.DataFrame, weeks: int | None = None) -> pl.DataFrame:
    """Forecasts from `rows`, one row a series and week: keys, week, horizon (from 1), forecast, mean, p10 ... p90.

    `forecast` is the median, the single number that is closest to the sales of a week; `mean` is what adds up.
    """
    predicted = model.predict(rows, weeks)
    quantiles = {level_name(level): predicted.at(level) for level in predicted.levels if level != MEDIAN}
    values = {"forecast": predicted.at(MEDIAN), "mean": predicted.mean, **quantiles}
    return long_frame(rows, predicted.weeks, values).with_columns(pl.col(pl.Float64).fill_nan(None))


def forecast_all(workdir: Workdir, model_dir: Path | None = None) -> pl.DataFrame:
    """`long_form` of every series; null where a series has no history to start from.

    The model is the one that would be served: that in `model_dir`, else by the environment, else the champion.
    """
    model = bundle.load(champion.bundle_folder(workdir, model_dir))
    return long_form(model, upcoming(workdir))


def write_all(workdir: Workdir, out: Path, model_dir: Path | None = None) -> int:
    """Write `forecast_all` to a file, whose name selects the format (`tables.write`); returns the number of rows.

    Ids that are not numbers are in the columns `store` and `dept` in front. The workdir's own forecasts are also kept
    under their first week, for `salescast monitor`.
    """
    tables.check_target(out)
    frame = forecast_all(workdir, model_dir)
    if out == workdir.forecasts:
        parquet.write(frame, workdir.kept_forecasts / f"{frame['week'].min()!s}.parquet")
    tables.write(Names.read(workdir.raw).named(frame), out)
    return frame.height


def pair_of(workdir: Workdir, store: str | int, dept: str | int) -> tuple[int, int]:
    """store_id and dept_id of a series by the retailer's own ids. Raises UserError naming an id that is not known."""
    names = Names.read(workdir.raw)
    return names.id_of("store_id", store), names.id_of("dept_id", dept)


def forecast_one(
    workdir: Workdir, store: str | int, dept: str | int, weeks: int | None, model_dir: Path | None = None
) -> pl.DataFrame:
    """`long_form` of the next `weeks` weeks of one series (None: the model's horizon), by the retailer's own ids.

    Raises UserError for an unknown series and for too many weeks.
    """
    model = bundle.load(champion.bundle_folder(workdir, model_dir))
    pair = pair_of(workdir, store, dept)
    rows = upcoming(workdir, pair)
    if rows.is_empty():
        raise UserError(f"no sales of store {store}, department {dept}; {_known_series(workdir, pair[0])}")
    return long_form(model, rows, weeks)


def _known_series(workdir: Workdir, store: int) -> str:
    """The departments of a store, or the stores, by the retailer's own ids."""
    names = Names.read(workdir.raw)
    known = pl.read_parquet(workdir.data / f"{schema.STORE_VIEW}.parquet", columns=list(KEYS))
    depts = known.filter(pl.col(KEYS[0]) == store)[KEYS[1]].unique().sort()
    if len(depts):
        return f"its departments are {', '.join(str(names.name_of('dept_id', dept)) for dept in depts)}"
    stores = known[KEYS[0]].unique().sort()
    first, last = (names.name_of("store_id", stores.item(at)) for at in (0, -1))
    return f"stores are {first} to {last}"


def history(workdir: Workdir, store: str | int, dept: str | int, weeks: int = PAST) -> pl.DataFrame:
    """The last `weeks` weeks of a series, by the retailer's own ids: week, weekly_sales (null in gaps)."""
    pair = pair_of(workdir, store, dept)
    return (
        pl.scan_parquet(workdir.data / f"{schema.SALES_VIEW}.parquet")
        .filter(*(pl.col(key) == value for key, value in zip(KEYS, pair, strict=True)))
        .select(pl.col(TIMESTAMP).dt.date().alias("week"), LABEL)
        .sort("week")
        .collect()
        .head(-1)  # the upcoming week has no sales yet
        .tail(weeks)
    )
