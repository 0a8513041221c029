"""The documents say what is true: every command in them is run, every file and module they name exists.

A fenced block of `bash` or `python` is run, all of a document in one folder, in their order. A comment before a block,
`<!-- cluster ... -->` or `<!-- not run: ... -->`, says why it is not.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SMALL

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?P<excepted><!-- (?:cluster|not run:).*?-->\s*)?^```(?P<kind>bash|python)\n(?P<code>.*?)^```", re.M | re.S
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#]+)?(#[^)]*)?\)")


def blocks(document: Path) -> list[tuple[str, str]]:
    return [(m["kind"], m["code"]) for m in BLOCK.finditer(document.read_text()) if not m["excepted"]]


def anchors(document: Path) -> set[str]:
    """The anchors that a Markdown page makes of its headings."""
    heads = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d)], ids=lambda path: path.name)
def test_what_a_document_tells_to_run_runs(document: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SALESCAST_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = clean | SMALL | {"PATH": path, "REPOSITORY": str(ROOT)}
    for kind, code in blocks(document):
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text()):
        page = (document.parent / target).resolve() if target else document
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), anchor


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.stem for path in (ROOT / "src" / "salescast").glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in text and f"`{name}.py`" not in text} == set()
    named = set(re.findall(r"`(\w+)\.py`", text))
    assert named <= modules
