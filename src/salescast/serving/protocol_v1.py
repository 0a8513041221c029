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
from salescast.schema import KEYS, MODEL_NAME

INT32: Final = np.iinfo(np.int32)
DEFAULT_LEVELS: Final = (0.1, 0.9)
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

    pairs: list[Key]
    horizon: int
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """Forecasts of the n series of a query. NaN where a series has no history to start from."""

    query: Query
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
    return Query([_pair(number, instance) for number, instance in enumerate(instances)], horizon, levels)


def parse_json(body: bytes) -> Any:
    """Raises RequestError for anything that is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None


def _pair(number: int, instance: Any) -> Key:
    if not isinstance(instance, dict):
        raise RequestError(
            f'instances[{number}] must be an object like {{"store_id": 1, "dept_id": 3}}, got {describe(instance)}'
        )
    if len(instance) != len(KEYS) or not all(name in instance for name in KEYS):
        check_names(instance, KEYS, f"instances[{number}]")
        raise RequestError(f"instances[{number}] is missing {[name for name in KEYS if name not in instance]}")
    store, dept = instance["store_id"], instance["dept_id"]
    for name, value in (("store_id", store), ("dept_id", dept)):
        if type(value) is not int or not INT32.min <= value <= INT32.max:  # excludes bool, a subclass of int
            raise RequestError(f"instances[{number}].{name} must be a 32-bit integer, got {describe(value)}")
    return store, dept


def render_v1(answer: Answer) -> bytes:
    """The V1 body of an answer, as JSON."""
    weeks = np.datetime_as_string(answer.weeks)
    rows = [
        {
            "store_id": store,
            "dept_id": dept,
            "weeks": weeks[number].tolist(),
            "forecast": answer.forecast[number],
            "mean": answer.mean[number],
            **{name: values[number] for name, values in answer.bounds.items()},
        }
        for number, (store, dept) in enumerate(answer.query.pairs)
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
