"""The OpenAPI document, and the page that shows it. The page loads nothing from another host."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from pydantic.json_schema import models_json_schema

from interlock.api.events import event_models
from interlock.base.errors import NotFound
from interlock.base.json import Json
from interlock.services.views.audit import AuditEntryView

_DESCRIPTION = (
    "Run AI agents in production: durable workflows with budgets, policies, reviews and an audit log. "
    "Send an API key as `Authorization: Bearer il_…`. Every error has the shape `{error: {code, message}}`."
)
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Interlock API</title>
<link rel="icon" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, displayRequestDuration: true});\n"""


def document(api: FastAPI) -> dict[str, Json]:
    """The OpenAPI document of the API, including the models of streams, which no response model contains."""
    if api.openapi_schema is None:
        made = get_openapi(title=api.title, version=api.version, description=_DESCRIPTION, routes=api.routes)
        models = [(model, "serialization") for model in (*event_models(), AuditEntryView)]
        _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        for name, schema in schemas["$defs"].items():
            made["components"]["schemas"].setdefault(name, schema)
        for item in made["paths"].values():
            for operation in item.values():
                _describe(operation)
        made["components"]["schemas"] = dict(sorted(made["components"]["schemas"].items()))
        api.openapi_schema = made
    return api.openapi_schema


def _describe(operation: dict[str, Json]) -> None:
    """Makes the first paragraph of a handler's docstring the summary, and the others the description."""
    documented = operation.pop("description")
    assert isinstance(documented, str)
    first, *others = documented.split("\n\n")
    operation["summary"] = " ".join(first.split()).removesuffix(".")
    if others:
        operation["description"] = "\n\n".join(" ".join(one.split()) for one in others)


def install(api: FastAPI) -> None:
    """Serves the document's page at /docs; its files come out of an installed package."""
    api.openapi = lambda: document(api)  # type: ignore[method-assign]

    @api.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    @api.get("/docs/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name == "start.js":
            return Response(_START, media_type="text/javascript")
        if name not in _FILES:
            raise NotFound("the documentation has no such file")
        path = resources.files("fastapi_offline").joinpath("static", name)
        return FileResponse(str(path), media_type=_FILES[name])
