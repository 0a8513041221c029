"""The release notes are the section of one version of CHANGELOG.md."""

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CHANGELOG = """# Changes

Text before the sections.

## Unreleased

- new

## [1.10.0] - 2026-12-01

### Added

- ten

## 1.1.0

- one

## 1.0.0-rc1

## 1.0.0
- last"""


def release_notes() -> Any:
    """docs/release_notes.py."""
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / "docs" / "release_notes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Unreleased", "- new"),
        ("1.10.0", "### Added\n\n- ten"),
        ("1.1.0", "- one"),
        ("1.0.0-rc1", ""),
        ("1.0.0", "- last"),
        ("1.1", None),
        ("1.1.00", None),
        ("2.0.0", None),
        ("1.1.0|1.0.0", None),
    ],
)
def test_a_section_is_found_by_its_whole_name(name: str, text: str | None) -> None:
    assert release_notes().section(CHANGELOG, name) == text


@pytest.mark.parametrize(
    ("changelog", "printed", "said", "code"),
    [
        ("## Unreleased\n\n- new\n\n## 0.9.0\n\n- old\n", "- new\n", 'has no section "0.9.1"', 0),
        ("## Unreleased\n\n## 0.9.1 - 2026-12-01\n\n- mine\n", "- mine\n", "", 0),
        ("## 0.9.0\n\n- old\n", "", 'neither "0.9.1" nor "Unreleased"', 1),
    ],
)
def test_the_notes_are_those_of_the_version_or_not_yet_released(
    changelog: str,
    printed: str,
    said: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = release_notes()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.9.1"\n')
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.main() == code
    out, err = capsys.readouterr()
    assert out == printed
    assert said in err and bool(said) == bool(err)


def test_the_notes_of_this_version_have_text() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert release_notes().section(changelog, version) or release_notes().section(changelog, "Unreleased")
