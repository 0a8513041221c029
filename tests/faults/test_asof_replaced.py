"""Parquet files are replaced all the time while features are retrieved: no result mixes two states."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feast_asof import entity_frame, local_engine
from feast_asof.engine import EngineSettings
from feast_asof.join import Feature, View

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
ROWS, FEATURES = 20_000, [f"f{number}" for number in range(8)]
WRITER = """
import itertools, pathlib, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
path = pathlib.Path(sys.argv[1])
for number in itertools.count(1):
    ids = np.random.default_rng(number).permutation({rows})
    stamps = pa.array(np.zeros({rows}, int), pa.timestamp("us", "UTC"))
    features = dict.fromkeys({features}, pa.array(ids * 1_000_000 + number))
    pq.write_table(pa.table({{"id": ids, "ts": stamps}} | features), path.with_name("beside"), row_group_size=2_000)
    path.with_name("beside").replace(path)
    if number == 1:
        print("begun", flush=True)
"""


@contextmanager
def replacing(path: Path) -> Iterator[None]:
    """Run a process that replaces the file as fast as it can."""
    code = WRITER.format(rows=ROWS, features=FEATURES)
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield
        finally:
            process.kill()


@pytest.mark.fault("Parquet files replaced while features are retrieved", "rows of one state of each file")
def test_a_result_never_mixes_two_states(tmp_path: Path, happened: Callable[[str], None]) -> None:
    path = tmp_path / "source.parquet"
    stamps = pa.array(np.zeros(ROWS, int), pa.timestamp("us", "UTC"))
    frame = entity_frame.read(pa.table({"id": np.arange(ROWS), "event_timestamp": stamps}))
    features = tuple(Feature(name, name, pa.int64()) for name in FEATURES)
    view = View("v", str(path), None, (("id", "id"),), "ts", None, features, 0, False)
    with replacing(path):
        for _ in range(10 * ROUNDS):
            table = local_engine.Historical(EngineSettings(), frame, [view], FEATURES).table()
            states = np.stack([table[name].to_numpy() - table["id"].to_numpy() * 1_000_000 for name in FEATURES])
            assert len(np.unique(states)) == 1
            happened("right result")
    assert pq.read_table(path).num_rows == ROWS
