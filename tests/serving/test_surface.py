"""The allow-list: the server answers inference, metadata and health, and nothing that changes its state."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import grpc
import httpx
import kserve.model_server
import pytest
from fastapi.routing import iter_route_contexts
from google.protobuf.message_factory import GetMessageClass
from kserve.model_repository import ModelRepository
from kserve.protocol.grpc import grpc_predict_v2_pb2
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from salescast.serving.server import Plane, RestServer

from .conftest import READY, Running, World

ROUTES = {
    ("GET", "/"),
    ("GET", "/docs"),
    ("any", "/docs/assets"),  # files
    ("GET", "/metrics"),
    ("GET", "/report"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_name}"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models"),
    ("GET", "/v2/models/{model_name}"),
    ("GET", "/v2/models/{model_name}/ready"),
    ("POST", "/v1/models/sales-forecast:predict"),
    ("POST", "/v1/models/{model_name}:predict"),  # 404
    ("POST", "/v2/models/sales-forecast/infer"),
    ("POST", "/v2/models/{model_name}/infer"),  # 404
}
METHODS = {"ModelInfer", "ModelMetadata", "ModelReady", "ServerLive", "ServerMetadata", "ServerReady"}
OTHER_SERVICES = [  # that gRPC servers often have
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.channelz.v1.Channelz/GetServers",
]


def test_the_routes_are_those_of_the_allow_list() -> None:
    models = ModelRepository()
    RestServer(
        "kserve.model_server:app", Plane(model_registry=models), ModelRepositoryExtension(models), 0
    ).create_application()
    found = set()
    for route in iter_route_contexts(kserve.model_server.app.routes):
        found |= {(method, route.path) for method in route.methods or ["any"]}
    assert {(method, path) for method, path in found if method != "HEAD"} == ROUTES


@pytest.mark.parametrize("path", ["load", "unload"])
def test_no_repository_over_rest(client: httpx.Client, path: str) -> None:
    assert client.post(f"/v2/repository/models/sales-forecast/{path}").status_code == 404
    assert client.post("/v2/repository/index", json={}).status_code == 404


def code(target: str, method: str, request: bytes) -> grpc.StatusCode:
    """The status of a call over a new connection: several workers share the port."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            channel.unary_unary(method)(request, timeout=60, wait_for_ready=True)
        except grpc.RpcError as error:
            found: grpc.StatusCode = error.code()
            return found
    return grpc.StatusCode.OK


def answered(target: str) -> set[str]:
    """The methods of the published service that the server has; each is called for the served model."""
    service = grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    found = set()
    for method in service.methods:
        request = GetMessageClass(method.input_type)()
        for name in {"name", "model_name"} & set(method.input_type.fields_by_name):
            setattr(request, name, "sales-forecast")
        if code(target, f"/{service.full_name}/{method.name}", request.SerializeToString()) != (
            grpc.StatusCode.UNIMPLEMENTED
        ):
            found.add(method.name)
    return found


def test_grpc_answers_the_allowed_methods_and_nothing_unloads_the_model(
    world: World, serve: Callable[..., AbstractContextManager[Running]]
) -> None:
    with serve(world.root, workers=2) as server:
        for _ in range(6):  # the kernel spreads connections over both workers
            assert answered(server.grpc) == METHODS
        assert {code(server.grpc, method, b"") for method in OTHER_SERVICES} == {grpc.StatusCode.UNIMPLEMENTED}
        for _ in range(12):
            assert httpx.get(server.url + READY, timeout=60).status_code == 200
            ready = grpc_predict_v2_pb2.ModelReadyRequest(name="sales-forecast").SerializeToString()
            assert code(server.grpc, "/inference.GRPCInferenceService/ModelReady", ready) == grpc.StatusCode.OK
