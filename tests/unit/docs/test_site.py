"""The documentation site: complete, without broken links, and readable without a network."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
import yaml

import salescast
from salescast.cli import app

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages(nav: Any = CONFIG["nav"]) -> Iterator[str]:
    """Every file of the navigation."""
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages(value)


def hook() -> ModuleType:
    """docs/command_line.py."""
    spec = importlib.util.spec_from_file_location("command_line", DOCS / "command_line.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_navigation_names_every_page_once() -> None:
    assert sorted(pages()) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_python_page_has_every_public_name() -> None:
    named = re.findall(r"^::: salescast\.(\w+)$", (DOCS / "python.md").read_text(), re.M)
    assert sorted(named) == sorted(salescast.__all__)


def test_the_command_line_page_has_every_command_and_option() -> None:
    described = dict(hook().commands(typer.main.get_command(app.app)))
    assert {name.removeprefix("salescast ") for name in described} >= {name for name, *_ in app.COMMANDS}
    assert {"salescast data generate", "salescast data check", "salescast data import"} <= described.keys()
    for name, command in described.items():
        text = hook().section(name, command)
        assert [option for param in command.params for option in param.opts if f"`{option}`" not in text] == []
        assert {line.count(" | ") for line in text.splitlines() if line.startswith("| ")} == {2}, name


def test_the_json_page_has_every_command_with_json() -> None:
    cells = re.findall(r"^\| (`.*?`) \| ", (DOCS / "json.md").read_text(), re.M)
    listed = {f"salescast {name}" for cell in cells for name in re.findall(r"`([\w ]+)`", cell)}
    described = hook().commands(typer.main.get_command(app.app))
    assert listed == {name for name, command in described if any("--json" in param.opts for param in command.params)}


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder with mkdocs.yml."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=folder,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    html = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(html) == len(list(pages())) + 1, "one for each page, and 404.html"
    loaded = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\s\"'>]*)")
    assert {name: loaded.findall(text) for name, text in html.items() if loaded.search(text)} == {}
    assert [name for name in salescast.__all__ if f'id="salescast.{name}"' not in html["python.html"]] == []
    assert "SALESCAST_WORKDIR" in html["settings.html"]
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("page", "text", "reason"),
    [
        ("index.md", "No mistake.", None),
        ("index.md", "[a page](missing.md)", "'missing.md'"),
        ("index.md", "[a heading](tutorial.md#missing)", "'#missing'"),
        ("index.md", "![a picture](images/missing.png)", "'images/missing.png'"),
        ("python.md", "::: salescast.missing", "salescast.missing"),
        ("json.md", "[a class][salescast.missing]", "salescast.missing"),
        ("settings.md", '--8<-- "README.md:missing"', "section 'missing'"),
        ("forgotten.md", "A page that the navigation does not name.", "forgotten.md"),
    ],
)
def test_a_mistake_fails_the_build(page: str, text: str, reason: str | None, tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    with (tmp_path / "docs" / page).open("a") as file:
        file.write(f"\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert (done.returncode == 0) == (reason is None), done.stderr
    assert reason is None or reason in done.stderr
