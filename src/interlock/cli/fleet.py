"""workers, drain."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import time
from typing import Annotated

import typer

from interlock.base.errors import InvalidInput, Unavailable
from interlock.cli.console import AsJson, moment, out, print_json
from interlock.cli.installation import opened
from interlock.cli.listing import ListRow, print_rows
from interlock.fleet.workers import SILENT_SECONDS
from interlock.services.use_cases import Services
from interlock.services.views.installation import WorkerView

_LOOK_SECONDS = 0.2


def register(cli: typer.Typer) -> None:
    cli.command("workers")(workers)
    cli.command("drain")(drain)


def workers(as_json: AsJson = False) -> None:
    """List the workers of this database."""

    async def look(services: Services) -> list[WorkerView]:
        return await services.administration.workers()

    found = opened(look)
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no workers")
        return
    columns = ("worker", "status", "runs", "started", "host", "pid", "engine", "version")
    optional = ("version", "engine", "pid", "host", "started")
    print_rows(columns, [_row(one) for one in found], leave_out=optional)


def _row(one: WorkerView) -> ListRow:
    state = "draining" if one.draining else "works"
    if one.silent > SILENT_SECONDS:
        state = f"silent for {one.silent:.0f} s"
    cells = (one.worker_id, state, str(one.runs), moment(one.started_at))
    return ListRow((*cells, one.host, str(one.pid), one.engine, one.version))


def drain(
    worker: Annotated[str | None, typer.Option(help="Only this worker; `interlock workers` lists them.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All present workers; workers started later are not affected.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when they have ended.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Maximum seconds to wait; exit code 8 after that.")] = 900,
    as_json: AsJson = False,
) -> None:
    """Ask workers to finish the steps under way, release their runs and exit."""
    if (worker is None) != every:
        raise InvalidInput("name the workers: --worker ID, or --all")

    async def ask(services: Services) -> tuple[list[str], list[str], dict[str, float]]:
        asked = await services.administration.ask_to_drain(worker, login=login())
        left = await _left(services, set(asked), time.monotonic() + timeout) if wait else []
        there = await services.administration.workers()
        silent = {one.worker_id: one.silent for one in there if one.silent > SILENT_SECONDS}
        return asked, left, silent

    asked, left, silent = opened(ask)
    if left:
        raise Unavailable(f"still running after {timeout:g} s: {', '.join(left)}")
    dead = [one for one in asked if one in silent]
    if as_json:
        print_json({"asked": asked, "drained": wait, "silent": dead})
        return
    if not asked:
        out.print("no workers")
    for one in asked:
        if one in silent:
            out.print(
                f"{one} has been silent for {silent[one]:.0f} s: it ended without draining; its runs go to others"
            )
        else:
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
