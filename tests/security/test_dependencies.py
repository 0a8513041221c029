"""Every package is pinned, no pin has a known vulnerability, and a bill of materials can be written."""

import json
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text().split())
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# First versions without vulnerabilities that matter here. `make audit` checks all, with a network.
FLOORS = {
    "torch": ("2.6.0", "CVE-2025-32434: weights_only=True ran code"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: reading a file ran code"),
    "jinja2": ("3.1.6", "CVE-2025-27516: sandbox escape"),
    "h11": ("0.16.0", "CVE-2025-43859: request smuggling"),
    "starlette": ("0.49.1", "CVE-2025-62727: a Range header exhausts a CPU"),
    "urllib3": ("2.5.0", "CVE-2025-50181: redirects followed although disabled"),
    "requests": ("2.32.4", "CVE-2024-47081: .netrc password sent to other hosts"),
    "protobuf": ("5.29.5", "CVE-2025-4565: unbounded recursion"),
    "aiohttp": ("3.12.14", "CVE-2025-53643: request smuggling"),
    "cryptography": ("44.0.1", "CVE-2024-12797: OpenSSL raw public keys"),
}


def distribution(name: str) -> Distribution:
    """The distribution that pip installed; Ray bundles copies of some and puts them first on the path."""
    installed = list(
        Distribution.discover(name=name, path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    )
    if not installed:
        raise PackageNotFoundError(name)
    return installed[0]


def needed(requirements: list[str]) -> set[str]:
    """Every package that these requirements install, directly or not."""
    found: set[str] = set()
    wanted = [(Requirement(text), "") for text in requirements]
    while wanted:
        requirement, extra = wanted.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        keys = {name, *(f"{name}[{wish}]" for wish in requirement.extras)}
        if keys <= found:
            continue
        found |= keys
        try:
            inner = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        wanted += [(Requirement(text), wish) for text in inner for wish in ("", *requirement.extras)]
    return {name for name in found if "[" not in name}


def test_every_installed_package_is_pinned() -> None:
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    own = PROJECT["name"]
    wanted = needed([text for text in PROJECT["dependencies"] + extras if Requirement(text).name != own])
    installed = set()
    for name in wanted:
        try:
            installed.add((name, distribution(name).version))
        except PackageNotFoundError:
            continue
    assert len(installed) > 200
    assert {name for name, _ in installed} <= PINS.keys()
    differs = {(name, found, PINS[name]) for name, found in installed if found.partition("+")[0] != PINS[name]}
    assert not differs, "installed, but not as pinned"


@pytest.mark.parametrize("name", FLOORS)
def test_no_pin_is_older_than_the_fix_of_a_vulnerability(name: str) -> None:
    floor, reason = FLOORS[name]
    assert Version(PINS[name]) >= Version(floor), reason


def test_the_bill_of_materials_names_every_pinned_package(tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("cyclonedx-py")
    out = tmp_path / "sbom.json"
    subprocess.run([tool, "requirements", ROOT / "constraints.txt", "--output-file", out], check=True)
    listed = json.loads(out.read_text())
    assert listed["bomFormat"] == "CycloneDX"
    assert {(canonicalize_name(part["name"]), part["version"]) for part in listed["components"]} == set(PINS.items())


def test_image_and_make_write_a_bill_of_materials() -> None:
    assert "cyclonedx-py environment /opt/venv/bin/python" in (ROOT / "Containerfile").read_text()
    assert "cyclonedx-py environment $(BIN)/python" in (ROOT / "Makefile").read_text()
