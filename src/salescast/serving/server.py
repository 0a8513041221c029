"""The forecast server: KServe's model server with our routes (DESIGN §8).

KServe runs uvicorn, gRPC, health and signals. Its REST routes are replaced, and its gRPC methods limited to an
allow-list: they let any client unload the model, read bodies of any size, parse V2 bodies before the model sees
them, and answer 500 to some malformed requests (docs/LOG.md has the comparison).
"""

import gc
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import kserve.model_server
from grpc import HandlerCallDetails, RpcMethodHandler, aio
from kserve import InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.rest.server import RESTServer
from prometheus_client import Counter

from salescast.config import settings
from salescast.runtime.processes import announce
from salescast.schema import MODEL_NAME
from salescast.serving import protocol_v1, protocol_v2, routes
from salescast.serving.availability import BusyError, UnavailableError
from salescast.serving.forecaster import Forecaster

# Every other method is UNIMPLEMENTED, including those of later KServe versions.
GRPC_METHODS: Final = frozenset(
    f"/inference.GRPCInferenceService/{name}"
    for name in ("ModelInfer", "ModelMetadata", "ModelReady", "ServerLive", "ServerMetadata", "ServerReady")
)

REQUESTS = Counter("salescast_requests", "Requests for forecasts, by outcome", ["protocol", "outcome"])


class ForecastModel(Model):  # type: ignore[misc]  # KServe is untyped
    """The forecaster as a KServe model. Its payload is a body from REST or an InferRequest from gRPC."""

    def __init__(self, folder: Path, repo: Path) -> None:
        """Raises UserError when there is no usable bundle or feature repo."""
        super().__init__(MODEL_NAME)
        self.forecaster = Forecaster(folder, repo, settings())
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, lambda *_: self.forecaster.refresh())
        self.ready = True

    def validate(self, payload: Any) -> Any:
        return payload  # `predict` does it

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": "INT64", "shape": [-1]} for name in ("store_id", "dept_id")]

    def get_output_types(self) -> list[dict[str, Any]]:
        kinds = {"forecast": "FP64", "mean": "FP64", "p10": "FP64", "p90": "FP64", "week": "BYTES"}
        return [{"name": name, "datatype": kind, "shape": [-1, -1]} for name, kind in kinds.items()]

    async def predict(
        self,
        payload: routes.Body | InferRequest,
        headers: dict[str, str] | None = None,  # noqa: ARG002  # KServe's signature
        response_headers: dict[str, str] | None = None,  # noqa: ARG002
    ) -> bytes | InferResponse:
        """Raises InvalidInput (RequestError where it is ours), UnavailableError."""
        kind = payload.protocol if isinstance(payload, routes.Body) else "grpc"
        with _counted(kind):
            if kind == "v1":
                content = payload.content
                return protocol_v1.render_v1(
                    await self.forecaster.answer(lambda limits: protocol_v1.parse_v1(content, limits))
                )
            request = protocol_v2.decode_v2(payload.content, payload.json_length) if kind == "v2" else payload
            answer = await self.forecaster.answer(lambda limits: protocol_v2.parse_v2(request, limits))
            return protocol_v2.respond_v2(request, answer)


@contextmanager
def _counted(kind: str) -> Iterator[None]:
    outcome = "error"
    try:
        yield
        outcome = "ok"
    except InvalidInput:
        outcome = "bad_request"
        raise
    except BusyError:
        outcome = "busy"
        raise
    except UnavailableError:
        outcome = "unavailable"
        raise
    finally:
        REQUESTS.labels(kind, outcome).inc()


class Plane(DataPlane):  # type: ignore[misc]
    """Readiness, over REST and gRPC, that includes the online store."""

    async def ready(self) -> bool:
        return await self.model_ready(MODEL_NAME)

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """Raises ModelNotFound, and UnavailableError that names what is down."""
        loaded = await super().model_ready(model_name, disable_predictor_health_check)
        await self.get_model_from_registry(model_name).forecaster.ready()
        return bool(loaded)


class RestServer(RESTServer):  # type: ignore[misc]
    """KServe's REST server with our routes, on a port that other processes may share."""

    shared = False
    listening: Callable[[], None]

    def _register_endpoints(self, app: Any) -> None:
        routes.register(app, self.dataplane, settings().max_body_bytes)

    def _add_exception_handlers(self, app: Any) -> None:
        super()._add_exception_handlers(app)
        routes.handle_errors(app)

    async def start(self) -> None:
        self.create_application()
        # Without IPPROTO_TCP the event loop leaves Nagle's algorithm on, which delays every answer by 40 ms.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((self.config.host, self.config.port))
            listener.listen(self.config.backlog)
            announce(f"listening on port {self.config.port}")
            self.listening()
            await self._server.serve(sockets=[listener])


class AllowedMethods(aio.ServerInterceptor):  # type: ignore[misc]
    """Rejects every method that is not in GRPC_METHODS."""

    async def intercept_service(
        self,
        continuation: Callable[[HandlerCallDetails], Awaitable[RpcMethodHandler | None]],
        handler_call_details: HandlerCallDetails,
    ) -> RpcMethodHandler | None:
        return await continuation(handler_call_details) if handler_call_details.method in GRPC_METHODS else None


class GrpcServer(GRPCServer):  # type: ignore[misc]
    """KServe's gRPC server with our interceptor, for which KServe has no parameter."""

    async def start(self, max_workers: int) -> None:
        sizes = ("grpc_max_send_message_length", "grpc_max_receive_message_length")
        self._server = aio.server(
            ThreadPoolExecutor(max_workers),
            interceptors=(AllowedMethods(), ExceptionToStatusInterceptor()),
            options=[(name.replace("_", ".", 1), self._kwargs[name]) for name in sizes],
        )
        servicer = InferenceServicer(self._data_plane, self._model_repository_extension)
        add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        self._server.add_insecure_port(f"[::]:{self._port}")
        await self._server.start()
        await self._server.wait_for_termination()


class Server(ModelServer):  # type: ignore[misc]
    """KServe's server with our REST and gRPC servers; it keeps the model until the last request is answered."""

    def __init__(self, http_port: int, grpc_port: int, shared: bool, listening: Callable[[], None]) -> None:
        super().__init__(
            http_port=http_port,
            grpc_port=grpc_port,
            enable_latency_logging=False,
            grace_period=settings().shutdown_seconds,
        )
        self.dataplane = Plane(model_registry=self.registered_models)
        RestServer.shared, RestServer.listening = shared, staticmethod(listening)
        kserve.model_server.RESTServer = RestServer  # KServe has no parameter for these classes
        kserve.model_server.GRPCServer = GrpcServer

    def stop(self, sig: int) -> None:
        self.registered_models = ModelRepository()  # KServe would unload its models at once
        super().stop(sig)


def run(
    folder: Path,
    repo: Path,
    http_port: int,
    grpc_port: int,
    shared: bool = False,
    listening: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT; call `listening` once connections are accepted.

    `shared`: with other processes on the same ports.

    Raises UserError when there is nothing to serve.
    """
    for name in ("kserve", "uvicorn.access"):  # one line a request, which the metrics count
        logging.getLogger(name).setLevel(logging.WARNING)
    announce(f"loading the model in {folder}")
    server, model = Server(http_port, grpc_port, shared, listening), ForecastModel(folder, repo)
    gc.collect()
    gc.freeze()  # a full collection over the million objects of imported modules would delay a request by 0.2 s
    server.start([model])
