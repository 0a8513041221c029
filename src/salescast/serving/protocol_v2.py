"""The V2 protocol: JSON tensors, JSON followed by binary tensors, and gRPC."""

import math
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
from kserve import InferOutput, InferRequest, InferResponse
from kserve.protocol.infer_type import InferInput, deserialize_bytes_tensor, to_http_parameters
from numpy.typing import NDArray

from salescast.schema import KEYS, MODEL_NAME
from salescast.serving.protocol_v1 import (
    Answer,
    Asked,
    Limits,
    Query,
    RequestError,
    check_count,
    check_fields,
    check_id,
    describe,
    parse_json,
    parse_parameters,
)

WIDTHS: Final = {"INT64": 8, "INT32": 4, "BYTES": 4}  # bytes of a value; of BYTES, those of its length


def decode_v2(body: bytes, json_length: int | None) -> InferRequest:
    """A V2 request from a REST body. `json_length`: bytes of JSON before binary tensors, None without any.

    Raises RequestError naming the field.
    """
    if json_length is not None and not 0 < json_length <= len(body):
        raise RequestError(f"inference-header-content-length must be 1 to {len(body)} (the body), got {json_length}")
    payload = parse_json(body[:json_length])
    if not isinstance(payload, dict):
        raise RequestError(f'the body must be a JSON object with "inputs", got {describe(payload)}')
    optional = {"id": str, "parameters": dict, "outputs": list, "model_name": str}  # KServe's client sends the name
    check_fields(payload, "the body", {"inputs": list}, optional)
    binary = 0
    for number, tensor in enumerate(payload["inputs"]):
        where = f"inputs[{number}]"
        if not isinstance(tensor, dict):
            raise RequestError(f"{where} must be an object, got {describe(tensor)}")
        check_fields(tensor, where, {"name": str, "shape": list, "datatype": str}, {"data": list, "parameters": dict})
        if tensor.get("data") is None:
            binary += _binary_size(tensor, where)
    if binary != len(body) - (length := len(body) if json_length is None else json_length):
        raise RequestError(f"inputs: binary_data_size sums to {binary} bytes, but {len(body) - length} follow the JSON")
    for number, output in enumerate(payload.get("outputs") or []):
        if not isinstance(output, dict):
            raise RequestError(f"outputs[{number}] must be an object, got {describe(output)}")
        check_fields(output, f"outputs[{number}]", {"name": str}, {"parameters": dict})
    return InferRequest.from_bytes(body, length, MODEL_NAME)


def _binary_size(tensor: Mapping[str, Any], where: str) -> int:
    """Bytes after the JSON that belong to a tensor without `data`.

    Raises RequestError unless its shape needs as many.
    """
    size = (tensor.get("parameters") or {}).get("binary_data_size")
    if type(size) is not int:
        raise RequestError(f"{where} is missing data (or parameters.binary_data_size)")
    if tensor["datatype"] not in WIDTHS:
        raise RequestError(f"{where}: datatype must be INT64 or BYTES, got {describe(tensor['datatype'])}")
    shape = tensor["shape"]
    positive = all(type(number) is int and number > 0 for number in shape)
    least = math.prod(shape) * WIDTHS[tensor["datatype"]] if positive else 0
    if not positive or size < least or (size > least and tensor["datatype"] != "BYTES"):
        raise RequestError(f"{where}: shape {tensor['shape']} does not fit binary_data_size {size}")
    return size


def parse_v2(request: InferRequest, limits: Limits) -> Query:
    """The query of a V2 request; INT64 inputs are entity ids, BYTES the retailer's own ids.

    Raises RequestError naming the input or parameter.
    """
    names = [tensor.name for tensor in request.inputs]
    if sorted(names) != sorted(KEYS):
        raise RequestError(f"inputs must be {list(KEYS)}, each once, got {names}")
    columns = {tensor.name: _ids(tensor, limits) for tensor in request.inputs}
    stores, depts = (columns[name] for name in KEYS)
    if len(stores) != len(depts):
        raise RequestError(f"inputs store_id and dept_id must have the same length, got {len(stores)} and {len(depts)}")
    parameters = dict(to_http_parameters(request.parameters or {}))
    parameters.pop("binary_data_output", None)
    quantiles = parameters.get("quantiles")
    if isinstance(quantiles, str):  # a V2 parameter cannot be a list
        try:
            parameters["quantiles"] = [float(part) for part in quantiles.split(",")]
        except ValueError:
            raise RequestError(f'parameters.quantiles must be like "0.1,0.9", got {quantiles!r}') from None
    horizon, levels = parse_parameters(parameters, limits)
    return Query(list(zip(stores, depts, strict=True)), horizon, levels)


