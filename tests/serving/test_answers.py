"""The server's answers are the same over every protocol, and equal the offline forecast."""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import grpc
import httpx
import numpy as np
import polars as pl
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse, ModelReadyRequest

from salescast.schema import KEYS
from salescast.serving import batch
from salescast.serving.client import Client
from salescast.workdir import Workdir

from .conftest import DEPTS, INFER, PREDICT, READY, STORE_1, STORES, Running, World

INSTANCES = [{"store_id": store, "dept_id": dept} for store in range(1, STORES + 1) for dept in range(1, DEPTS + 1)]


@pytest.fixture(scope="module")
def offline(world: World) -> pl.DataFrame:
    return batch.forecast_all(Workdir(world.root), world.root / "models")


def test_the_server_forecasts_as_offline_for_500_series(client: httpx.Client, offline: pl.DataFrame) -> None:
    order = np.random.default_rng(0).permutation(len(INSTANCES))
    asked = [INSTANCES[number] for number in order]
    answer = client.post(PREDICT, json={"instances": asked, "parameters": {"quantiles": [0.1, 0.2, 0.9]}})
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert [{key: row[key] for key in KEYS} for row in predictions] == asked
    names = ["forecast", "p10", "p20", "p90"]
    served = (
        pl.DataFrame(predictions).explode("weeks", *names).with_columns(pl.col("weeks").str.to_date().alias("week"))
    )
    both = served.with_columns(pl.col(KEYS).cast(pl.Int32)).join(offline, on=[*KEYS, "week"], suffix="_offline")
    assert both.height == 8 * 500
    for name in names:
        np.testing.assert_allclose(both[name], both[f"{name}_offline"], rtol=1e-6, err_msg=name)
    assert both.filter((pl.col("p10") > pl.col("forecast")) | (pl.col("forecast") > pl.col("p90"))).is_empty()


def test_a_forecast_does_not_depend_on_the_rest_of_the_request(client: httpx.Client) -> None:
    many = client.post(PREDICT, json={"instances": INSTANCES[:50]}).json()["predictions"]
    for number in (0, 17, 49):
        alone = client.post(PREDICT, json={"instances": [INSTANCES[number]]}).json()["predictions"]
        np.testing.assert_allclose(alone[0]["forecast"], many[number]["forecast"], rtol=1e-6)


def _named(store: int | str, dept: int) -> dict[str, int | str]:
    return {"store": STORE_1 if store == 1 else str(store), "dept": str(dept)}


def test_own_ids_are_answered_as_entity_ids_are_over_every_protocol(running: Running, client: httpx.Client) -> None:
    pairs = [(1, 3), (2, 5), (25, 20), (1, 1)]
    by_id = client.post(PREDICT, json={"instances": [dict(zip(KEYS, pair, strict=True)) for pair in pairs]}).json()
    asked = [_named(*pair) for pair in pairs]
    predictions = client.post(PREDICT, json={"instances": asked}).json()["predictions"]
    assert predictions == [own | row for own, row in zip(asked, by_id["predictions"], strict=True)]
    mixed = client.post(PREDICT, json={"instances": [{"store": 2, "dept_id": 5}]}).json()["predictions"]
    assert mixed == [{"store": "2"} | by_id["predictions"][1]]

    forecasts = [row["forecast"] for row in by_id["predictions"]]
    columns = {key: [row[name] for row in asked] for key, name in (("store_id", "store"), ("dept_id", "dept"))}
    inputs = [{"name": key, "shape": [4], "datatype": "BYTES", "data": own} for key, own in columns.items()]
    (output,) = client.post(INFER, json={"inputs": inputs, "outputs": [{"name": "forecast"}]}).json()["outputs"]
    assert np.reshape(output["data"], (4, -1)).tolist() == forecasts
    for binary in (True, False):
        tensors = [InferInput(key, [4], "BYTES") for key in KEYS]
        for tensor in tensors:
            tensor.set_data_from_numpy(np.array(columns[tensor.name], dtype=object), binary_data=binary)
        body, length = InferRequest("sales-forecast", tensors).to_rest()
        headers = {"inference-header-content-length": str(length)} if binary else {}
        content = body if binary else json.dumps(body).encode()
        answer = client.post(INFER, content=content, headers={"content-type": "application/json", **headers}).json()
        assert np.reshape(answer["outputs"][0]["data"], (4, -1)).tolist() == forecasts
    request = ModelInferRequest(model_name="sales-forecast")
    for key, own in columns.items():
        added = request.inputs.add(name=key, shape=[4], datatype="BYTES")
        added.contents.bytes_contents.extend(name.encode() for name in own)
    with grpc.insecure_channel(running.grpc) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        (first,) = [output for output in infer(request).outputs if output.name == "forecast"]
    assert np.reshape(first.contents.fp64_contents, (4, -1)).tolist() == forecasts


