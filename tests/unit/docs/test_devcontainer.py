"""The container for editors is one in which the project can be set up."""

import json
import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]


def test_the_container_for_editors_has_a_python_that_the_project_supports() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    python = container["image"].rpartition(":")[2]
    assert python in SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert container["postCreateCommand"].removeprefix("make ") in targets
