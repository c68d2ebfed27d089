"""How a command reaches the API: a server that runs, or the same application opened inside this process."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from interlock.api.server import create_api
from interlock.app import App
from interlock.base import errors
from interlock.base.errors import InterlockError, Unavailable
from interlock.base.settings import Settings, load_settings
from interlock.runtime.project import read_project
from interlock.telemetry import logs

_CODES: dict[str, type[InterlockError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, InterlockError) and not issubclass(kind, errors.StepError)
}


class Api:
    """A thin client: methods give JSON or raise the error the server named."""

    def __init__(self, client: httpx.AsyncClient, *, url: str | None) -> None:
        self.client = client
        self.url = url
        """Where the server is; None when it is this process."""

    async def get(self, path: str, **params: Any) -> Any:
        return await self._send("GET", path, params={key: value for key, value in params.items() if value is not None})

    async def post(self, path: str, body: Any, *, headers: dict[str, str] | None = None) -> Any:
        return await self._send("POST", path, json=body, headers=headers)

    async def delete(self, path: str) -> Any:
        return await self._send("DELETE", path)

    async def _send(self, method: str, path: str, **kwargs: Any) -> Any:
        try:
            response = await self.client.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the server at {self.url} does not answer ({type(error).__name__}); is `interlock dev` running?"
            ) from error
        if response.status_code >= 400:
            raise _error_of(response)
        return response.json() if response.content else None


def _error_of(response: httpx.Response) -> InterlockError:
    try:
        body = response.json()["error"]
        return _CODES.get(body["code"], InterlockError)(body["message"])
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"the server answered {response.status_code} with something that is not Interlock's")


def settings_here() -> Settings:
    """Settings of the project in the current directory."""
    return load_settings(Path.cwd())


@asynccontextmanager
async def connect(*, worker: bool = False) -> AsyncIterator[Api]:
    """The API: at INTERLOCK_URL, else at the server running in this directory, else opened in this process.

    Args:
        worker: when opened in this process, also drive runs and deploy the project first.
    """
    remote = os.environ.get("INTERLOCK_URL")
    if remote:
        async with _client(remote, os.environ.get("INTERLOCK_API_KEY", "")) as client:
            yield Api(client, url=remote)
        return
    settings = settings_here()
    running = await find_server(settings)
    if running is not None:
        url, key = running
        async with _client(url, key) as client:
            yield Api(client, url=url)
        return
    if settings.database.url is None and not worker and not (settings.data_dir / "pg").exists():
        raise errors.NotFound("nothing has run in this directory yet; start with `interlock dev` or `interlock run`")
    # Read before anything is opened: in a directory that is no project, nothing may be left behind.
    project = read_project(Path.cwd(), settings) if worker else None
    logs.configure(level=settings.telemetry.log_level, file=settings.data_dir / "log" / "interlock.jsonl")
    async with App(Path.cwd(), settings) as app:
        principal, key = await app.local_principal()
        if project is not None:
            await app.deploy(principal, project)
            await app.start_worker()
        transport = httpx.ASGITransport(create_api(app))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://interlock", headers={"Authorization": f"Bearer {key}"}, timeout=120
        ) as client:
            yield Api(client, url=None)


async def find_server(settings: Settings) -> tuple[str, str] | None:
    """(url, key) of the server that `interlock dev` or `interlock serve` runs over this data directory, if it answers."""
    try:
        url = str(json.loads((settings.data_dir / "server.json").read_text())["url"])
        key = str(json.loads((settings.data_dir / "client.json").read_text())["api_key"])
    except (OSError, ValueError, KeyError):
        return None
    with contextlib.suppress(httpx.HTTPError):
        async with _client(url, key) as client:
            if (await client.get("/healthz", timeout=3)).status_code == 200:
                return url, key
    return None


def _client(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
