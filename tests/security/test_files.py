"""No part of a request or of data becomes a path, and files have the permissions of the umask."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from salescast.data import dataset, ingest
from salescast.errors import UserError
from salescast.features.build import build_features
from salescast.serving import protocol_v1
from salescast.serving.protocol_v1 import Limits, RequestError

MARK = "zz-marker-zz"
NASTY = [f"../../{MARK}", f"/etc/{MARK}", f"file:///{MARK}", f"s3://{MARK}/x", f"*{MARK}*", f"{MARK}\0", f"$({MARK})"]
opened: list[str] = []
watching: list[bool] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if watching and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "os.mkdir",
        "os.rename",
        "subprocess.Popen",
        "socket.connect",
    ):
        opened.append(f"{event} {arguments}")


sys.addaudithook(_hook)  # cannot be removed again; it does nothing unless `watching` is set


@contextmanager
def watched() -> Iterator[None]:
    opened.clear()
    watching.append(True)
    try:
        yield
    finally:
        watching.clear()


def test_the_audit_hook_sees_opened_files(tmp_path: Path) -> None:
    with watched(), pytest.raises(FileNotFoundError):
        (tmp_path / MARK).open()
    assert any(MARK in event for event in opened)


@pytest.mark.parametrize("text", NASTY)
def test_no_part_of_a_data_file_becomes_a_path(tmp_path: Path, text: str) -> None:
    """Regions, store types, names of columns and of planned inputs, and every cell."""
    plain = text.replace("\0", "")
    weeks = [f"2024-0{month}-05" for month in (1, 4, 7)]
    rows = "".join(f"1,1,{week},5,{k}\n" for k, week in enumerate(["2024-01-05", "2024-01-12", "2024-01-19"]))
    (tmp_path / "sales.csv").write_text(f'Store,Dept,Date,Weekly_Sales,"{plain}"\n{rows}{text},1,{weeks[0]},5,0\n')
    (tmp_path / "stores.csv").write_text(f'Store,Type,Size,Region,"{plain}"\n1,"{plain}",5,"{plain}",x\n')
    with watched():
        report = ingest.import_sales(
            tmp_path / "sales.csv", None, tmp_path / "stores.csv", tmp_path / "raw", planned=[plain], skip_bad_rows=True
        )
        build_features(tmp_path / "raw", tmp_path / "out")
    assert report.rejected.height == 1
    assert not [event for event in opened if MARK in event]
    assert {path.name for path in (tmp_path / "raw").iterdir()} - {"names.parquet"} == {
        "sales.parquet", "store_weeks.parquet", "stores.parquet", "plan.parquet", "dataset.json", "rejected.csv",
    }  # fmt: skip
    assert len(list((tmp_path / "out").iterdir())) == 5
    with watched(), pytest.raises(UserError, match="no holidays are known for country"):
        ingest.import_sales(tmp_path / "sales.csv", None, None, tmp_path / "raw2", country=plain)
    assert not [event for event in opened if MARK in event]


@pytest.mark.parametrize("text", NASTY)
def test_no_part_of_a_request_becomes_a_path(text: str) -> None:
    import orjson

    limits = Limits(8, (0.1, 0.5, 0.9), 100)
    good = {"store_id": 1, "dept_id": 1}
    bodies = (
        {"instances": [{**good, "store_id": text}]},
        {"instances": [{**good, text: 1}]},
        {"instances": [good], text: 1},
        {"instances": [good], "parameters": {"horizon": text}},
        {"instances": [good], "parameters": {text: 1}},
    )
    for body in bodies:
        with watched(), pytest.raises(RequestError):
            protocol_v1.parse_v1(orjson.dumps(body), limits)
        assert not opened


@pytest.mark.parametrize(("umask", "allowed"), [(0o077, 0o700), (0o027, 0o750), (0o022, 0o755)])
def test_files_have_at_most_the_permissions_of_the_umask(tmp_path: Path, umask: int, allowed: int) -> None:
    code = (
        "import os, sys, pathlib\nfrom salescast.data import dataset\n"
        "from salescast.features.build import build_features\n"
        "os.umask(int(sys.argv[2])); root = pathlib.Path(sys.argv[1]) / 'work'\n"
        "dataset.generate(root / 'data' / 'raw', 1, 1, 60, 1)\n"
        "build_features(root / 'data' / 'raw', root / 'data')\n"
        "from salescast.runtime.lock import locked\n"
        "with locked(root): pass"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(umask)], check=True)
    made = sorted((tmp_path / "work").rglob("*"))
    assert len(made) >= 9
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & ~allowed == 0, (path, oct(mode))
        assert path.is_dir() or not mode & 0o111, path
        assert os.access(path, os.R_OK)


def test_a_generated_dataset_is_read_back(tmp_path: Path) -> None:
    """The data that the tests above generate are valid."""
    dataset.generate(tmp_path / "raw", 1, 1, 60, 1)
    assert dataset.load(tmp_path / "raw").meta.rows == 60
