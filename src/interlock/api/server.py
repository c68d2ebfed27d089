"""The HTTP server."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from interlock.api import admin, dead_letters, errors, reviews, runs
from interlock.api.access import Services
from interlock.api.limits import NoNul, PayloadLimit
from interlock.app import App
from interlock.base.errors import Unavailable
from interlock.telemetry import names
from interlock.telemetry.logs import log

_READY_SECONDS = (
    2.0  # a readiness probe needs a quick answer; a query with retries would take longer than the probe waits
)


class AsciiJSON(JSONResponse):
    """JSON in ASCII, because output of a model or a tool may contain a lone surrogate, which has no UTF-8 form."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def create_api(app: App) -> FastAPI:
    """The ASGI application over an open `App`."""
    api = FastAPI(
        title="Interlock",
        version="1",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=AsciiJSON,
    )
    api.state.interlock = app
    api.state.stopping = asyncio.Event()
    errors.install(api)
    api.add_middleware(PayloadLimit, limit_bytes=app.settings.limits.payload_bytes)
    api.add_middleware(NoNul)
    for part in (runs.router, reviews.router, dead_letters.router, admin.router):
        api.include_router(part)

    @api.get("/healthz", tags=["health"])
    async def alive() -> dict[str, str]:
        """Liveness: 200 if the process answers."""
        return {"status": "ok"}

    @api.get("/readyz", tags=["health"])
    async def ready(services: Services) -> dict[str, Any]:
        """Readiness: 200 with the queue's depth, or 503 if the database does not answer."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                depth = await services.database.row("queue_depth")
        except TimeoutError as error:
            raise Unavailable(
                f"the database did not answer within {_READY_SECONDS:g} s; check that PostgreSQL runs"
            ) from error
        return {"status": "ok", "queue_depth": depth[0] if depth is not None else 0}

    return api


class Server:
    """uvicorn in the caller's event loop, on a socket that is bound before anything else starts."""

    def __init__(self, app: App, *, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._api = create_api(app)
        config = uvicorn.Config(self._api, log_config=None, lifespan="off", timeout_graceful_shutdown=5)
        logging.getLogger("uvicorn.error").handlers = [_ToLog(logging.WARNING)]
        logging.getLogger("uvicorn.error").propagate = False
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # The command line handles the signals, because it must also stop the worker and the database.
        self._server.capture_signals = _leave_signals_alone  # type: ignore[method-assign, assignment]
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http server")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        self._api.state.stopping.set()  # otherwise followers of events would use the whole grace period
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _ToLog(logging.Handler):
    """Log handler that writes uvicorn's messages to our log; by default it prints stack traces to the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        log(names.LOG_INTERNAL, record.getMessage(), level=record.levelname.lower(), exc_info=error)


class _leave_signals_alone:  # noqa: N801  replaces a context manager function
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise Unavailable(
            f"port {port} on {host} cannot be used ({error.strerror}); choose another with INTERLOCK_SERVER__PORT or server.port"
        ) from error
    return bound
