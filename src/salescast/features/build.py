"""Build the feature files of a dataset.

The row of week t holds what is known before week t begins, and `weekly_sales` of week t as the label. The same code
computes the rows of the history and of the upcoming week. The dataset is read in chunks of complete stores, so the
published views need memory for one chunk only.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from feast_asof.parquet import FileWriter
from salescast import retail_calendar
from salescast.data.dataset import CHUNK_ROWS, Raw, chunks, load, parquet_writer
from salescast.errors import UserError
from salescast.features import contracts, seasonal
from salescast.features.published import View, sales_features, store_features, timestamp
from salescast.retail_calendar import WEEK
from salescast.runtime import checksums, code_digest, parquet
from salescast.runtime.atomic_files import replace_file
from salescast.runtime.progress import track_rows
from salescast.schema import KEYS, LABEL, SALES_VIEW, SEASONAL_VIEW, STORE_VIEW, TIMESTAMP, UPCOMING

ROW_GROUP: Final = 100_000  # rows

# For each view, a function of the dataset (for what is pooled over stores) and the horizon. It returns the function
# that computes the rows of a chunk, sorted by keys and time.
VIEWS: Final[dict[str, Callable[[Raw, int], View]]] = {
    SALES_VIEW: lambda _raw, _horizon: (
        lambda chunk: sales_features(chunk.sales, chunk.store_weeks, chunk.calendar, upcoming=chunk.upcoming)
    ),
    STORE_VIEW: lambda _raw, _horizon: lambda chunk: store_features(chunk.sales, chunk.stores),
    SEASONAL_VIEW: seasonal.view,
}


@dataclass(frozen=True)
class FeatureSummary:
    """What was written: rows by view, series, the upcoming week (the last row of every series), files by view."""

    rows: dict[str, int]
    series: int
    upcoming: date
    files: dict[str, Path]


class _ViewFile:
    """A sorted Parquet file, written chunk by chunk in row groups of complete series."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._writer: FileWriter | None = None

    def write(self, table: pl.DataFrame) -> None:
        self.rows += table.height
        arrow: pa.Table = table.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = parquet_writer(self._path, arrow.schema)
        parquet.write_series(self._writer, arrow, KEYS, ROW_GROUP)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def build_features(
    raw_dir: Path, out_dir: Path, horizon: int = 8, views: Sequence[str] = tuple(VIEWS)
) -> FeatureSummary:
    """Write `<view>.parquet` for each of `views` from a raw dataset folder, each file atomically.

    `upcoming.parquet` beside them has the columns of all views without the label, for the upcoming week only.

    The published views need memory for a chunk, the seasonal view for the histories of all series. Raises UserError
    when the dataset cannot be read, the features violate their contract (see `contracts`) or the folder cannot be
    written.
    """
    raw = load(raw_dir)
    calendar = retail_calendar.calendar(raw.meta.country)
    paths = {name: out_dir / f"{name}.parquet" for name in views}
    try:
        with ExitStack() as stack:
            files = {name: _ViewFile(stack.enter_context(replace_file(path))) for name, path in paths.items()}
            upcoming = _ViewFile(stack.enter_context(replace_file(out_dir / UPCOMING)))
            makers = {name: VIEWS[name](raw, horizon) for name in views}
            for chunk in track_rows(chunks(raw, calendar, CHUNK_ROWS), "features", raw.meta.rows):
                last: list[pl.DataFrame] = []
                for name, view in makers.items():
                    rows = view(chunk)
                    contracts.check(name, rows)
                    files[name].write(rows)
                    last.append(rows.group_by(KEYS, maintain_order=True).last().drop(TIMESTAMP, LABEL, strict=False))
                week = pl.lit(chunk.upcoming).alias("week")
                upcoming.write(pl.concat(last, how="align_left").select(*KEYS, timestamp(week), pl.exclude(KEYS)))
            for file in (*files.values(), upcoming):
                file.close()
        code = code_digest.digest(code_digest.FEATURES)
        checksums.write([*paths.values(), out_dir / UPCOMING], out_dir / checksums.FEATURES, code)
    except OSError as error:
        raise UserError(
            f"cannot write the features to {out_dir}: {error.strerror or error}; give another folder"
        ) from None
    return FeatureSummary(
        rows={name: file.rows for name, file in files.items()},
        series=raw.meta.series,
        upcoming=raw.meta.last_week + WEEK,
        files=paths,
    )
