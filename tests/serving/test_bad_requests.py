"""Wrong requests are answered 4xx, with a message that names the field or the instance."""

import json
from typing import Any

import httpx
import pytest

from .conftest import INFER, PREDICT

GOOD = {"store_id": 1, "dept_id": 1}


def instance(**changes: Any) -> dict[str, Any]:
    return {"instances": [GOOD, {**GOOD, **changes}]}


def parameters(**values: Any) -> dict[str, Any]:
    return {"instances": [GOOD], "parameters": values}


def tensor(name: str, /, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [1], "datatype": "INT64", "data": [1], **changes}


def v2(store: Any = None, dept: Any = None, **fields: Any) -> dict[str, Any]:
    return {"inputs": [store or tensor("store_id"), dept or tensor("dept_id")], **fields}


V1 = [
    ([], "JSON object"),
    ("text", "the string 'text'"),
    (None, "got null"),
    (3, "got 3"),
    ({}, "instances must be a list"),
    ({"instances": None}, "instances must be a list of at least one instance, got null"),
    ({"instances": []}, "instances must be a list of at least one instance, got a list of 0"),
    ({"instances": {}}, "instances must be a list"),
    ({"instances": "1,3"}, "instances must be a list"),
    ({"instances": [GOOD], "signature_name": "x"}, "unknown field 'signature_name'"),
    ({"instances": [GOOD, 7]}, "instances[1] must be an object"),
    ({"instances": [[1, 3]]}, "instances[0] must be an object"),
    ({"instances": [None]}, "instances[0] must be an object"),
    ({"instances": [{"store_id": 1}]}, "instances[0] is missing dept_id, or dept for"),
    ({"instances": [{"dept_id": 1}]}, "instances[0] is missing store_id, or store for"),
    ({"instances": [{}]}, "instances[0] is missing store_id, or store for"),
    (instance(store="1"), "instances[1] has both store_id and store"),
    ({"instances": [{"store": "1", "dept": True}]}, "instances[0].dept must be a string or a whole number, got true"),
    ({"instances": [{"store": None, "dept": "1"}]}, "instances[0].store must be a string or a whole number, got null"),
    ({"instances": [GOOD, {"store": "M\u00fcnchen", "dept": "1"}]}, "instances[1].store 'M\u00fcnchen' is unknown"),
    ({"instances": [{"store": "2", "dept": "99"}]}, "instances[0].dept '99' is unknown"),
    ({"instances": [{"store": "\0';--", "dept": 1}]}, "instances[0].store"),
    ({"instances": [{"Store": 1, "Dept": 1}]}, "instances[0]: unknown field 'Store'"),
    (instance(markdown=3.5), "instances[1]: unknown field 'markdown'"),
    (instance(is_holiday=True), "instances[1]: unknown field 'is_holiday'"),
    (instance(store_id="1"), "instances[1].store_id must be a 32-bit integer"),
    (instance(store_id=1.0), "instances[1].store_id must be a 32-bit integer"),
    (instance(store_id=1.5), "instances[1].store_id"),
    (instance(store_id=True), "instances[1].store_id must be a 32-bit integer, got true"),
    (instance(store_id=None), "instances[1].store_id must be a 32-bit integer, got null"),
    (instance(store_id=[1]), "instances[1].store_id"),
    (instance(store_id={}), "instances[1].store_id"),
    (instance(store_id=2**31), "instances[1].store_id"),
    (instance(store_id=-(2**31) - 1), "instances[1].store_id"),
    (instance(store_id=2**63), "instances[1].store_id"),
    (instance(dept_id=10**40), "instances[1].dept_id"),
    (instance(dept_id="x" * 5000), "instances[1].dept_id"),
    (instance(dept_id=1e300), "instances[1].dept_id"),
    (instance(dept_id=99), "instances[1] (store_id 1, dept_id 99) is unknown"),
    (instance(store_id=-1), "instances[1] (store_id -1, dept_id 1) is unknown"),
    (instance(store_id=0), "instances[1] (store_id 0, dept_id 1) is unknown"),
    ({"instances": [GOOD], "parameters": []}, "parameters must be an object"),
    ({"instances": [GOOD], "parameters": "horizon=3"}, "parameters must be an object"),
    (parameters(weeks=3), "parameters: unknown field 'weeks'"),
    (parameters(horizon=0), "parameters.horizon must be 1 to 8 weeks, got 0"),
    (parameters(horizon=-3), "parameters.horizon must be 1 to 8 weeks, got -3"),
    (parameters(horizon=9), "parameters.horizon must be 1 to 8 weeks, got 9"),
    (parameters(horizon=10**30), "parameters.horizon"),
    (parameters(horizon=2.0), "parameters.horizon"),
    (parameters(horizon="8"), "parameters.horizon"),
    (parameters(horizon=True), "parameters.horizon"),
    (parameters(horizon=None), "parameters.horizon"),
    (parameters(horizon=[1]), "parameters.horizon"),
    (parameters(quantiles=[]), "parameters.quantiles"),
    (parameters(quantiles=0.1), "parameters.quantiles"),
    (parameters(quantiles="0.1"), "parameters.quantiles"),
    (parameters(quantiles=[0.33]), "parameters.quantiles must be among"),
    (parameters(quantiles=[0.1, 1.5]), "parameters.quantiles must be among"),
    (parameters(quantiles=[-0.1]), "parameters.quantiles must be among"),
    (parameters(quantiles=["0.1"]), "parameters.quantiles must be among"),
    (parameters(quantiles=[None]), "parameters.quantiles must be among"),
    (parameters(quantiles=[1]), "parameters.quantiles must be among"),
]

