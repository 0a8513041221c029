"""The documents are right: every command in them is run, and every file, target and setting that they name exists.

Fenced blocks of `bash` and `python` are run, all of a document in one folder, in their order; a block of `text` after
one is what it prints. The folder has what a reader has: the virtual environment, a finished run in `shared`, and the
three files of the README. A comment before a block, `<!-- cluster -->` or `<!-- not run: why -->`, says that it is not
run; `<!-- until stopped: URL -->` that it serves, while the blocks after it are run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import polars as pl
import pytest

from salescast.cli import app
from salescast.config import Settings
from salescast.data.dataset import load
from salescast.model.config import RULES, TrainingSettings
from salescast.runtime.processes import free_port

from .conftest import SMALL

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT")] + sorted(
    ROOT.glob("docs/*.md")
)
WALKS = ("README.md", "your-data.md")  # minutes each; the others are tried at every `make test`
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>cluster|not run|until stopped)(?:: (?P<note>[^\n]*?))? -->\s*)?"
    r"^```(?P<kind>bash|python|text)\n(?P<code>.*?)^```",
    re.M | re.S,
)
INDENTED = re.compile(
    r"^    (?:make|salescast|kubectl|oc|curl|python|pip|podman|docker|git|source|\.venv/bin/\w+) .*", re.M
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#]+)?(#[^)]*)?\)")
PORTS = {"HTTP": "8080", "GRPC": "8081", "MLFLOW": "5000", "FEAST": "8888"}


def blocks(document: Path) -> list[re.Match[str]]:
    return [m for m in BLOCK.finditer(document.read_text()) if m["mark"] not in {"cluster", "not run"}]


class Reader:
    """A folder in which the blocks of a document are tried, with ports of its own."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.folder, self.running, self.said = folder, running, ""
        self.ports = {name: str(free_port()) for name in PORTS}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SALESCAST_", "MLFLOW_"))}
        own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        own |= {f"SALESCAST_{name}_PORT": port for name, port in self.ports.items()}
        self.environment = clean | SMALL | own

    def here(self, text: str) -> str:
        for name, port in PORTS.items():
            text = text.replace(f"localhost:{port}", f"localhost:{self.ports[name]}")
        return text

    def run(self, kind: str, code: str) -> None:
        command = (
            ["bash", "-euo", "pipefail", "-c", self.here(code)] if kind == "bash" else [sys.executable, "-c", code]
        )
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        self.said = done.stdout
        runs = sorted(self.folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
        if runs and not json.loads(runs[-1].read_text())["champion"]:  # what a reader is told to do then
            self.environment["SALESCAST_MODEL_DIR"] = str(runs[-1].parent / "models")

    def serve(self, code: str, url: str) -> None:
        process = subprocess.Popen(["bash", "-c", f"exec {code}"], cwd=self.folder, env=self.environment)
        self.running.callback(process.wait)
        self.running.callback(process.send_signal, signal.SIGINT)
        while not answers(self.here(url)):
            assert process.poll() is None, code
            time.sleep(0.1)

    def try_out(self, block: re.Match[str]) -> None:
        if block["mark"] == "until stopped":
            self.serve(block["code"], block["note"])
        elif block["kind"] == "text":
            assert [line for line in block["code"].splitlines() if line.strip() not in self.said] == []
        else:
            self.run(block["kind"], block["code"])


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def furnished(finished_run: tuple[Path, object], raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has, to be copied for each document."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(finished_run[0], folder / "shared")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "docs").symlink_to(ROOT / "docs")
    dataset = load(raw)
    names = {"store_id": "Store", "dept_id": "Dept", "week": "Date", "weekly_sales": "Weekly_Sales"}
    names |= {"store_type": "Type", "store_size": "Size", "region": "Region"}
    for name, table in (("train", dataset.sales), ("features", dataset.store_weeks), ("stores", dataset.stores)):
        table.lazy().rename(names, strict=False).filter(pl.col("Store") <= 2).collect().write_csv(
            folder / f"{name}.csv"
        )
    return folder


def anchors(document: Path) -> set[str]:
    """The anchors that a Markdown page makes of its headings."""
    heads = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [pytest.param(d, marks=[pytest.mark.long] * (d.name in WALKS)) for d in DOCUMENTS if blocks(d)],
    ids=lambda path: path.name,
)
def test_what_a_document_tells_to_run_runs(document: Path, furnished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(furnished, folder, symlinks=True)
    with ExitStack() as running:
        reader = Reader(folder, running)
        for block in blocks(document):
            reader.try_out(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_stand_in_fenced_blocks_and_name_what_there_is(document: Path) -> None:
    text = document.read_text()
    assert INDENTED.findall(text) == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    commands = {name for name, *_ in app.COMMANDS} | {"data"}
    assert set(re.findall(r"`salescast ([a-z]+)", text)) <= commands


def test_the_readme_names_every_variable() -> None:
    text = (ROOT / "README.md").read_text()
    fields = [*Settings.model_fields.values(), *TrainingSettings.model_fields.values()]
    variables = {str(field.validation_alias) for field in fields}
    assert {name for name in variables if f"`{name}`" not in text} == set()
    shown = set(re.findall(r"`(SALESCAST_\w+)`", text)) - variables
    assert shown == {"SALESCAST_MLFLOW_PORT", "SALESCAST_FEAST_PORT"}, "these are options of one command"


def test_the_readme_has_the_defaults_of_the_training_settings() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", (ROOT / "README.md").read_text(), re.M))
    for name in RULES:
        field = TrainingSettings.model_fields[name]
        values = field.default if isinstance(field.default, tuple) else (field.default,)
        shown = ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
        assert table[str(field.validation_alias)].strip("`") == shown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text()):
        page = (document.parent / target).resolve() if target else document
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), anchor


def test_the_architecture_names_every_package_and_only_modules_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    source = ROOT / "src" / "salescast"
    packages = {path.parent.name for path in source.glob("*/__init__.py")}
    assert set(re.findall(r"^    (\w+)/ ", text, re.M)) == packages
    modules = {path.stem for path in source.glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in text} == set()
    files = {path.name for path in source.rglob("templates/*")}  # report.html is a file, not a module
    named = re.findall(rf"`({'|'.join(packages)})\.(\w+)`", text)
    assert named
    named = [name for name in named if ".".join(name) not in files]
    assert [name for name in named if not source.joinpath(*name).with_suffix(".py").is_file()] == []
