"""Decode requests and encode answers (DESIGN §8): the V1 protocol here, V2 in `protocol_v2`.

A request becomes a `Query`, or a RequestError that names the wrong instance or field.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from kserve.errors import InvalidInput
from numpy.typing import NDArray

from salescast.feature_store.databases import Key
from salescast.feature_store.own_ids import OwnId
from salescast.schema import KEYS, MODEL_NAME

SMALLEST, LARGEST = int(np.iinfo(np.int32).min), int(np.iinfo(np.int32).max)  # entity ids
DEFAULT_LEVELS: Final = (0.1, 0.9)
Asked = int | str  # an entity id, or the retailer's own id
OWN: Final = {"store_id": "store", "dept_id": "dept"}  # the fields of own ids by entity
FIELDS: Final = (*KEYS, *OWN.values())
NAMES: Final[dict[Any, str]] = {str: "a string", list: "a list", dict: "an object"}


class RequestError(InvalidInput):  # type: ignore[misc]  # KServe is untyped
    """The request is wrong: 400, INVALID_ARGUMENT."""


class TooLargeError(RequestError):
    """Too many bytes or instances: 413."""


@dataclass(frozen=True)
class Limits:
    """The largest request that a model and a server accept."""

    horizon: int  # weeks
    levels: tuple[float, ...]  # the model's quantile levels
    instances: int  # series in one request


@dataclass(frozen=True)
class Query:
    """A request for n series and `horizon` weeks: the median and the quantiles `levels`."""

    series: list[tuple[Asked, Asked]]  # store, department
    horizon: int
    levels: tuple[float, ...]

    def own_ids(self) -> list[OwnId]:
        """The own ids to look up for `keys`."""
        return [(key, own) for pair in self.series for key, own in zip(KEYS, pair, strict=True) if isinstance(own, str)]

    def keys(self, ids: Mapping[OwnId, int]) -> list[Key]:
        """The entity ids of the n series; `ids`: those of the known own ids. Raises RequestError for an unknown one."""
        return [
            (self._id(number, "store_id", store, ids), self._id(number, "dept_id", dept, ids))
            for number, (store, dept) in enumerate(self.series)
        ]

    def described(self, number: int) -> str:
        """The ids of a series as they were asked for."""
        return ", ".join(
            f"{OWN[entity]} {asked!r}" if isinstance(asked, str) else f"{entity} {asked}"
            for entity, asked in zip(KEYS, self.series[number], strict=True)
        )

    def _id(self, number: int, entity: str, asked: Asked, ids: Mapping[OwnId, int]) -> int:
        if not isinstance(asked, str):
            return asked
        if (entity, asked) not in ids:
            raise RequestError(f"instances[{number}].{OWN[entity]} {asked[:40]!r} is unknown: no such id in the data")
        return ids[entity, asked]


@dataclass(frozen=True)
class Answer:
    """Forecasts of the n series of a query. NaN where a series has no history to start from."""

    query: Query
    keys: list[Key]  # of the n series
    forecast: NDArray[np.float64]  # [n, H], the median
    mean: NDArray[np.float64]  # [n, H]
    bounds: dict[str, NDArray[np.float64]]  # p10, p90 ... -> [n, H]
    weeks: NDArray[np.datetime64]  # [n, H]
    model_version: str
    feature_age_days: float  # of the oldest row used; 0 while its week has not ended


def parse_v1(body: bytes, limits: Limits) -> Query:
    """The query of a V1 body. Raises RequestError naming the field, or `instances[i]` with its field."""
    payload = parse_json(body)
    if not isinstance(payload, dict):
        raise RequestError(f'the body must be a JSON object with "instances", got {describe(payload)}')
    check_names(payload, ("instances", "parameters"), "the body")
    instances = payload.get("instances")
    if not isinstance(instances, list) or not instances:
        raise RequestError(f"instances must be a list of at least one instance, got {describe(instances)}")
    check_count(len(instances), limits)
    parameters = payload.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise RequestError(f"parameters must be an object, got {describe(parameters)}")
    horizon, levels = parse_parameters(parameters, limits)
    return Query([_series(number, instance) for number, instance in enumerate(instances)], horizon, levels)


def parse_json(body: bytes) -> Any:
    """Raises RequestError for anything that is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None


