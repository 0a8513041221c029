"""The pages of the forecast server for people: a start page and the API's documentation, without any other host."""

from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from kserve.protocol.dataplane import DataPlane

from salescast.config import settings
from salescast.schema import MODEL_NAME
from salescast.serving.availability import UnavailableError

TITLE: Final = "salescast forecast server"
START: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<body style="font-family: sans-serif; margin: 2em">
<h1>{title}</h1>
<p>salescast {version}, model {name}, version {model}; {age}. The online store {store}.</p>
<ul>{links}<li><a href="docs">API documentation</a></li><li><a href="openapi.json">OpenAPI schema</a></li>
<li><a href="v2/models/{name}/ready">readiness</a></li><li><a href="metrics">Prometheus metrics</a></li></ul>
"""


def register(app: FastAPI) -> None:
    """Add /docs with its scripts and styles, and give /openapi.json our title and version.

    Every address in the pages is relative, so that they also work behind a proxy with TLS or a path prefix.
    """
    app.title, app.version = TITLE, version("salescast")

    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=TITLE,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)  # KServe's is switched by argv only
    app.mount("/docs/assets", StaticFiles(directory=Path(str(files("fastapi_swagger") / "resources"))))


async def start(request: Request, plane: DataPlane) -> Response | dict[str, str]:
    """The start page for a browser, KServe's liveness for every other client."""
    live: dict[str, str] = await plane.live()
    if "text/html" not in request.headers.get("accept", ""):
        return live
    forecaster = plane.get_model_from_registry(MODEL_NAME).forecaster
    days = forecaster.feature_age_days
    age = "no forecast yet" if days is None else f"the oldest features last used are {days:.1f} days old"
    try:
        await forecaster.ready()
        store = "answers"
    except UnavailableError as error:
        store = escape(f"does not answer ({error})")
    links = settings().pages
    page = START.format(
        title=TITLE,
        version=version("salescast"),
        name=MODEL_NAME,
        model=escape(forecaster.served.version),
        age=age,
        store=store,
        links="".join(f'<li><a href="{escape(url)}">{escape(name)}</a></li>' for name, url in links.items()),
    )
    return HTMLResponse(page)


def report(path: Path) -> Response:
    """The report of the workdir, where a person has started the server with its pages."""
    if not settings().pages or not path.is_file():
        return JSONResponse({"error": "there is no report here; `salescast up` shows the one of its workdir"}, 404)
    return FileResponse(path, media_type="text/html")
