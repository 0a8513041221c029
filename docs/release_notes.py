"""Print the section of CHANGELOG.md for the version in pyproject.toml: `make release-notes`."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
NEXT: Final = "Unreleased"  # the section of a version before its release


def section(changelog: str, name: str) -> str | None:
    """Text of the section `## name`, `## [name]` or `## name - date`, without the heading; None without one."""
    found = re.search(rf"^## \[?{re.escape(name)}\]?(?=[ (\n]|\Z)[^\n]*\n?(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    return found[1].strip() if found else None


def main() -> int:
    """Print the section; before the release, the one of unreleased changes. Exit code 1 when there is neither."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    notes = section(changelog, version)
    if notes is None:
        sys.stderr.write(f'CHANGELOG.md has no section "{version}"; this is "{NEXT}". Rename it for the release.\n')
        notes = section(changelog, NEXT)
    if not notes:
        sys.stderr.write(f'CHANGELOG.md has neither "{version}" nor "{NEXT}" with text; write what has changed.\n')
        return 1
    sys.stdout.write(f"{notes}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
