"""versions, workers, drain."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from interlock.app import App
from interlock.base.errors import InvalidInput, Unavailable
from interlock.cli.connection import connect, segment, settings_here
from interlock.cli.console import out, print_json
from interlock.fleet import workers as worker_registry
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

    async def main() -> dict[str, list[dict[str, Any]]]:
        async with connect() as api:
            names = [workflow] if workflow else [one["name"] for one in (await api.get("/v1/workflows"))["workflows"]]
            return {name: (await api.get(f"/v1/workflows/{segment(name)}/versions"))["versions"] for name in names}

    found = asyncio.run(main())
    if as_json:
        print_json(found[workflow] if workflow else found)
        return
    for name, all_of_it in found.items():
        for one in all_of_it if workflow else [one for one in all_of_it if one["head"]]:
            _print_version(name, one)
    if not found:
        out.print("nothing is deployed yet")


def _print_version(name: str, one: dict[str, Any]) -> None:
    head = ("  head: used by new runs", "green") if one["head"] else ""
    out.print(Text.assemble((f"{name}@{one['version']}", "bold"), head))
    running = f"{one['running']} runs in progress" if one["running"] != 1 else "1 run in progress"
    out.print(f"  deployed {one['deployed_at'][:19].replace('T', ' ')} by {one['deployed_by']}; {running}")
    for what in ("models", "prompts", "tools"):
        if one[what]:
            pins = ", ".join(f"{key} {value if what == 'models' else value[:12]}" for key, value in one[what].items())
            out.print(f"  {what}: {pins}", soft_wrap=True)
    out.print(f"  policy: {one['policy']}")


def workers(as_json: Json = False) -> None:
    """List the workers of this database."""

    async def look(app: App) -> list[dict[str, Any]]:
        return await worker_registry.workers(app.database)

    found = _opened(look)
    if as_json:
        print_json(found)
        return
    table = Table("worker", "host", "pid", "engine", "version", "runs", "started", "", box=None, pad_edge=False)
    for one in found:
        state = "draining" if one["draining"] else ""
        if one["silent"] > worker_registry.SILENT_SECONDS:
            state = f"silent for {one['silent']:.0f} s"
        started = one["started_at"].isoformat(sep=" ", timespec="seconds")
        row = (one["worker_id"], one["host"], one["pid"], one["engine"], one["version"], one["runs"], started, state)
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

    async def ask(app: App) -> tuple[list[str], list[str]]:
        asked = await app.admin.ask_to_drain(worker, login=_login())
        return asked, await _left(app, set(asked), time.monotonic() + timeout) if wait else []

    asked, left = _opened(ask)
    if left:
        raise Unavailable(f"still running after {timeout:g} s: {', '.join(left)}")
    if not asked:
        out.print("no workers")
    for one in asked:
        out.print(f"{one} has drained" if wait else f"asked {one} to drain")


async def _left(app: App, asked: set[str], deadline: float) -> list[str]:
    """The workers that are still present at the deadline."""
    while True:
        there = [one for one in await worker_registry.workers(app.database) if one["worker_id"] in asked]
        left = [str(one["worker_id"]) for one in there if one["silent"] <= worker_registry.SILENT_SECONDS]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_LOOK_SECONDS)


def _login() -> str:
    """Login and host of the operator, from the system, because environment variables could be forged."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name, as in some containers
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _opened(use: Callable[[App], Coroutine[Any, Any, T]]) -> T:
    """Opens the installation's database: workers belong to the installation, so an API key is not enough."""
    settings = settings_here()
    if settings.database.url is None and not (settings.data_dir / "pg").exists():
        raise InvalidInput("nothing has run in this directory yet; start with `interlock dev` or `interlock run`")
    logs.configure(level="warning")

    async def main() -> T:
        async with App(Path.cwd(), settings) as app:
            return await use(app)

    return asyncio.run(main())
