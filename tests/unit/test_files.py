"""Files and folders appear whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from salescast.files import replace_dir, replace_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with replace_file(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    with replace_file(target) as temporary:
        temporary.write_text("two")
        assert target.read_text() == "one"
    assert target.read_text() == "two"
    assert names(target.parent) == ["file.txt"]


def test_the_file_has_the_rights_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replace_file(tmp_path / "file") as temporary:
            temporary.touch()
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("replace", [replace_file, replace_dir])
def test_an_error_leaves_the_earlier_one_and_nothing_else(tmp_path: Path, replace) -> None:
    target = tmp_path / "target"
    with replace(target) as temporary:
        (temporary / "part" if temporary.is_dir() else temporary).write_text("old")
    with pytest.raises(RuntimeError, match="stop"), replace(target) as temporary:
        (temporary / "part" if temporary.is_dir() else temporary).write_text("new")
        raise RuntimeError("stop")
    assert (target / "part" if target.is_dir() else target).read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_a_folder_replaces_a_folder_with_all_it_held(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with replace_dir(target) as temporary:
        (temporary / "gone").touch()
    with replace_dir(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "kept").touch()
    assert names(target) == ["sub"]
    assert names(tmp_path) == ["folder"]


def test_a_killed_writer_leaves_the_earlier_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from salescast.files import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
