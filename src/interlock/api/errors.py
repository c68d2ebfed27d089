"""Mapping of domain errors to HTTP responses, made only here. No stack trace reaches a client."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from interlock.base.errors import InterlockError
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


def problem(code: str, message: str) -> dict[str, Any]:
    """The body of every error response."""
    return {"error": {"code": code, "message": message}}


def install(api: FastAPI) -> None:
    """Registers the handlers."""

    @api.exception_handler(InterlockError)
    async def domain(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, InterlockError)
        if error.http_status >= 500:
            log(names.LOG_REQUEST_FAILED, error.message, level="error", code=error.code, detail=error.detail)
        headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else None
        return JSONResponse(problem(error.code, error.message), error.http_status, headers)

    @api.exception_handler(RequestValidationError)
    async def shape(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        return JSONResponse(problem("invalid_input", f"{place}: {message}"), 422)

    @api.exception_handler(HTTPException)
    async def http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "http")
        return JSONResponse(problem(code, str(error.detail)), error.status_code, error.headers)

    @api.exception_handler(Exception)
    async def bug(_request: Request, error: Exception) -> JSONResponse:
        log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)
        return JSONResponse(problem("internal", "an internal error; the server's log has the details"), 500)
