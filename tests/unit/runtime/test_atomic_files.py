"""Files and folders appear complete or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feast_asof import replace
from salescast.runtime.atomic_files import replace_dir, replace_file, sweep


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


def test_the_file_has_the_permissions_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replace_file(tmp_path / "file") as temporary:
            temporary.touch()
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("replace", [replace_file, replace_dir])
def test_the_umask_of_the_process_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace) -> None:
    """It is shared by all threads: files that others create meanwhile would be writable for everybody."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("changed"))
    with replace(tmp_path / "target"):
        pass


def test_a_folder_moved_aside_by_a_killed_writer_is_put_back(tmp_path: Path) -> None:
    """Also after days: it may be the only copy."""
    (tmp_path / "deep" / ".folder.old").mkdir(parents=True)
    os.utime(tmp_path / "deep" / ".folder.old", (0, 0))
    sweep(tmp_path)
    assert names(tmp_path / "deep") == ["folder"]


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


def test_a_folder_replaces_a_folder_and_its_content(tmp_path: Path) -> None:
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
        "import os, signal, sys; from pathlib import Path; from salescast.runtime.atomic_files import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_on_file_systems_that_swap_and_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr(replace, "exchange", lambda *_: False)
    for content in ("one", "two"):
        with replace_dir(tmp_path / "folder") as temporary:
            (temporary / "file").write_text(content)
        assert (tmp_path / "folder" / "file").read_text() == content
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_swapped_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replace_dir(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("old")
    moved: list[Path] = []
    monkeypatch.setattr(Path, "replace", lambda *paths: moved.append(paths))
    monkeypatch.setattr(Path, "rename", lambda *paths: moved.append(paths))
    with replace_dir(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("new")
    assert not moved, "one step, no rename that leaves a gap"
    assert (tmp_path / "folder" / "file").read_text() == "new"


def test_files_left_by_killed_writers_are_removed_when_they_are_old(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from salescast.runtime.atomic_files import replace_dir, replace_file\n"
        "target = Path(sys.argv[1])\n"
        "with replace_file(target / 'f') as a, replace_dir(target / 'd') as b:\n"
        "    (b / 'x').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "deep")], check=False)
    (tmp_path / ".hidden").touch()
    left = sorted((tmp_path / "deep").iterdir())
    assert len(left) == 2
    sweep(tmp_path)
    assert sorted((tmp_path / "deep").iterdir()) == left, "somebody may still be writing them"
    for path in left:
        os.utime(path, (0, 0))
    sweep(tmp_path)
    assert names(tmp_path / "deep") == [] and (tmp_path / ".hidden").exists()
