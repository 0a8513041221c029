"""Digests of the code behind a result. They are part of every cache key, so a result is made again after a change.

The modules of a stage are found by following imports from its entry points. Comments, docstrings and layout do not
count. Importing this module loads no framework.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parents[2]
OWN: Final = ("salescast", "feast_asof")  # where the wheel is installed, SOURCE holds all other packages, too
# Entry points of the stages: modules from which imports are followed.
FEATURES: Final = ("salescast.features.build",)
RETRIEVAL: Final = ("salescast.feature_store.retrieval", "feast_asof.store", "feast_asof.ray_engine")
TRAINING: Final = ("salescast.training.main",)
LIBRARIES: Final = ("torch", "numpy", "polars", "holidays")
# Packages and modules that these stages import but that change no result: files, messages, what is recorded; settings,
# whose values are in the cache keys themselves; demo data, whose digest is that of the content.
EXCLUDED: Final = (
    "salescast.runtime",
    "salescast.tracking",
    "salescast.config",
    "salescast.errors",
    "salescast.workdir",
    "salescast.data.demo",
    "salescast.data.validation",
    "salescast.features.contracts",
    "salescast.model.config",
    "salescast.model.recipe",
    "salescast.training.checkpoint",
    "salescast.training.plan",
)


@cache
def digest(roots: tuple[str, ...], source: Path = SOURCE) -> str:
    """SHA-256 of the modules that `roots` import, directly or indirectly, and of the versions of LIBRARIES.

    `source` is the folder of the packages. Raises OSError when it is not there.
    """
    content = hashlib.sha256()
    for name in sorted(closure(roots, source)):
        content.update(f"{name}\0{_syntax(_path(name, source))}\0".encode())
    for library in LIBRARIES:
        content.update(f"{library}=={version(library)}\0".encode())
    return content.hexdigest()


def all_stages() -> str:
    """The digest of all code from a dataset to a bundle, for the run record."""
    return digest((*FEATURES, *RETRIEVAL, *TRAINING))


def closure(roots: tuple[str, ...], source: Path = SOURCE) -> set[str]:
    """`roots` and the modules that they import, directly or indirectly, without those of EXCLUDED."""
    modules: set[str] = set()
    queue = list(roots)
    while queue:
        name = queue.pop()
        if name not in modules and not _is_excluded(name):
            modules.add(name)
            queue += _imported(_path(name, source), source)
    return modules


def _is_excluded(name: str) -> bool:
    # salescast/__init__.py loads the public API, and with it every stage.
    return name == "salescast" or f"{name}.".startswith(tuple(f"{excluded}." for excluded in EXCLUDED))


def _path(name: str, source: Path) -> Path:
    path = source.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(path: Path, source: Path) -> Iterator[str]:
    """The modules of OWN that a file imports, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.partition(".")[0] in OWN and _path(name, source).is_file())


def _syntax(path: Path) -> str:
    """The file's syntax tree without docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
