"""Feast, imported in half the time: it decorates its classes with typeguard, which compiles each of them anew.

Import Feast's names from here where a command first needs them. The checks are for authors of Feast; typeguard itself
is as before once this module is loaded.
"""

from typing import Any

import typeguard


def _unchecked(target: Any = None, **_: object) -> Any:
    """Stand in for `typeguard.typechecked`, with or without arguments: return what is decorated."""
    return _unchecked if target is None else target


_typechecked: Any = typeguard.typechecked
setattr(typeguard, "typechecked", _unchecked)  # noqa: B010 (an assignment would not satisfy mypy)
try:
    from feast import FeatureStore, Field, RepoConfig
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total
    from feast.types import Array, Float32, Int32, Int64, String
finally:
    setattr(typeguard, "typechecked", _typechecked)  # noqa: B010

__all__ = [
    "Array",
    "FeatureStore",
    "Field",
    "Float32",
    "Int32",
    "Int64",
    "RepoConfig",
    "String",
    "apply_total",
    "load_repo_config",
]
