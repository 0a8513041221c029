"""Where a run's dataset comes from: demo data, files, or frames."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import polars as pl

from salescast.data import dataset, ingest
from salescast.data.import_report import ImportReport
from salescast.runtime import parquet
from salescast.workdir import Workdir


class ArrowStream(Protocol):
    """A frame that exports the Arrow C stream: Polars, pandas, PyArrow and others."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...


Table: TypeAlias = str | Path | ArrowStream


def dataset_source(
    work: Workdir,
    sales: Table | None,
    features: Table | None,
    stores: Table | None,
    options: Mapping[str, Any],
    seed: int = 42,
    imported: Callable[[ImportReport], None] | None = None,
) -> Callable[[Path], None]:
    """A function that writes the dataset folder it is given; without sales, demo data.

    A frame is written to `given/` in the workdir and imported from there: messages name that file. `options` are the
    keyword arguments of `ingest.import_sales`, `seed` is that of the demo data. `imported` gets the import's report.
    """

    def write(out: Path) -> None:
        if sales is None:
            dataset.generate(out, seed=seed)
            return
        tables = {"sales": sales, "features": features, "stores": stores, "products": options.get("products")}
        files = {name: None if table is None else _file(work, name, table) for name, table in tables.items()}
        assert files["sales"] is not None
        given = {**options, "products": files["products"]}
        report = ingest.import_sales(files["sales"], files["features"], files["stores"], out, **given)
        if imported:
            imported(report)

    return write


def _file(work: Workdir, name: str, table: Table) -> Path:
    if isinstance(table, str | Path):
        return Path(table)
    path = work.root / "given" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write(pl.DataFrame(table), path)
    return path
