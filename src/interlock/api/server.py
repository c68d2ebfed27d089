"""The HTTP server."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from interlock.api import admin, errors, reviews, runs
from interlock.api.access import Services
from interlock.api.limits import PayloadLimit
from interlock.app import App
from interlock.base.errors import Unavailable


def create_api(app: App) -> FastAPI:
    """The ASGI application over an open `App`."""
    api = FastAPI(title="Interlock", version="1", docs_url="/docs", redoc_url=None)
    api.state.interlock = app
    errors.install(api)
    api.add_middleware(PayloadLimit, limit_bytes=app.settings.limits.payload_bytes)
    for part in (runs.router, reviews.router, admin.router):
        api.include_router(part)

    @api.get("/healthz", tags=["health"])
    async def alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @api.get("/readyz", tags=["health"])
    async def ready(services: Services) -> dict[str, Any]:
        """Whether it can do its work; 503 if the database is away."""
        depth = await services.database.row("queue_depth")
        return {"status": "ok", "queue_depth": depth[0] if depth is not None else 0}

    return api


class Server:
    """uvicorn in the caller's event loop, on a socket that is bound before anything else starts."""

    def __init__(self, app: App, *, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(create_api(app), log_config=None, lifespan="off", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # The signals are the command line's to handle: it must also stop the worker and the database.
        self._server.capture_signals = _leave_signals_alone  # type: ignore[method-assign, assignment]
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http server")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _leave_signals_alone:  # noqa: N801  stands in for a context manager function
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
