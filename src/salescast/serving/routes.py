"""REST routes of the forecast server, with their schemas for /docs and /openapi.json."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from kserve import InferResponse
from kserve.errors import ModelNotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from kserve.protocol.rest.v2_datamodels import (
    InferenceRequest,
    InferenceResponse,
    ListModelsResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, multiprocess, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from salescast.schema import MODEL_NAME
from salescast.serving import pages
from salescast.serving.availability import BusyError, UnavailableError
from salescast.serving.protocol_v1 import LARGEST, SMALLEST, RequestError, TooLargeError

logger = logging.getLogger(__name__)

JSON_LENGTH: Final = "inference-header-content-length"  # V2: length of the JSON before binary tensors
JSON_TYPES: Final = ("application/json", "application/octet-stream")
Id = Annotated[int, Field(strict=True, ge=SMALLEST, le=LARGEST)]


class Instance(BaseModel):
    """`store_id` and `dept_id`, or in their place `store` and `dept`, the retailer's own ids."""

    model_config = ConfigDict(extra="forbid")
    store_id: Id | None = None
    dept_id: Id | None = None
    store: str | int | None = None
    dept: str | int | None = None


class Parameters(BaseModel):
    """`horizon`: weeks, by default the model's; `quantiles`: levels of the model."""

    model_config = ConfigDict(extra="forbid")
    horizon: Annotated[int, Field(ge=1)] | None = None
    quantiles: Annotated[list[float], Field(min_length=1)] | None = None


class ForecastRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    instances: Annotated[list[Instance], Field(min_length=1)]
    parameters: Parameters = Parameters()


class Prediction(BaseModel):
    """Forecasts by week; null where the series has no history to start from. Quantiles as p10, p90 ...

    `forecast` is the median; `mean` is what to add up. `store` and `dept`: the own ids asked for.
    """

    model_config = ConfigDict(extra="allow")
    store: str | None = None
    dept: str | None = None
    store_id: int
    dept_id: int
    weeks: list[str]
    forecast: list[float | None]
    mean: list[float | None]


class ForecastResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())
    predictions: list[Prediction]
    model_name: str
    model_version: str
    feature_age_days: float


class ErrorResponse(BaseModel):
    error: str


class LiveResponse(BaseModel):
    status: Literal["alive"]


class V1ReadyResponse(BaseModel):
    name: str
    ready: bool


@dataclass(frozen=True)
class Body:
    """The undecoded body of a REST request for forecasts; `json_length` as in `decode_v2`."""

    protocol: Literal["v1", "v2"]
    content: bytes
    json_length: int | None = None


ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorResponse, "description": "A field or an instance is wrong; the message names it"},
    413: {"model": ErrorResponse, "description": "Too many instances or bytes"},
    429: {"model": ErrorResponse, "description": "The server is at its limit; try again in a moment"},
    415: {"model": ErrorResponse, "description": "The body is not JSON"},
    503: {"model": ErrorResponse, "description": "The online store is down, or features are missing or too old"},
}
NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {404: {"model": ErrorResponse, "description": "No such model"}}
DOWN: Final[dict[int | str, dict[str, Any]]] = {503: ERRORS[503]}


def register(app: FastAPI, plane: DataPlane, max_body_bytes: int) -> None:
    """Add the server's routes, and no others, to KServe's application."""
    v1, v2 = V1Endpoints(plane), V2Endpoints(plane)
    router = APIRouter()

    def get(
        path: str, endpoint: Callable[..., Any], model: Any, errors: dict[int | str, dict[str, Any]] | None = None
    ) -> None:
        router.add_api_route(path, endpoint, methods=["GET"], response_model=model, responses=errors)

    async def start(request: Request) -> Any:
        return await pages.start(request, plane)

    async def report() -> Response:
        return pages.report(plane.get_model_from_registry(MODEL_NAME).forecaster.work.report)

    router.add_api_route("/report", report, methods=["GET"], response_class=Response, include_in_schema=False)
    get("/", start, LiveResponse, {200: {"content": {"text/html": {}}}})
    get("/v1/models", v1.models, ListModelsResponse)
    get("/v1/models/{model_name}", v1.model_ready, V1ReadyResponse, NOT_FOUND | DOWN)
    get("/v2", v2.metadata, ServerMetadataResponse)
    get("/v2/health/live", v2.live, ServerLiveResponse)
    get("/v2/health/ready", v2.ready, ServerReadyResponse, DOWN)
    get("/v2/models", v2.models, ListModelsResponse)

    async def metadata(model_name: str) -> Any:
        return await v2.model_metadata(model_name)

    async def ready(model_name: str) -> Any:
        return await v2.model_ready(model_name)

    get("/v2/models/{model_name}", metadata, ModelMetadataResponse, NOT_FOUND)
    get("/v2/models/{model_name}/ready", ready, ModelReadyResponse, NOT_FOUND | DOWN)

    router.add_api_route("/metrics", metrics, methods=["GET"], response_class=Response, include_in_schema=False)
    _add_inference(router, plane, max_body_bytes)
    app.include_router(router)
    pages.register(app)


