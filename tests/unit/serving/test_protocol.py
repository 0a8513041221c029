"""Decoding of requests and encoding of answers, as JSON and as tensors; error messages."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kserve import InferRequest, InferResponse
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest

from salescast.schema import KEYS, level_name
from salescast.serving.protocol_v1 import Answer, Limits, Query, RequestError, TooLargeError, parse_v1, render_v1
from salescast.serving.protocol_v2 import decode_v2, parse_v2, respond_v2

LIMITS = Limits(horizon=8, levels=(0.1, 0.2, 0.5, 0.8, 0.9), instances=5)
OWN_FIELDS = ("store", "dept")
IDS = st.integers(-(2**31), 2**31 - 1)
GOOD = {"store_id": 1, "dept_id": 3}


def v1(value: object) -> Query:
    return parse_v1(json.dumps(value).encode(), LIMITS)


def tensors(stores: Any, depts: Any, **fields: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "shape": [len(ids)], "datatype": "INT64", "data": ids}
        for name, ids in (("store_id", stores), ("dept_id", depts))
    ]
    return {"inputs": inputs, **fields}


def v2(value: object, json_length: int | None = None) -> Query:
    return parse_v2(decode_v2(json.dumps(value).encode(), json_length), LIMITS)


@given(
    st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5),
    st.integers(1, 8),
    st.lists(st.sampled_from(LIMITS.levels), min_size=1),
)
def test_v1_and_v2_read_the_same_query(pairs: list[tuple[int, int]], horizon: int, levels: list[float]) -> None:
    expected = Query(pairs, horizon, tuple(dict.fromkeys(levels)))
    instances = [{"store_id": store, "dept_id": dept} for store, dept in pairs]
    assert v1({"instances": instances, "parameters": {"horizon": horizon, "quantiles": levels}}) == expected
    stores, depts = [store for store, _ in pairs], [dept for _, dept in pairs]
    parameters = {"horizon": horizon, "quantiles": ",".join(map(str, levels))}
    assert v2(tensors(stores, depts, parameters=parameters)) == expected
    column = tensors(stores, depts, parameters=parameters)
    for tensor in column["inputs"]:
        tensor |= {"shape": [len(pairs), 1], "data": [[value] for value in tensor["data"]]}
    assert v2(column) == expected


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5))
def test_binary_tensors_and_grpc_read_the_same_query(pairs: list[tuple[int, int]]) -> None:
    columns = np.array(pairs, dtype=np.int64).T
    header: dict[str, Any] = {"inputs": []}
    request = ModelInferRequest(model_name="sales-forecast")
    request.parameters["horizon"].int64_param = 2
    raw = b""
    for name, ids in zip(("store_id", "dept_id"), columns, strict=True):
        content = ids.tobytes()
        size = {"binary_data_size": len(content)}
        header["inputs"].append({"name": name, "shape": [len(ids)], "datatype": "INT64", "parameters": size})
        tensor = request.inputs.add(name=name, datatype="INT64", shape=[len(ids)])
        tensor.contents.int64_contents.extend(ids.tolist())
        raw += content
    text = json.dumps(header).encode()
    assert parse_v2(decode_v2(text + raw, len(text)), LIMITS) == Query(pairs, 8, (0.1, 0.9))
    assert parse_v2(InferRequest.from_grpc(request), LIMITS) == Query(pairs, 2, (0.1, 0.9))


OWN = st.text(min_size=1, max_size=12).map(str.strip)


@given(st.lists(st.tuples(IDS | OWN, IDS | OWN), min_size=1, max_size=5))
def test_v1_and_v2_read_own_ids(pairs: list[tuple[int | str, int | str]]) -> None:
    instances = [
        {own if isinstance(value, str) else key: value for value, key, own in zip(pair, KEYS, OWN_FIELDS, strict=True)}
        for pair in pairs
    ]
    assert v1({"instances": instances}).series == pairs
    texts = [(str(store), str(dept)) for store, dept in pairs]
    body = tensors(*([pair[at] for pair in texts] for at in (0, 1)))
    for tensor in body["inputs"]:
        tensor["datatype"] = "BYTES"
    assert v2(body).series == texts
    request = ModelInferRequest(model_name="sales-forecast")
    for at, key in enumerate(KEYS):
        request.inputs.add(name=key, datatype="BYTES", shape=[len(texts)])
        encoded = [pair[at].encode() for pair in texts]
        request.raw_input_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in encoded))
    assert parse_v2(InferRequest.from_grpc(request), LIMITS).series == texts


@given(st.binary(max_size=24))
def test_any_bytes_of_own_ids_are_a_query_or_a_request_error(content: bytes) -> None:
    request = ModelInferRequest(model_name="sales-forecast")
    for key in KEYS:
        request.inputs.add(name=key, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(content)
    try:
        assert len(parse_v2(InferRequest.from_grpc(request), LIMITS).series) == 1
    except RequestError as error:
        assert error.reason


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "instances",
                        "inputs",
                        "parameters",
                        "store_id",
                        "dept_id",
                        "store",
                        "dept",
                        "name",
                        "shape",
                        "data",
                        "datatype",
                        "outputs",
                        "horizon",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_query_or_a_request_error(value: object) -> None:
    body = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS) if _fits(value) else b"1"
    for parse in (lambda: parse_v1(body, LIMITS), lambda: parse_v2(decode_v2(body, None), LIMITS)):
        try:
            assert isinstance(parse(), Query)
        except RequestError as error:
            assert error.reason


def _fits(value: object) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


@given(st.binary(max_size=60), st.none() | st.integers(-5, 80))
def test_any_bytes_are_a_query_or_a_request_error(body: bytes, length: int | None) -> None:
    for parse in (lambda: parse_v1(body, LIMITS), lambda: parse_v2(decode_v2(body, length), LIMITS)):
        with pytest.raises(RequestError):
            parse()


def test_too_many_instances_are_too_large() -> None:
    with pytest.raises(TooLargeError, match="instances: at most 5 a request, got 6; send several requests"):
        v1({"instances": [GOOD] * 6})
    with pytest.raises(TooLargeError, match="at most 5"):
        v2(tensors([1] * 6, [1] * 6))


def an_answer(n: int = 2, horizon: int = 3) -> Answer:
    grid = np.arange(n * horizon, dtype=float).reshape(n, horizon)
    weeks = np.datetime64("2025-01-31") + 7 * np.arange(horizon) + np.zeros((n, 1), int)
    query = Query([(1, number) for number in range(n)], horizon, (0.1, 0.9))
    return Answer(query, query.keys({}), grid, grid + 0.5, {"p10": grid - 1, "p90": grid + 1}, weeks, "abc", 1.5)


def test_a_v1_answer_has_weeks_version_and_age() -> None:
    answer = orjson.loads(render_v1(an_answer()))
    assert answer == {
        "predictions": [
            {
                "store_id": 1,
                "dept_id": number,
                "weeks": ["2025-01-31", "2025-02-07", "2025-02-14"],
                "forecast": [3.0 * number + h for h in range(3)],
                "mean": [3.0 * number + h + 0.5 for h in range(3)],
                "p10": [3.0 * number + h - 1 for h in range(3)],
                "p90": [3.0 * number + h + 1 for h in range(3)],
            }
            for number in range(2)
        ],
        "model_name": "sales-forecast",
        "model_version": "abc",
        "feature_age_days": 1.5,
    }


def test_a_missing_forecast_is_null_and_not_zero() -> None:
    answer = an_answer(1, 2)
    answer.forecast[0, 1] = np.nan
    assert orjson.loads(render_v1(answer))["predictions"][0]["forecast"] == [0.0, None]


def _json(request: InferRequest, answer: Answer) -> dict[str, Any]:
    return orjson.loads(respond_v2(request, answer))


def _grpc(request: InferRequest, answer: Answer) -> dict[str, Any]:
    request.from_grpc = True
    response = respond_v2(request, answer)
    assert isinstance(response, InferResponse)
    back = InferResponse.from_grpc(response.to_grpc())
    return {**_plain(back), "parameters": {"feature_age_days": float(back.parameters["feature_age_days"].string_param)}}


def _binary(request: InferRequest, answer: Answer) -> dict[str, Any]:
    request.parameters = {"binary_data_output": True}
    response = respond_v2(request, answer)
    assert isinstance(response, InferResponse)
    content, length = response.to_rest()
    back = InferResponse.from_bytes(content, length)
    return {
        **_plain(back),
        "model_version": "abc",
        "parameters": {"feature_age_days": float(back.parameters["feature_age_days"])},
    }


def _plain(response: InferResponse) -> dict[str, Any]:
    outputs = [
        {
            "name": output.name,
            "shape": list(output.shape),
            "datatype": output.datatype,
            "data": [
                value.decode() if isinstance(value, bytes) else value for value in output.as_numpy().ravel().tolist()
            ],
        }
        for output in response.outputs
    ]
    return {
        "id": response.id,
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": outputs,
    }


@pytest.mark.parametrize("how", [_json, _grpc, _binary])
def test_a_v2_answer_is_the_same_in_every_encoding(how: Callable[..., dict[str, Any]]) -> None:
    answer = an_answer()
    request = decode_v2(json.dumps(tensors([1, 1], [0, 1], id="7")).encode(), None)
    grids = {"forecast": answer.forecast, "mean": answer.mean, **answer.bounds}
    numbers = [{"name": n, "shape": [2, 3], "datatype": "FP64", "data": g.ravel().tolist()} for n, g in grids.items()]
    weeks = ["2025-01-31", "2025-02-07", "2025-02-14"] * 2
    assert how(request, answer) == {
        "id": "7",
        "model_name": "sales-forecast",
        "model_version": "abc",
        "parameters": {"feature_age_days": 1.5},
        "outputs": [*numbers, {"name": "week", "shape": [2, 3], "datatype": "BYTES", "data": weeks}],
    }


def test_only_requested_outputs_are_sent() -> None:
    body = tensors([1, 1], [0, 1], outputs=[{"name": "p90"}])
    answer = orjson.loads(respond_v2(decode_v2(json.dumps(body).encode(), None), an_answer()))
    assert [output["name"] for output in answer["outputs"]] == ["p90"]
    body = tensors([1, 1], [0, 1], outputs=[{"name": "p50"}])
    with pytest.raises(
        RequestError, match=r"outputs \['p50'\] do not exist; known are \['forecast', 'mean', 'p10', 'p90', 'week'\]"
    ):
        respond_v2(decode_v2(json.dumps(body).encode(), None), an_answer())


def test_names_of_quantile_levels() -> None:
    assert [level_name(level) for level in (0.1, 0.025, 0.975, 0.29)] == ["p10", "p2.5", "p97.5", "p29"]