def test_kserves_own_rest_client_is_answered(running: Running, client: httpx.Client) -> None:
    expected = client.post(PREDICT, json={"instances": INSTANCES[:2]}).json()["predictions"]

    async def ask(binary: bool) -> np.ndarray:
        tensors = [InferInput(key, [2], "INT64") for key in KEYS]
        for tensor in tensors:
            ids = np.array([row[tensor.name] for row in INSTANCES[:2]], dtype=np.int64)
            tensor.set_data_from_numpy(ids, binary_data=binary)
        kserve_client = InferenceRESTClient(RESTConfig(protocol="v2"))
        answer = await kserve_client.infer(running.url, InferRequest("sales-forecast", tensors), "sales-forecast")
        (output,) = [output for output in answer.outputs if output.name == "forecast"]
        return output.as_numpy()

    for binary in (True, False):
        forecasts = asyncio.run(ask(binary))
        np.testing.assert_allclose(forecasts, [row["forecast"] for row in expected], rtol=1e-6)


def test_the_client_takes_own_ids(running: Running) -> None:
    with Client(running.url) as forecasts:
        named = forecasts.forecast([(STORE_1, "3"), (STORE_1, 4)], weeks=2)
        by_id = forecasts.forecast([(1, 3), (1, 4)], weeks=2)
    assert named.drop("store", "dept").equals(by_id)
    assert named.select("store", "dept").rows() == [(STORE_1, "3")] * 2 + [(STORE_1, None)] * 2


def test_a_shorter_horizon_is_the_beginning_of_the_longer(client: httpx.Client) -> None:
    whole = client.post(PREDICT, json={"instances": INSTANCES[:3]}).json()["predictions"]
    short = client.post(PREDICT, json={"instances": INSTANCES[:3], "parameters": {"horizon": 2}}).json()["predictions"]
    for a, b in zip(whole, short, strict=True):
        assert b["weeks"] == a["weeks"][:2]
        np.testing.assert_allclose(b["forecast"], a["forecast"][:2], rtol=1e-6)


def test_v2_and_grpc_answer_as_v1(running: Running, client: httpx.Client) -> None:
    asked = INSTANCES[:7]
    expected = client.post(PREDICT, json={"instances": asked, "parameters": {"horizon": 3}}).json()
    forecasts = np.array([row["forecast"] for row in expected["predictions"]])
    inputs = [{"name": key, "shape": [7], "datatype": "INT64", "data": [row[key] for row in asked]} for key in KEYS]
    v2 = client.post(INFER, json={"id": "a", "inputs": inputs, "parameters": {"horizon": 3}}).json()
    assert (v2["id"], v2["model_version"]) == ("a", expected["model_version"])
    outputs = {output["name"]: output for output in v2["outputs"]}
    np.testing.assert_allclose(np.reshape(outputs["forecast"]["data"], (7, 3)), forecasts, rtol=1e-6)
    assert outputs["week"]["data"][:3] == expected["predictions"][0]["weeks"]

    request = ModelInferRequest(model_name="sales-forecast")
    request.parameters["horizon"].int64_param = 3
    for tensor in inputs:
        added = request.inputs.add(name=tensor["name"], shape=[7], datatype="INT64")
        added.contents.int64_contents.extend(tensor["data"])
    with grpc.insecure_channel(running.grpc) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        answer = infer(request, timeout=60)
        assert answer.model_version == expected["model_version"]
        np.testing.assert_allclose(np.reshape(answer.outputs[0].contents.fp64_contents, (7, 3)), forecasts, rtol=1e-6)
        request.inputs[0].contents.int64_contents[2] = 999
        with pytest.raises(grpc.RpcError) as caught:
            infer(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "instances[2] (store_id 999, dept_id 3) is unknown" in caught.value.details()


async def _ask(address: str, request: InferRequest):
    async with InferenceGRPCClient(address, timeout=60) as client:
        return await client.infer(request)


def test_kserves_own_client_works_with_its_defaults(running: Running) -> None:
    """KServe's InferInput sends binary tensors unless told otherwise."""
    import asyncio

    tensors = []
    for key in KEYS:
        tensor = InferInput(name=key, shape=[2], datatype="INT64")
        tensor.set_data_from_numpy(np.array([1, 2], dtype=np.int64))
        tensors.append(tensor)
    answer = asyncio.run(_ask(running.grpc, InferRequest(model_name="sales-forecast", infer_inputs=tensors)))
    assert answer.outputs[0].as_numpy().shape == (2, 8)


def test_health_metadata_docs_and_metrics(running: Running, client: httpx.Client) -> None:
    assert client.get("/").json() == {"status": "alive"}
    assert client.get("/v1/models").json() == {"models": ["sales-forecast"]}
    assert client.get("/v1/models/sales-forecast").json() == {"name": "sales-forecast", "ready": True}
    assert client.get(READY).json() == {"name": "sales-forecast", "ready": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    metadata = client.get("/v2/models/sales-forecast").json()
    assert [tensor["name"] for tensor in metadata["inputs"]] == list(KEYS)
    assert client.get("/v1/models/other").status_code == 404
    assert client.post("/v1/models/other:predict", json={}).json() == {"error": "Model with name other does not exist."}
    before = _metrics(client)
    client.post(PREDICT, json={"instances": INSTANCES[:3], "parameters": {"horizon": 2}})
    client.post(PREDICT, json={"instances": []})
    after = _metrics(client)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)}
    version = client.post(PREDICT, json={"instances": INSTANCES[:1]}).json()["model_version"]
    assert grown['salescast_requests_total{outcome="ok",protocol="v1"}'] == 1
    assert grown['salescast_requests_total{outcome="bad_request",protocol="v1"}'] == 1
    assert grown["salescast_instances_total"] == 3
    assert grown[f'salescast_forecasts_total{{model_version="{version}"}}'] == 6
    assert grown["salescast_feature_read_seconds_count"] == 1
    assert grown["salescast_model_seconds_count"] == 1
    assert after["salescast_feature_age_days"] > 0
    with grpc.insecure_channel(running.grpc) as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady", request_serializer=ModelReadyRequest.SerializeToString
        )
        assert ready(ModelReadyRequest(name="sales-forecast"), timeout=60) == b"\x08\x01"