def _ids(tensor: InferInput, limits: Limits) -> list[Asked]:
    """The ids of an INT64, INT32 or BYTES tensor of shape [n] or [n, 1]."""
    if tensor.datatype not in WIDTHS:
        raise RequestError(f"input {tensor.name}: datatype must be INT64 or BYTES, got {tensor.datatype!r}")
    shape = list(tensor.shape)
    if (
        not all(type(size) is int and size >= 0 for size in shape)
        or len(shape) not in (1, 2)
        or shape[1:] not in ([], [1])
    ):
        raise RequestError(f"input {tensor.name}: shape must be [n] or [n, 1], got {shape}")
    if shape[0] < 1:
        raise RequestError(f"input {tensor.name}: at least one instance is needed, got shape {shape}")
    check_count(shape[0], limits)
    # KServe does not expose gRPC's raw contents. BYTES are strings in JSON, bytes in gRPC.
    values = _raw_values(tensor, shape) if tensor._raw_data is not None else list(_flat(tensor.data or []))
    if len(values) != shape[0]:
        raise RequestError(f"input {tensor.name}: shape {shape} does not fit {len(values)} values")
    check = check_id if tensor.datatype != "BYTES" else _own_id
    return [check(value, f"input {tensor.name}[{number}]") for number, value in enumerate(values)]


def _raw_values(tensor: InferInput, shape: list[int]) -> list[Any]:
    content: bytes = tensor._raw_data
    if tensor.datatype == "BYTES":
        try:
            return list(deserialize_bytes_tensor(content).tolist())
        except struct.error as error:
            raise RequestError(f"input {tensor.name}: a length does not fit the bytes that follow: {error}") from None
    needed = shape[0] * WIDTHS[tensor.datatype]
    if len(content) != needed:
        raise RequestError(f"input {tensor.name}: shape {shape} needs {needed} bytes, got {len(content)}")
    return list(tensor.as_numpy().reshape(-1).tolist())


def _own_id(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"{where} must be UTF-8: {error}") from None
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string, got {describe(value)}")
    return value.strip()


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list) and len(value) == 1:
            yield value[0]
        else:
            yield value


def respond_v2(request: InferRequest, answer: Answer) -> bytes | InferResponse:
    """JSON for REST; for gRPC and for REST with binary tensors an object that KServe encodes.

    Raises RequestError for an unknown output.
    """
    tensors = {"forecast": answer.forecast, "mean": answer.mean, **answer.bounds}
    arrays: dict[str, tuple[str, NDArray[Any]]] = {name: ("FP64", values) for name, values in tensors.items()}
    arrays["week"] = ("BYTES", np.datetime_as_string(answer.weeks).astype(object))
    asked = request.request_outputs
    unknown = [output.name for output in asked or [] if output.name not in arrays]
    if unknown:
        raise RequestError(f"outputs {unknown} do not exist; known are {list(arrays)}")
    chosen = [output.name for output in asked] if asked else list(arrays)
    binary = request.use_binary_outputs or any(output.binary_data for output in asked or [])
    if request.from_grpc or binary:
        return _response(request, answer, {name: arrays[name] for name in chosen}, binary)
    body = {
        "id": request.id or uuid.uuid4().hex,
        "model_name": MODEL_NAME,
        "model_version": answer.model_version,
        "parameters": {"feature_age_days": answer.feature_age_days},
        "outputs": [
            {
                "name": name,
                "shape": arrays[name][1].shape,
                "datatype": arrays[name][0],
                "data": arrays[name][1].ravel().tolist(),
            }
            for name in chosen
        ],
    }
    return orjson.dumps(body)


def _response(
    request: InferRequest,
    answer: Answer,
    arrays: Mapping[str, tuple[str, NDArray[Any]]],
    binary: bool,
) -> InferResponse:
    outputs = []
    for name, (datatype, values) in arrays.items():
        output = InferOutput(name=name, shape=list(values.shape), datatype=datatype)
        output.set_data_from_numpy(values, binary_data=binary)
        outputs.append(output)
    return InferResponse(
        response_id=request.id or uuid.uuid4().hex,
        model_name=MODEL_NAME,
        model_version=answer.model_version,
        infer_outputs=outputs,
        from_grpc=request.from_grpc,
        parameters={"feature_age_days": str(answer.feature_age_days)},  # gRPC parameters cannot be floats
        use_binary_outputs=binary,
        requested_outputs=request.request_outputs,
    )
