"""A client of the forecast server, over HTTP with the V1 protocol."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from types import TracebackType
from typing import Any, Final, Self

import httpx
import polars as pl

from salescast.errors import UserError
from salescast.schema import KEY_TYPES, KEYS, MODEL_NAME

SERIES: Final = 1000  # series in one request
OWN: Final[tuple[str, ...]] = ("store", "dept")  # fields of the retailer's own ids, in the order of KEYS
Id = int | str
TIMEOUT: Final = 60.0  # seconds for one answer


class ServerError(UserError):
    """The server did not answer, or refused a request. `status` is the HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Forecasts from a running server.

    `headers`, such as an Authorization header, go with every request; `verify` is a certificate bundle, as httpx takes
    it. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        url: str = "http://localhost:8080",
        *,
        headers: dict[str, str] | None = None,
        verify: bool | str = True,
        timeout: float = TIMEOUT,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=headers, verify=verify, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the server answers and has a model."""
        try:
            return self._http.get(f"/v2/models/{MODEL_NAME}/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def model(self) -> dict[str, Any]:
        """Name, versions, inputs and outputs of the model that is served."""
        return self._json("GET", f"/v2/models/{MODEL_NAME}")

    def forecast(
        self, series: Iterable[tuple[Id, Id]], weeks: int | None = None, quantiles: Sequence[float] = (0.1, 0.9)
    ) -> pl.DataFrame:
        """Forecasts of `series`, pairs of store and department, in their order.

        A text is the retailer's own id, a number the entity id: ("München Süd", "7"), (3, 7).
        Columns: `store` and `dept` where texts were given, store_id, dept_id, week, horizon (1 = first week), forecast
        (the median), mean, p10, p90 or the `quantiles` asked for, model_version. `weeks`: None for all that the model
        forecasts.
        Raises ServerError for unknown series, features that are out of date, and a server that does not answer.
        """
        parameters: dict[str, Any] = {"quantiles": list(quantiles)} | ({} if weeks is None else {"horizon": weeks})
        rows: list[dict[str, Any]] = []
        for part in _parts(series):
            body = {"instances": part, "parameters": parameters}
            answer = self._json("POST", f"/v1/models/{MODEL_NAME}:predict", body)
            for prediction in answer["predictions"]:
                rows += _rows(prediction, answer["model_version"])
        texts = ("week", "horizon", "model_version", *KEYS, *OWN)
        numbers = {name: pl.Float64() for name in (rows[0] if rows else ()) if name not in texts}
        types = {**KEY_TYPES, "week": pl.Date(), "horizon": pl.Int32(), **numbers}
        return pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise ServerError(f"no answer from {self.url}: {error}; is the server running there?") from None
        if response.status_code != httpx.codes.OK:
            raise ServerError(f"{self.url} answered {response.status_code}: {_reason(response)}", response.status_code)
        values: dict[str, Any] = response.json()
        return values


def _parts(series: Iterable[tuple[Id, Id]]) -> Iterator[list[dict[str, Id]]]:
    """The instances of requests of at most SERIES."""
    instances: list[dict[str, Id]] = []
    for pair in series:
        named = zip(pair, KEYS, OWN, strict=True)
        instances.append({own if isinstance(id_, str) else key: id_ for id_, key, own in named})
    yield from (instances[first : first + SERIES] for first in range(0, len(instances), SERIES))


def _rows(prediction: dict[str, Any], version: str) -> Iterator[dict[str, Any]]:
    """One row a week of a prediction, whose values are lists by week."""
    keys = {key: prediction[key] for key in (*OWN, *KEYS) if key in prediction}
    levels = [name for name in prediction if name not in {*OWN, *KEYS, "weeks", "forecast"}]
    for number, week in enumerate(prediction["weeks"]):
        values = {name: prediction[name][number] for name in ("forecast", *levels)}
        yield {**keys, "week": date.fromisoformat(week), "horizon": number + 1, **values, "model_version": version}


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