def _series(number: int, instance: Any) -> tuple[Asked, Asked]:
    where = f"instances[{number}]"
    if not isinstance(instance, dict):
        raise RequestError(f'{where} must be an object like {{"store_id": 1, "dept_id": 3}}, got {describe(instance)}')
    check_names(instance, FIELDS, where)
    return _asked(where, instance, "store_id"), _asked(where, instance, "dept_id")


def _asked(where: str, instance: Mapping[str, Any], entity: str) -> Asked:
    """The entity id of an instance, or the own id in its place. Raises RequestError unless it has one of them."""
    own = OWN[entity]
    if entity in instance:
        if own in instance:
            raise RequestError(f"{where} has both {entity} and {own}; give one of them")
        return check_id(instance[entity], f"{where}.{entity}")
    if own not in instance:
        raise RequestError(f"{where} is missing {entity}, or {own} for the retailer's own id")
    value = instance[own]
    if type(value) not in (int, str):
        raise RequestError(f"{where}.{own} must be a string or a whole number, got {describe(value)}")
    return str(value).strip()


def check_id(value: Any, where: str) -> int:
    """An entity id. Raises RequestError unless it is a 32-bit integer."""
    if type(value) is not int or not SMALLEST <= value <= LARGEST:  # excludes bool, a subclass of int
        raise RequestError(f"{where} must be a 32-bit integer, got {describe(value)}")
    return value


def render_v1(answer: Answer) -> bytes:
    """The V1 body of an answer, as JSON, with the own ids that were asked for."""
    weeks = np.datetime_as_string(answer.weeks)
    rows = [
        {
            **{OWN[entity]: asked for entity, asked in zip(KEYS, series, strict=True) if isinstance(asked, str)},
            "store_id": store,
            "dept_id": dept,
            "weeks": weeks[number].tolist(),
            "forecast": answer.forecast[number],
            "mean": answer.mean[number],
            **{name: values[number] for name, values in answer.bounds.items()},
        }
        for number, (series, (store, dept)) in enumerate(zip(answer.query.series, answer.keys, strict=True))
    ]
    body = {
        "predictions": rows,
        "model_name": MODEL_NAME,
        "model_version": answer.model_version,
        "feature_age_days": answer.feature_age_days,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def parse_parameters(parameters: Mapping[str, Any], limits: Limits) -> tuple[int, tuple[float, ...]]:
    """The horizon in weeks and the quantile levels of a request. Raises RequestError naming the parameter."""
    check_names(parameters, ("horizon", "quantiles"), "parameters")
    horizon = parameters.get("horizon", limits.horizon)
    if type(horizon) is not int or not 1 <= horizon <= limits.horizon:
        raise RequestError(f"parameters.horizon must be 1 to {limits.horizon} weeks, got {describe(horizon)}")
    levels = parameters.get("quantiles", list(DEFAULT_LEVELS))
    if not isinstance(levels, list) or not levels:
        raise RequestError(f"parameters.quantiles must be a list of {list(limits.levels)}, got {describe(levels)}")
    for level in levels:
        if type(level) is not float or level not in limits.levels:
            raise RequestError(f"parameters.quantiles must be among {list(limits.levels)}, got {describe(level)}")
    return horizon, tuple(dict.fromkeys(levels))


def check_count(instances: int, limits: Limits) -> None:
    """Raises TooLargeError when a request has more instances than allowed."""
    if instances > limits.instances:
        raise TooLargeError(f"instances: at most {limits.instances} a request, got {instances}; send several requests")


def check_fields(
    values: Mapping[str, Any], where: str, needed: Mapping[str, type], optional: Mapping[str, type]
) -> None:
    """Check the names and JSON types of fields; a null optional field counts as absent. Raises RequestError."""
    check_names(values, (*needed, *optional), where)
    for name, kind in needed.items():
        if not isinstance(values.get(name), kind):
            raise RequestError(f"{where}: {name} must be {NAMES[kind]}, got {describe(values.get(name))}")
    for name, kind in optional.items():
        if values.get(name) is not None and not isinstance(values[name], kind):
            raise RequestError(f"{where}: {name} must be {NAMES[kind]}, got {describe(values[name])}")


def check_names(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises RequestError naming the first unknown field."""
    unknown = [name for name in values if name not in known]
    if unknown:
        raise RequestError(f"{where}: unknown field {unknown[0][:40]!r}; known are {list(known)}")


def describe(value: Any) -> str:
    """A short description of a JSON value for a message, with its type where that helps."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (int, float)):
        return str(value)[:40]
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
