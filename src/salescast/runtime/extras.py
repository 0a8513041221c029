"""Packages that are installed on request only, and the error when one of them is missing.

`require` is called where such a package is first imported, so that a missing one ends a command with one line. An extra
of pyproject.toml brings it.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from salescast.errors import UserError


class MissingExtraError(UserError):
    """A package that was not installed is needed; the message names the extra that brings it."""


@dataclass(frozen=True)
class Extra:
    """One package of an extra of pyproject.toml."""

    name: str  # of the extra
    module: str  # of the package, as it is imported
    package: str  # its name for people
    use: str  # what needs it

    @property
    def missing(self) -> str:
        """What is missing and what to do."""
        return (
            f"{self.use} needs {self.package}, which is not installed. "
            f"Install it with: pip install 'salescast[{self.name}]'"
        )


SERVE = Extra("serve", "kserve", "KServe", "serving")
TRACKING = Extra("tracking", "mlflow", "MLflow", "tracking")
RAY = Extra("ray", "ray", "Ray", "a feature store with `engine: ray`")
POSTGRES = Extra("postgres", "psycopg", "psycopg", "a feature store in PostgreSQL")
KUBEFLOW = Extra("kubeflow", "kubeflow", "the Kubeflow SDK", "starting a training job")
LIGHTGBM = Extra("bench", "lightgbm", "LightGBM", "a reference model")
STATSFORECAST = Extra("bench", "statsforecast", "StatsForecast", "a reference model")


def installed(extra: Extra) -> bool:
    """Whether the package can be imported. It is not imported."""
    return find_spec(extra.module) is not None


def require(extra: Extra) -> None:
    """Raise MissingExtraError if the package is not installed."""
    if not installed(extra):
        raise MissingExtraError(extra.missing)