V2 = [
    ([], "JSON object"),
    ({}, "inputs must be a list"),
    ({"inputs": {}}, "inputs must be a list"),
    ({"inputs": []}, "inputs must be ['store_id', 'dept_id']"),
    ({"inputs": [3]}, "inputs[0] must be an object"),
    ({"inputs": [tensor("store_id")]}, "inputs must be ['store_id', 'dept_id'], each once"),
    ({"inputs": [tensor("store_id"), tensor("store_id")]}, "each once"),
    (v2(tensor("lag_1", datatype="FP64")), "inputs must be"),
    (v2(tensor("store_id", name=None)), "inputs[0]: name must be a string, got null"),
    (v2(tensor("store_id", extra=1)), "inputs[0]: unknown field 'extra'"),
    (v2(tensor("store_id", shape=None)), "inputs[0]: shape must be a list"),
    (v2(tensor("store_id", shape=[2])), "input store_id: shape [2] does not fit 1 values"),
    (v2(tensor("store_id", shape=[0], data=[])), "input store_id: at least one instance"),
    (v2(tensor("store_id", shape=[-1])), "input store_id: shape must be [n] or [n, 1]"),
    (v2(tensor("store_id", shape=[1, 2], data=[1, 2])), "input store_id: shape"),
    (v2(tensor("store_id", shape=[1, 1, 1])), "input store_id: shape"),
    (v2(tensor("store_id", shape=["1"])), "input store_id: shape"),
    (v2(tensor("store_id", shape=[1.0])), "input store_id: shape"),
    (v2(tensor("store_id", shape=[])), "input store_id: shape"),
    (v2(tensor("store_id", shape=[2], data=[1, 2])), "must have the same length, got 2 and 1"),
    (v2(tensor("store_id", datatype="FP64")), "input store_id: datatype must be INT64"),
    (v2(tensor("store_id", datatype="FP16")), "FP16"),
    (v2(tensor("store_id", datatype="BYTES", data=[1])), "input store_id[0] must be a string, got 1"),
    (v2(tensor("store_id", datatype="BYTES", data=["no shop"])), "instances[0].store 'no shop' is unknown"),
    (v2(tensor("store_id", datatype=64)), "inputs[0]: datatype must be a string"),
    (v2(tensor("store_id", data=["1"])), "input store_id[0] must be a 32-bit integer"),
    (v2(tensor("store_id", data=[1.5])), "input store_id[0]"),
    (v2(tensor("store_id", data=[True])), "input store_id[0]"),
    (v2(tensor("store_id", data=[None])), "input store_id[0]"),
    (v2(tensor("store_id", data=[2**31])), "input store_id[0]"),
    (v2(tensor("store_id", data=[[[1]]])), "input store_id[0]"),
    (v2(tensor("store_id", data=None)), "inputs[0] is missing data"),
    (v2(tensor("store_id", data="AQ==")), "inputs[0]: data must be a list"),
    (v2(tensor("store_id", data=[404])), "instances[0] (store_id 404, dept_id 1) is unknown"),
    (v2(parameters={"horizon": 0}), "parameters.horizon"),
    (v2(parameters={"horizon": "3"}), "parameters.horizon"),
    (v2(parameters={"quantiles": "0.1;0.9"}), "parameters.quantiles"),
    (v2(parameters={"quantiles": 0.1}), "parameters.quantiles"),
    (v2(parameters=[]), "parameters must be an object"),
    (v2(parameters={"batch": 1}), "parameters: unknown field 'batch'"),
    (v2(outputs=[{"name": "price"}]), "outputs ['price'] do not exist"),
    (v2(outputs=["p10"]), "outputs[0] must be an object"),
    (v2(outputs="p10"), "outputs must be a list"),
    (v2(id=7), "id must be a string"),
]

