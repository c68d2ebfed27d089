"""Health of tools: polled by one worker at a time, shared by all.

The health check of a tool with `health` in its contract runs at the contract's interval. Two bad answers in a row make
the tool unhealthy, one good answer makes it healthy again, and a tool that was not checked yet counts as healthy.
The state is a row of `tool_health`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from interlock.base.background import Loop
from interlock.base.errors import FailureKind, ToolUnhealthy, Unavailable
from interlock.base.ids import new_id
from interlock.base.json import JsonObject
from interlock.store.database import Database, Row
from interlock.store.queries import QUERIES
from interlock.telemetry import names
from interlock.telemetry.logs import log

BAD_IN_A_ROW = 2
_DETAIL_CHARACTERS = 300
_AT_ONCE = 4  # concurrent checks of one worker; each needs a sandbox
_LEASE_SECONDS = 60.0  # added to the tool's own deadline; after that another worker checks instead of a dead one
_POLL_SECONDS = 1.0
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Check:
    """A due health check of a tool."""

    org_id: str
    tool: str
    bundle: str
    contract: JsonObject


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """Result of a health check; `detail` is a readable sentence."""

    healthy: bool
    detail: str = ""


Ask = Callable[[Check], Awaitable[HealthVerdict | None]]
"""Runs the tool's `health`; None if it could not run, which says nothing about the tool. Raises nothing."""


class ToolHealth:
    """The unhealthy tools of all organisations, in memory; `refresh` reads them anew."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unhealthy: dict[tuple[str, str, str], str] = {}

    def check(self, org_id: str, tool: str, bundle: str) -> None:
        """Raises:
        ToolUnhealthy: the last two checks of this tool were bad; not retried, so that a fallback is used at once.
        """
        detail = self._unhealthy.get((org_id, tool, bundle))
        if detail is not None:
            why = f" ({detail})" if detail else ""
            raise ToolUnhealthy(
                f'tool "{tool}" failed its own health check{why}; it is called again when the check succeeds',
                kind=FailureKind.PERMANENT,
            )

    async def refresh(self) -> None:
        async with asyncio.timeout(_PATIENCE), self._database.connection("") as connection:
            rows = await connection.fetch(QUERIES["unhealthy_tools"].sql)
        self._unhealthy = {(row["org_id"], row["tool"], row["bundle"]): row["detail"] for row in rows}


class Poller:
    """Runs the health checks. Every worker has a poller; the database assigns each tool to one worker at a time."""

    def __init__(self, database: Database, ask: Ask, *, poll_seconds: float = _POLL_SECONDS) -> None:
        self._database = database
        self._ask = ask
        self._loop = Loop("poll tool health", self._begin_due, every=poll_seconds, longest=poll_seconds, report=_log)
        self._id = new_id("pol")
        self._checks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._loop.start()

    async def close(self) -> None:
        await self._loop.close()
        for check in self._checks:
            check.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)

    async def _begin_due(self) -> None:
        for check in await self._begin(_AT_ONCE - len(self._checks)):
            check.add_done_callback(_complain)

    async def poll(self) -> int:
        """Runs the due checks and waits for their answers; returns their number."""
        checks = await self._begin(_AT_ONCE)
        await asyncio.gather(*checks)
        return len(checks)

    async def _begin(self, wanted: int) -> list[asyncio.Task[None]]:
        """Starts the due checks as separate tasks, so that a slow check does not delay the others."""
        rows = await self._database.rows("claim_tool_checks", wanted, _LEASE_SECONDS) if wanted > 0 else []
        checks = [asyncio.create_task(self._check(row)) for row in rows]
        for check in checks:
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
        return checks

    async def _check(self, row: Row) -> None:
        check = Check(row["org_id"], row["tool"], row["bundle"], row["contract"])
        verdict = await self._ask(check)
        key = (check.org_id, check.tool, check.bundle, row["claim"])
        given = (None, "") if verdict is None else (verdict.healthy, verdict.detail[:_DETAIL_CHARACTERS])
        moved = await self._database.row("report_tool_check", *key, *given, BAD_IN_A_ROW, org=check.org_id)
        if moved is not None and moved["was"] != moved["healthy"]:
            log(
                names.LOG_TOOL_HEALTH,
                level="info" if moved["healthy"] else "warning",
                org_id=check.org_id,
                tool=check.tool,
                healthy=moved["healthy"],
                detail=given[1],
            )


def _complain(check: asyncio.Task[None]) -> None:
    if not check.cancelled() and (error := check.exception()) is not None:
        _log(error)


def _log(error: BaseException) -> None:
    level = "warning" if isinstance(error, Unavailable) else "error"
    log(names.LOG_HEALTH_UNKNOWN, str(error), level=level)