def test_the_pages_for_people_need_no_other_host(client: httpx.Client) -> None:
    assert "://" not in client.get("/docs").text
    for asset in re.findall(r'(?:src|href)="([^"]+)"', client.get("/docs").text):
        assert client.get(f"/{asset}").status_code == 200, asset
    information = client.get("/openapi.json").json()["info"]
    assert (information["title"], information["version"]) == ("salescast forecast server", version("salescast"))
    model = client.post(PREDICT, json={"instances": INSTANCES[:1]}).json()["model_version"]
    start = client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert start.headers["content-type"].startswith("text/html")
    assert f"version {model}; the oldest features last used are" in start.text
    for link in re.findall(r'href="([^"]+)"', start.text):
        assert client.get(f"/{link}").status_code == 200, link
    assert client.get("/").json() == {"status": "alive"}


def _metrics(client: httpx.Client) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("salescast")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_nobody_can_unload_the_model(client: httpx.Client) -> None:
    assert client.post("/v2/repository/models/sales-forecast/unload").status_code == 404
    assert client.post("/v1/models/sales-forecast:explain", json={"instances": INSTANCES[:1]}).status_code == 405
    assert client.get(READY).status_code == 200


@pytest.mark.parametrize("name", ["charset", "curl", "none"])
def test_content_types_that_clients_use_for_json(client: httpx.Client, name: str) -> None:
    kinds = {"charset": "application/json; charset=utf-8", "curl": "application/x-www-form-urlencoded", "none": None}
    headers = {"content-type": kinds[name]} if kinds[name] else {}
    answer = client.post(PREDICT, content=b'{"instances": [{"store_id": 1, "dept_id": 1}]}', headers=headers)
    assert answer.status_code == 200, answer.text


def test_the_port_of_a_running_server_is_refused(running: Running, world: World) -> None:
    from salescast.errors import UserError
    from salescast.serving import supervisor

    port = int(running.url.rpartition(":")[2])
    with pytest.raises(UserError, match=f"HTTP port {port} cannot be used: Address already in use; choose another one"):
        supervisor.main(Workdir(world.root), None, port, port + 1)


def test_a_missing_bundle_is_named(tmp_path: Path, world: World) -> None:
    from salescast.errors import UserError
    from salescast.serving import supervisor

    with pytest.raises(UserError, match=r"no model bundle in .*models; run `salescast train` first"):
        supervisor.main(Workdir(tmp_path), tmp_path / "models", 1, 1)
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match=r"model_metadata.json cannot be read"):
        from salescast.serving.server import ForecastModel

        ForecastModel(tmp_path / "models", world.root / "feature_repo")


def test_the_start_page_links_to_the_other_pages_and_shows_the_report_if_asked(
    serve: Callable[..., AbstractContextManager[Running]], world: World, tmp_path: Path, client: httpx.Client
) -> None:
    assert client.get("/report").status_code == 404
    root = world.copy(tmp_path / "work")
    (root / "report.html").write_text("<h1>the report</h1>")
    pages = json.dumps({"MLflow": "http://localhost:5000", "report": "report"})
    with serve(root, SALESCAST_PAGES=pages) as running, running.client() as own:
        text = own.get("/", headers={"accept": "text/html"}).text
        assert '<a href="http://localhost:5000">MLflow</a>' in text and '<a href="report">report</a>' in text
        assert "The online store answers." in text
        assert own.get("/report").text == "<h1>the report</h1>"