RAW: list[tuple[str, bytes, dict[str, str], int, str]] = [
    (PREDICT, b"", {}, 400, "not JSON"),
    (PREDICT, b"{", {}, 400, "not JSON"),
    (PREDICT, b'{"instances": [{"store_id": NaN, "dept_id": 1}]}', {}, 400, "not JSON"),
    (PREDICT, b'{"instances": [{"store_id": Infinity, "dept_id": 1}]}', {}, 400, "not JSON"),
    (PREDICT, b"\xff\xfe\x00", {}, 400, "not JSON"),
    (PREDICT, b"[" * 100_000, {}, 400, "not JSON"),
    (PREDICT, b"store_id=1&dept_id=3", {"content-type": "application/x-www-form-urlencoded"}, 400, "not JSON"),
    (PREDICT, json.dumps({"instances": [GOOD]}).encode(), {"content-type": "text/xml"}, 415, "content-type must be"),
    (INFER, json.dumps(v2()).encode(), {"content-type": "image/png"}, 415, "content-type must be"),
    (PREDICT, b" " * (1 << 20) + b"{}", {}, 413, "more than 1048576 bytes"),
    (INFER, b" " * (1 << 21), {}, 413, "more than 1048576 bytes"),
    (PREDICT, json.dumps({"instances": [GOOD] * 5001}).encode(), {}, 413, "at most 5000 a request, got 5001"),
    (INFER, json.dumps(v2()).encode(), {"inference-header-content-length": "abc"}, 400, "inference-header"),
    (INFER, json.dumps(v2()).encode(), {"inference-header-content-length": "0"}, 400, "inference-header"),
    (INFER, json.dumps(v2()).encode(), {"inference-header-content-length": "99999"}, 400, "inference-header"),
    (INFER, json.dumps(v2()).encode(), {"inference-header-content-length": "20"}, 400, "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "message"), [*((PREDICT, *case) for case in V1), *((INFER, *case) for case in V2)]
)
def test_the_wrong_field_is_named(client: httpx.Client, path: str, body: object, message: str) -> None:
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, message in error) == (400, True), error
    assert len(error) < 400


@pytest.mark.parametrize(("path", "body", "headers", "status", "message"), RAW)
def test_bodies_and_headers(
    client: httpx.Client, path: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    answer = client.post(path, content=body, headers=headers)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_binary_tensors_that_do_not_fit(client: httpx.Client) -> None:
    def send(size: int, content: bytes) -> httpx.Response:
        inputs = [
            {"name": name, "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": size}}
            for name in ("store_id", "dept_id")
        ]
        text = json.dumps({"inputs": inputs}).encode()
        headers = {"inference-header-content-length": str(len(text)), "content-type": "application/octet-stream"}
        return client.post(INFER, content=text + content, headers=headers)

    two = (1).to_bytes(8, "little") * 2
    assert send(16, two + two).status_code == 200
    for size, content in ((16, two), (8, two + two), (15, two + two), (-1, two), (0, b"")):
        answer = send(size, content)
        assert answer.status_code == 400, (size, answer.text)
        assert "input" in answer.json()["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods(client: httpx.Client, method: str) -> None:
    assert client.request(method, PREDICT).status_code == 405
