"""The import rules of docs/architecture.md, read from the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SRC: Final = Path(__file__).parents[2] / "src"
# From top to bottom: a package imports only from packages after it.
PACKAGES: Final = (
    "cli", "pipeline", "training", "serving", "report", "tracking", "evaluation", "model", "feature_store", "features",
    "data", "runtime",
)  # fmt: skip
MODULES: Final = ("workdir", "config", "retail_calendar", "schema", "errors")  # below all packages
UNRELATED: Final = (("training", "serving"), ("report", "tracking"), ("model", "feature_store"))
ONLY_IN: Final = {
    "feast": "feature_store", "mlflow": "tracking", "kserve": "serving", "typer": "cli",
    "torch.distributed": "training",
}  # fmt: skip
PUBLIC: Final = "__init__"  # the top one holds the public API


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports of a module, at any level of nesting."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """The forbidden imports of a module `package.name` (or a top module `name`) of salescast."""
    found = []
    place = module.partition(".")[0]
    for name in imported(source):
        if name.startswith("salescast."):
            target = name.split(".")[1]
            if place in PACKAGES and target in PACKAGES and target != place:
                if PACKAGES.index(target) < PACKAGES.index(place):
                    found.append(f"{module} imports {name}: upwards")
                if (place, target) in UNRELATED or (target, place) in UNRELATED:
                    found.append(f"{module} imports {name}: these packages must not import each other")
            if place in MODULES and target in PACKAGES:
                found.append(f"{module} imports {name}: upwards")
        found += [
            f"{module} imports {name}: only {owner} may"
            for library, owner in ONLY_IN.items()
            if place != owner and (name == library or name.startswith(f"{library}."))
        ]
    return found


def modules() -> dict[str, str]:
    root = SRC / "salescast"
    files = {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}
    return {name: path.read_text() for name, path in files.items() if name != PUBLIC}


def test_imports_go_down_only() -> None:
    assert [line for name, source in modules().items() for line in violations(name, source)] == []


def test_the_packages_are_known_and_their_init_files_are_empty() -> None:
    found = modules()
    assert {name.split(".")[0] for name in found} == {*PACKAGES, *MODULES}
    assert {name: source for name, source in found.items() if name.endswith(".__init__") and source} == {}


def test_feast_asof_does_not_import_salescast() -> None:
    for path in (SRC / "feast_asof").glob("*.py"):
        assert not [name for name in imported(path.read_text()) if name.split(".")[0] == "salescast"], path.name


def test_modules_have_no_import_cycles() -> None:
    sources = modules()
    imports = {name: list(imported(source)) for name, source in sources.items()}
    edges = {name: {n for n in sources if _refers(name, n, found)} for name, found in imports.items()}
    done: set[str] = set()
    while ready := {name for name, targets in edges.items() if name not in done and targets <= done}:
        done |= ready
    assert set(edges) - done == set()


def _refers(name: str, other: str, found: list[str]) -> bool:
    full = f"salescast.{other}"
    return name != other and any(one == full or one.startswith(f"{full}.") for one in found)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data.dataset", "from salescast.features import build"),
        ("training.main", "from salescast.serving import server"),
        ("serving.batch", "def f():\n    from salescast.training import trainer"),
        ("report.view", "from salescast.tracking import mlflow"),
        ("features.build", "import feast"),
        ("pipeline.run", "from mlflow import MlflowClient"),
        ("config", "from salescast.runtime import lock"),
        ("model.network", "import torch.distributed as dist"),
    ],
)
def test_a_forbidden_import_is_reported(module: str, line: str) -> None:
    assert violations(module, line)
