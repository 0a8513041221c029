"""Parquet results that say when they are damaged: page checksums in single files, digests beside sets of files.

A flipped bit in a Parquet file is a wrong number more often than an error; nothing is computed from one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feast_asof.parquet import table_file
from salescast.errors import UserError
from salescast.runtime.atomic_files import replace_file, sha256

LISTING: Final = "features.json"  # digests of the feature tables, beside them
CODE: Final = "code"  # in a listing: the digest of the code that made the files
# Polars panics at metadata that is not UTF-8.
DAMAGED: Final = (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException)


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as one file, whole or not at all, with a checksum in every page."""
    with replace_file(path) as temporary:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        table_file(table, temporary, write_page_checksum=True)


def read(path: Path, remedy: str) -> pl.DataFrame:
    """Read what `write` wrote. Raises UserError, with the `remedy` in it, when it is missing, cut off or changed."""
    try:
        return pl.DataFrame(pq.read_table(path, page_checksum_verification=True))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason[:200]}); {remedy}") from None


def seal(paths: Sequence[Path], listing: Path, code: str | None = None) -> None:
    """Note the digests of files, and of the `code` that made them, in `listing`, beside what it says of others.

    Written last: it ends the build.
    """
    noted = {path.name: sha256(path) for path in paths} | ({CODE: code} if code else {})
    with replace_file(listing) as temporary:
        temporary.write_text(json.dumps(_listed(listing) | noted, indent=1))


def sealed(paths: Sequence[Path], listing: Path) -> dict[str, str] | None:
    """The files' digests by name; None when one is missing or not the one that `listing` was written for."""
    found = {path.name: sha256(path) for path in paths if path.is_file()}
    known = _listed(listing)
    return found if len(found) == len(paths) and found.items() <= known.items() else None


def made_by(listing: Path) -> str | None:
    """The digest of the code that made the files of `listing`; None where it does not say."""
    return _listed(listing).get(CODE)


def _listed(listing: Path) -> dict[str, str]:
    """{} where there is no readable listing: then every file is in doubt."""
    try:
        found = json.loads(listing.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
