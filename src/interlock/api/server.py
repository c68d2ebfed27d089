"""The HTTP server."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from interlock.api import admin, dead_letters, document, errors, events, reviews, runs
from interlock.api.access import UseCases
from interlock.api.errors import documented
from interlock.api.limits import Framing, NoNul, PayloadLimit
from interlock.api.protocol import BoundedHead
from interlock.base.errors import Unavailable
from interlock.services.use_cases import Services
from interlock.services.views.installation import Alive, Ready
from interlock.telemetry import names
from interlock.telemetry.logs import log

_IDLE_SECONDS = 75  # of a connection: more than load balancers and clients keep one, so they are the ones that close it
_MALFORMED_SECONDS = 10.0  # minimum interval of log entries about malformed requests


class AsciiJSON(JSONResponse):
    """JSON in ASCII, because output of a model or a tool may contain a lone surrogate, which has no UTF-8 form."""

    def render(self, content: object) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def create_api(services: Services | None, *, payload_bytes: int) -> FastAPI:
    """The ASGI application over the use cases of an open process; None creates one for the OpenAPI document only.

    Args:
        payload_bytes: largest request body.
    """
    api = FastAPI(
        title="Interlock",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=AsciiJSON,
    )
    api.state.services = services
    api.state.stopping = asyncio.Event()
    errors.install(api)
    document.install(api)
    api.add_middleware(PayloadLimit, limit_bytes=payload_bytes)
    api.add_middleware(Framing)
    api.add_middleware(NoNul)
    for part in (runs.router, events.router, reviews.router, dead_letters.router, admin.router):
        api.include_router(part)

    @api.get("/healthz", tags=["health"], operation_id="get_alive")
    async def alive() -> Alive:
        """Check that the process answers."""
        return Alive()

    @api.get("/readyz", tags=["health"], operation_id="get_ready", responses=documented(key=False))
    async def ready(services: UseCases) -> Ready:
        """Check that the process can work.

        503 while the database does not answer.
        """
        return await services.health.ready()

    return api


class Server:
    """uvicorn in the caller's event loop, on a socket that is bound before anything else starts."""

    def __init__(self, services: Services, *, host: str, port: int, payload_bytes: int) -> None:
        self._socket = _bind(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._services = services
        self._api = create_api(services, payload_bytes=payload_bytes)
        config = uvicorn.Config(
            self._api,
            http=BoundedHead,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=5,
            timeout_keep_alive=_IDLE_SECONDS,
        )
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
        self._services.followers.wake()
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _ToLog(logging.Handler):
    """Log handler that writes uvicorn's messages to our log; by default it prints stack traces to the terminal.

    Malformed requests are only counted, because any client of the port can send an unlimited number.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._malformed, self._logged_at = 0, -_MALFORMED_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Invalid HTTP request"):
            self._malformed += 1
            now = time.monotonic()
            if now - self._logged_at >= _MALFORMED_SECONDS:
                log(names.LOG_REQUEST_MALFORMED, message, level="warning", count=self._malformed)
                self._malformed, self._logged_at = 0, now
            return
        error = record.exc_info[1] if record.exc_info else None
        log(names.LOG_INTERNAL, message, level=record.levelname.lower(), exc_info=error)


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
