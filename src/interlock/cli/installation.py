"""The application opened in this process: for commands that find no server, and for those about the installation.

Its imports take a second, so only commands that open the application import this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx

from interlock.api.server import create_api
from interlock.app import App
from interlock.base.errors import InvalidInput
from interlock.base.settings import Settings, on_own_machine
from interlock.cli.connection import settings_here
from interlock.cli.location import project_directory
from interlock.definitions.project import read_project
from interlock.services.use_cases import Services
from interlock.telemetry import logs

T = TypeVar("T")


@asynccontextmanager
async def opened_api(settings: Settings, *, worker: bool) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API in this process.

    Args:
        worker: deploy the project first, and also drive runs.
    """
    directory = project_directory()
    # Read before anything is opened, so that no files are created in a directory without a project.
    project = read_project(directory, settings) if worker else None
    logs.configure(level=settings.telemetry.log_level, file=settings.data_dir / "log" / "interlock.jsonl")
    async with App(directory, on_own_machine(settings)) as app:
        principal, key = await app.admin.local_principal()
        if project is not None:
            await app.admin.deploy(principal, project)
            await app.start_worker()
        transport = httpx.ASGITransport(create_api(app.services, payload_bytes=settings.limits.payload_bytes))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://interlock", headers={"Authorization": f"Bearer {key}"}, timeout=120
        ) as client:
            yield client


def opened(use: Callable[[Services], Coroutine[object, None, T]]) -> T:
    """Opens the installation's database: workers belong to the installation, so an API key is not enough."""
    directory = project_directory()
    settings = settings_here()
    if settings.database.url is None and not (settings.data_dir / "pg").exists():
        raise InvalidInput("nothing has run in this directory yet; start with `interlock dev` or `interlock run`")
    logs.configure(level="warning")

    async def main() -> T:
        async with App(directory, settings) as app:
            return await use(app.services)

    return asyncio.run(main())