def _add_inference(router: APIRouter, plane: DataPlane, max_body_bytes: int) -> None:
    async def predict(request: Request) -> Response:
        body = Body("v1", await read_body(request, max_body_bytes))
        return await _infer(plane, body)

    async def infer(request: Request) -> Response:
        body = Body("v2", await read_body(request, max_body_bytes), _json_length(request))
        return await _infer(plane, body)

    async def no_model(model_name: str) -> None:
        raise ModelNotFound(model_name)

    for path, endpoint, asked, answered in (
        ("/v1/models/{}:predict", predict, ForecastRequest, ForecastResponse),
        ("/v2/models/{}/infer", infer, InferenceRequest, InferenceResponse),
    ):
        schema = {"content": {"application/json": {"schema": asked.model_json_schema()}}, "required": True}
        router.add_api_route(
            path.format(MODEL_NAME),
            endpoint,
            methods=["POST"],
            response_class=Response,
            responses={200: {"model": answered}, **ERRORS},
            openapi_extra={"requestBody": schema},
        )
        router.add_api_route(path.format("{model_name}"), no_model, methods=["POST"], include_in_schema=False)


async def _infer(plane: DataPlane, body: Body) -> Response:
    answer, _ = await plane.infer(MODEL_NAME, body, headers={})
    if not isinstance(answer, InferResponse):
        return Response(answer, media_type="application/json")
    content, json_length = answer.to_rest()
    if json_length is None:
        return JSONResponse(content)
    return Response(content, media_type="application/octet-stream", headers={JSON_LENGTH: str(json_length)})


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises TooLargeError as soon as it exceeds `limit` bytes, UnsupportedTypeError for another type than JSON.
    """
    kind = request.headers.get("content-type", JSON_TYPES[0]).partition(";")[0].strip().lower()
    # `curl -d` labels JSON as a form; a real form is refused because it is not JSON.
    if kind not in (*JSON_TYPES, "application/x-www-form-urlencoded"):
        raise UnsupportedTypeError(f"content-type must be application/json, got {kind[:60]!r}")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise TooLargeError(f"the body has more than {limit} bytes; send several requests")
    return bytes(content)


class UnsupportedTypeError(RequestError):
    """The content type is not JSON: 415."""


def _json_length(request: Request) -> int | None:
    text = request.headers.get(JSON_LENGTH)
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 12):
        raise RequestError(f"{JSON_LENGTH} must be a number of bytes, got {text[:40]!r}")
    return None if text is None else int(text)


async def metrics(_: Request) -> Response:
    """Prometheus metrics, summed over the workers."""
    registry = REGISTRY
    if values.ValueClass is not values.MutexValue:  # several workers keep their metrics in files
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def handle_errors(app: FastAPI) -> None:
    """Answer errors as {"error": ...} and log one line each; KServe would log each with a traceback."""
    for kind, status in (
        (RequestError, 400),
        (TooLargeError, 413),
        (UnsupportedTypeError, 415),
        (UnavailableError, 503),
        (BusyError, 429),
    ):
        app.add_exception_handler(kind, _answer_with(status))
    app.add_exception_handler(ModelNotFound, _answer_with(404))
    app.add_exception_handler(ClientDisconnect, _client_disconnected)


async def _client_disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # as proxies log a client that disconnected


def _answer_with(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        level = logging.WARNING if status >= 500 else logging.INFO
        logger.log(level, "%s %s: %d %s", request.method, request.url.path, status, error)
        headers = {"Retry-After": "1"} if status == 429 else None
        return JSONResponse({"error": str(error)}, status_code=status, headers=headers)

    return handler
