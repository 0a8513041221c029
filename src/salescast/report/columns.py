"""Arrays as text inside the page: small, exact to float32, and quick to open in a browser."""

import base64
import gzip
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Packed(NamedTuple):
    """`text`: base64 of gzip of the arrays. `layout`: by name, position of the first value and values per row."""

    text: str
    layout: dict[str, tuple[int, int]]


def pack(columns: Mapping[str, NDArray[np.float64]]) -> Packed:
    """Pack arrays (rows, width) one after another as float32, little-endian; NaN stays NaN.

    The first bytes of all values come first, then the second bytes, and so on: bytes of one significance resemble each
    other, so that gzip makes a third less of them.
    """
    layout, start = {}, 0
    for name, values in columns.items():
        layout[name] = (start, values.shape[1])
        start += values.size
    flat = np.concatenate([values.ravel() for values in columns.values()]).astype("<f4")
    planes = flat.view(np.uint8).reshape(-1, 4).T.tobytes()
    return Packed(base64.b64encode(gzip.compress(planes, compresslevel=6, mtime=0)).decode(), layout)
