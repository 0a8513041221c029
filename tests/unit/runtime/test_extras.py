"""Packages of the extras: the message without one, and that pyproject.toml declares all that the source imports."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from salescast.runtime import extras
from salescast.runtime.extras import Extra, MissingExtraError

ROOT: Final = Path(__file__).parents[3]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: Final[dict[str, list[str]]] = PROJECT["optional-dependencies"]
ALL: Final = [value for value in vars(extras).values() if isinstance(value, Extra)]
WITHIN: Final = {"psycopg-pool": "psycopg"}  # declared as an extra of the other package


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_without_the_package_one_line_says_what_needs_it_and_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.require(extras.SERVE)
    monkeypatch.setitem(sys.modules, "kserve", None)
    assert not extras.installed(extras.SERVE)
    with pytest.raises(MissingExtraError) as error:
        extras.require(extras.SERVE)
    assert str(error.value) == (
        "serving needs KServe, which is not installed. Install it with: pip install 'salescast[serve]'"
    )


def test_looking_for_a_package_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_found.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert extras.installed(Extra("serve", "only_found", "", ""))
    assert not extras.installed(Extra("serve", "not_found", "", ""))


@pytest.mark.parametrize("extra", ALL, ids=[extra.module for extra in ALL])
def test_the_named_extra_brings_the_package(extra: Extra) -> None:
    assert extra.module in names(EXTRAS[extra.name])
    assert extra.module not in names(PROJECT["dependencies"])


def test_all_is_every_extra_but_the_tools_of_development() -> None:
    (everything,) = (Requirement(text) for text in EXTRAS["all"])
    assert everything.name == PROJECT["name"] and everything.extras == EXTRAS.keys() - {"all", "dev", "docs"}


def test_every_package_that_the_source_imports_is_declared() -> None:
    installed = packages_distributions()
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "salescast", "feast_asof"}
    used = {name: {canonicalize_name(one) for one in installed[name]} for name in imported}
    declared = names(
        PROJECT["dependencies"] + [text for name in EXTRAS if name not in ("dev", "docs") for text in EXTRAS[name]]
    )
    declared |= {inner for inner, outer in WITHIN.items() if outer in declared}
    assert {name: found for name, found in used.items() if not found & declared} == {}
