"""versions, workers, drain."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from interlock.app import App
from interlock.base.errors import InvalidInput, Unavailable
from interlock.cli.connection import Api, connect, segment, settings_here
from interlock.cli.console import moment, out, print_json
from interlock.fleet.workers import SILENT_SECONDS
from interlock.services.use_cases import Services
from interlock.services.views.deployments import VersionList, VersionView, WorkflowList
from interlock.services.views.installation import WorkerView
from interlock.telemetry import logs

_LOOK_SECONDS = 0.2

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(cli: typer.Typer) -> None:
    cli.command("versions")(versions)
    cli.command("workers")(workers)
    cli.command("drain")(drain)


def versions(workflow: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List a workflow's versions, newest first, with their parts; without a name, the head version of every workflow."""

    async def main() -> dict[str, list[VersionView]]:
        async with connect() as api:
            names = [workflow] if workflow else await _deployed(api)
            of = {name: f"/v1/workflows/{segment(name)}/versions" for name in names}
            return {name: (await api.get(VersionList, path)).versions for name, path in of.items()}

    found = asyncio.run(main())
    if as_json:
        shown = {name: [one.to_json() for one in versions] for name, versions in found.items()}
        print_json(shown[workflow] if workflow else shown)
        return
    for name, all_of_it in found.items():
        for one in all_of_it if workflow else [one for one in all_of_it if one.head]:
            _print_version(name, one)
    if not found:
        out.print("nothing is deployed yet")


async def _deployed(api: Api) -> list[str]:
    return [one.name for one in (await api.get(WorkflowList, "/v1/workflows")).workflows]


def _print_version(name: str, one: VersionView) -> None:
    head = ("  head: used by new runs", "green") if one.head else ""
    out.print(Text.assemble((f"{name}@{one.version}", "bold"), head))
    running = f"{one.running} runs in progress" if one.running != 1 else "1 run in progress"
    out.print(f"  deployed {moment(one.deployed_at)} by {one.deployed_by}; {running}")
    for what, digests in (("models", one.models), ("prompts", one.prompts), ("tools", one.tools)):
        if digests:
            pins = ", ".join(f"{key} {value if what == 'models' else value[:12]}" for key, value in digests.items())
            out.print(f"  {what}: {pins}", soft_wrap=True)


def workers(as_json: Json = False) -> None:
    """List the workers of this database."""

    async def look(services: Services) -> list[WorkerView]:
        return await services.administration.workers()

    found = opened(look)
    if as_json:
        print_json(found)
        return
    table = Table("worker", "host", "pid", "engine", "version", "runs", "started", "", box=None, pad_edge=False)
    for one in found:
        state = "draining" if one.draining else ""
        if one.silent > SILENT_SECONDS:
            state = f"silent for {one.silent:.0f} s"
        started = one.started_at.isoformat(sep=" ", timespec="seconds")
        row = (one.worker_id, one.host, one.pid, one.engine, one.version, one.runs, started, state)
        table.add_row(*(str(part) for part in row))
    out.print(table if found else "no workers")


def drain(
    worker: Annotated[str | None, typer.Option(help="Only this worker; `interlock workers` lists them.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All present workers; workers started later are not affected.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when they have ended.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Maximum seconds to wait; exit code 8 after that.")] = 900,
) -> None:
    """Ask workers to finish the steps under way, release their runs and exit."""
    if (worker is None) != every:
        raise InvalidInput("name the workers: --worker ID, or --all")

    async def ask(services: Services) -> tuple[list[str], list[str]]:
        asked = await services.administration.ask_to_drain(worker, login=login())
        return asked, await _left(services, set(asked), time.monotonic() + timeout) if wait else []

    asked, left = opened(ask)
    if left:
        raise Unavailable(f"still running after {timeout:g} s: {', '.join(left)}")
    if not asked:
        out.print("no workers")
    for one in asked:
        out.print(f"{one} has drained" if wait else f"asked {one} to drain")


async def _left(services: Services, asked: set[str], deadline: float) -> list[str]:
    """The workers that are still present at the deadline."""
    while True:
        there = [one for one in await services.administration.workers() if one.worker_id in asked]
        left = [one.worker_id for one in there if one.silent <= SILENT_SECONDS]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_LOOK_SECONDS)


def login() -> str:
    """Login and host of the operator, from the system, because environment variables could be forged."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name, as in some containers
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def opened(use: Callable[[Services], Coroutine[object, None, T]]) -> T:
    """Opens the installation's database: workers belong to the installation, so an API key is not enough."""
    settings = settings_here()
    if settings.database.url is None and not (settings.data_dir / "pg").exists():
        raise InvalidInput("nothing has run in this directory yet; start with `interlock dev` or `interlock run`")
    logs.configure(level="warning")

    async def main() -> T:
        async with App(Path.cwd(), settings) as app:
            return await use(app.services)

    return asyncio.run(main())
