"""The server conforms to its own OpenAPI schema for any input."""

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .conftest import Running

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_answer_conforms_to_the_schema(running: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    operations = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        operations += 1
        cases = 60 if operation.method == "post" else 10
        _check(operation, cases)
    assert operations == 11


def _check(operation: object, cases: int) -> None:
    from hypothesis import given

    @given(case=operation.as_strategy())  # type: ignore[attr-defined]
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def every_case(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=None)

    every_case()


def test_the_schema_shows_exactly_what_is_served(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path for path, operations in paths.items() if "post" in operations}
    assert posts == {"/v1/models/sales-forecast:predict", "/v2/models/sales-forecast/infer"}
    for path in posts:
        assert {"200", "400", "413", "415", "503"} <= paths[path]["post"]["responses"].keys()
        assert paths[path]["post"]["requestBody"]["required"]
