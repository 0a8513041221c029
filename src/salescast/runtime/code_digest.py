"""Digests of the code that decides a result: part of every cache key, so that no result outlives a change of it.

Which modules those are follows from the imports of the stage that makes the result. Comments, docstrings and layout do
not count. Importing this module loads no framework.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parents[2]
FEATURES: Final = ("salescast.features.build",)
RETRIEVAL: Final = ("salescast.feature_store.retrieval", "feast_asof.store", "feast_asof.ray_engine")
TRAINING: Final = ("salescast.training.main",)
LIBRARIES: Final = ("torch", "numpy", "polars", "holidays")
# Imported by those stages, but nothing in a result depends on them: messages, files, settings (their values are in the
# keys themselves), what is reported and recorded. Demo data have a digest of their own.
ASIDE: Final = {
    "salescast", *(
        f"salescast.{module}"
        for module in (
            "config", "errors", "workdir", "runtime.atomic_files", "runtime.code_digest", "runtime.lock",
            "runtime.parquet", "runtime.processes", "runtime.progress", "data.demo", "data.validation",
            "features.contracts", "model.config", "model.recipe", "training.checkpoint", "training.plan",
            "tracking.journal", "tracking.mlflow", "tracking.run_record",
        )
    ),
}  # fmt: skip


@cache
def digest(roots: tuple[str, ...], source: Path = SOURCE) -> str:
    """sha256 over the modules that `roots` import, directly or not, and the versions of LIBRARIES.

    `source` is the folder of the packages. Raises OSError when the source is not there.
    """
    content = hashlib.sha256()
    for name in sorted(closure(roots, source)):
        content.update(f"{name}\0{_meaning(_path(name, source))}\0".encode())
    for library in LIBRARIES:
        content.update(f"{library}=={version(library)}\0".encode())
    return content.hexdigest()


def whole() -> str:
    """The digest of all code from a dataset to a bundle, for a run's record."""
    return digest((*FEATURES, *RETRIEVAL, *TRAINING))


def closure(roots: tuple[str, ...], source: Path = SOURCE) -> set[str]:
    """The modules that decide what `roots` make: they and what they import, without ASIDE."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in ASIDE:
            found.add(name)
            waiting += _imported(_path(name, source), source)
    return found


def _path(name: str, source: Path) -> Path:
    path = source.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(path: Path, source: Path) -> Iterator[str]:
    """The modules of `source` that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if _path(name, source).is_file())


def _meaning(path: Path) -> str:
    """The file's syntax tree without docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)
