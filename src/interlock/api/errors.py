"""Errors as HTTP answers: their model, the statuses that operations document, and the handlers.

No other module knows both domain errors and HTTP. No stack trace ever reaches a client.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from interlock.api.body import NO_OBJECT
from interlock.base.errors import Denied, InterlockError, TooManyRequests, Unauthenticated
from interlock.base.json import Json
from interlock.base.wording import in_words
from interlock.identity.wrong_keys import source_of
from interlock.services.views.errors import ErrorBody, ErrorDetail
from interlock.telemetry import names
from interlock.telemetry.logs import log

# Refusals by the framework itself.
_CODES = {
    400: "invalid_input",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    422: "invalid_input",
}
_MAX_MESSAGE = 1000

_MEANINGS = {
    401: "No API key, or not a valid one.",
    403: "The key's roles do not allow this, or the content is refused.",
    404: "The key's organisation has no such object.",
    409: "The object's state, or an earlier request with this Idempotency-Key, does not allow this.",
    410: "The person whom the value is about was erased; the value is unreadable.",
    413: "The request body is over the limit of the installation (limits.payload_bytes).",
    422: "The request is not valid; the message names the place.",
    429: "A limit is reached: of concurrent use, or of wrong keys from one address.",
    503: "A required component, such as the database, is down.",
}


Responses = dict[int | str, dict[str, object]]


def documented(*statuses: int, key: bool = True) -> Responses:
    """The error statuses of an operation, for the OpenAPI document.

    Args:
        key: True if the operation requires an API key; it may then also answer 401, 403, 422 and 429. All may answer 503.
    """
    every = {*statuses, 503} | ({401, 403, 422, 429} if key else set())
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in sorted(every)}


def problem(code: str, message: str) -> dict[str, Json]:
    """The body of an error answer."""
    shown = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]} … ({len(message)} characters)"
    return ErrorBody(error=ErrorDetail(code=code, message=shown)).to_json()


def install(api: FastAPI) -> None:
    """Registers the handlers."""

    @api.exception_handler(InterlockError)
    async def domain(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, InterlockError)
        if error.http_status >= 500:
            log(names.LOG_REQUEST_FAILED, error.message, level="error", code=error.code, detail=error.detail)
        _note_refusal(request, error)
        headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else {}
        if isinstance(error, TooManyRequests) and error.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(error.retry_after)))
        return JSONResponse(problem(error.code, error.message), error.http_status, headers)

    @api.exception_handler(RequestValidationError)
    async def shape(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = in_words(first)
        if place == "body" and first["type"] in {"missing", "model_attributes_type", "dict_type"}:
            message = NO_OBJECT
        if first["type"] == "json_invalid":
            place, message = "body", f"is not JSON: {first['ctx']['error']}"
        return JSONResponse(problem("invalid_input", f"{place[:200]}: {message}"), 422)

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        status, headers = error.status_code, dict(error.headers or {})
        if status == 400:  # a body that is not text is treated like one that is not JSON
            status = 422
        if status == 405:
            headers["Allow"] = ", ".join(_methods(request))
        code = _CODES.get(error.status_code, "http")
        return JSONResponse(problem(code, str(error.detail)), status, headers)

    @api.exception_handler(Exception)
    async def bug(_request: Request, error: Exception) -> JSONResponse:
        log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)
        return JSONResponse(problem("internal", "an internal error; the server's log has the details"), 500)


def _note_refusal(request: Request, error: InterlockError) -> None:
    """Counts a refusal for the audit log: of a principal, or of an address without a valid key."""
    services = request.app.state.services
    what = f"{request.method} {getattr(request.scope.get('route'), 'path', 'unknown')}"
    principal = getattr(request.state, "principal", None)
    if principal is None and isinstance(error, Unauthenticated | TooManyRequests):
        address = request.client.host if request.client is not None else ""
        services.refusals.note_unauthenticated(source_of(address), what)
    elif principal is not None and isinstance(error, Denied):
        services.refusals.note_denied(principal, what)


def _methods(request: Request) -> list[str]:
    """All methods of a path, from the document; the router's own answer has only those of its first route."""
    api: FastAPI = request.app
    found = {
        method.upper()
        for template, item in api.openapi()["paths"].items()
        if compile_path(template)[0].match(request.url.path)
        for method in item
    }
    return sorted(found or {"GET"})  # only the documentation page is not in the document
