"""Limits on requests: too large bodies and addresses with a NUL are refused before they are parsed."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interlock.api.errors import problem


class PayloadLimit:
    """ASGI middleware: 413 by Content-Length, and by counting if it is missing or wrong."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes
        self._message = f"the request body is over the limit of {limit_bytes} bytes (limits.payload_bytes)"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit:
            await JSONResponse(problem("payload_too_large", self._message), 413)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                # FastAPI turns any other exception raised while it reads a body into a 400.
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counted, send)


class Framing:
    """ASGI middleware: refuses a request with both Content-Length and Transfer-Encoding, and closes its connection.

    Two servers in a chain may use different ones, and then differ about the start of the next request (RFC 9112 §6.1).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and {b"content-length", b"transfer-encoding"} <= dict(scope["headers"]).keys():
            message = "send either Content-Length or Transfer-Encoding, not both"
            answer = JSONResponse(problem("invalid_input", message), 400, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


class NoNul:
    """ASGI middleware: refuses a NUL in the path or the query, which PostgreSQL cannot store in a text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and ("\0" in scope["path"] or b"%00" in scope["query_string"]):
            message = "the address holds a NUL character (%00); remove it"
            await JSONResponse(problem("invalid_input", message), 422)(scope, receive, send)
            return
        await self._app(scope, receive, send)
