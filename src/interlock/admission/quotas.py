"""Quotas: limits on concurrency and rate of an organisation, a workflow or a tool.

Quotas of organisations and workflows are enforced where runs are claimed (`sql/functions/queue.sql`). Quotas of tools are
enforced here: a call takes a slot first and returns it. A tool without a quota needs no query, because the set of tools
with a quota is kept in memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import get_args

from interlock.admission.scopes import QuotaScope
from interlock.base.errors import Deferred, FailureKind, InvalidInput, Unavailable
from interlock.base.ids import new_id
from interlock.store.admin_rows import NewQuota
from interlock.store.database import Database
from interlock.store.queries import QUERIES
from interlock.telemetry import names
from interlock.telemetry.logs import log

_MAX_LIMIT = 1_000_000
_MAX_SECONDS = 86_400
_PATIENCE = 2.0  # seconds for the database to answer a refresh
_GRACE_SECONDS = 30.0  # added to the tool's deadline; after that the slot of a dead worker is free again


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit of an organisation.

    Attributes:
        scope: kind of the limited object; the whole organisation has no name.
        concurrency: concurrent runs, or concurrent calls of the tool; None is no limit, 0 admits none.
        rate: runs started, or calls made, within `per_seconds`; None and 0 as above.

    Raises:
        InvalidInput: not a valid quota; names the correction.
    """

    scope: str
    name: str = ""
    concurrency: int | None = None
    rate: int | None = None
    per_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.scope not in get_args(QuotaScope):
            raise InvalidInput(f"scope must be one of {', '.join(get_args(QuotaScope))}")
        if (self.scope == "org") != (self.name == ""):
            raise InvalidInput("a quota of scope workflow or tool has its name, one of scope org has none")
        if self.concurrency is None and self.rate is None:
            raise InvalidInput("a quota limits something: give concurrency or rate, or remove it")
        for limit in (self.concurrency, self.rate):
            if limit is not None and not 0 <= limit <= _MAX_LIMIT:
                raise InvalidInput(f"concurrency and rate must be 0 to {_MAX_LIMIT}")
        if not 0 < self.per_seconds <= _MAX_SECONDS:
            raise InvalidInput(f"per_seconds must be more than 0 and at most {_MAX_SECONDS}")

    def row(self, org_id: str) -> NewQuota:
        """The row that sets this quota; committed, it is in force for all workers within about a second."""
        return NewQuota(
            org_id=org_id,
            scope=self.scope,
            name=self.name,
            concurrency=self.concurrency,
            rate=self.rate,
            per_seconds=self.per_seconds,
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """A unit of a tool's quota, held by one call."""

    org_id: str
    holder: str


class CallQuotas:
    """Quotas of tools: slots for their calls."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._limited: frozenset[tuple[str, str]] = frozenset()
        self._returning: set[asyncio.Task[None]] = set()

    async def refresh(self) -> None:
        """Reads the set of tools with a quota."""
        async with asyncio.timeout(_PATIENCE), self._database.connection("") as connection:
            rows = await connection.fetch(QUERIES["limited_tools"].sql)
        self._limited = frozenset((row["org_id"], row["name"]) for row in rows)

    async def close(self) -> None:
        """Waits until all slots have been returned."""
        await asyncio.gather(*self._returning, return_exceptions=True)

    async def take(self, org_id: str, tool: str, seconds: float) -> Slot | None:
        """A slot for one call; None if the tool has no quota.

        Args:
            seconds: maximum duration of the call.

        Raises:
            Deferred: no slot is free; `retry_after` in seconds.
            Unavailable: the database does not answer; a limit that cannot be checked is not ignored.
        """
        if (org_id, tool) not in self._limited:
            return None
        holder = new_id("slot")
        row = await self._database.row("take_call", org_id, tool, holder, seconds + _GRACE_SECONDS, org=org_id)
        assert row is not None, "a function without a set gives one row"
        if row["wait"] is not None:
            raise Deferred(
                f'tool "{tool}" is at its quota; the call waits',
                kind=FailureKind.RATE_LIMITED,
                retry_after=row["wait"],
            )
        return Slot(org_id, holder)

    def give_back(self, slot: Slot | None) -> None:
        """Returns a call's slot. Does not wait, because its caller may be cancelled at this moment."""
        if slot is None:
            return
        task = asyncio.get_running_loop().create_task(self._return(slot))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _return(self, slot: Slot) -> None:
        try:
            await self._database.rows("return_call", slot.holder, org=slot.org_id)
        except Unavailable as error:  # the slot's lease will expire
            log(names.LOG_DATABASE_DOWN, error.message, level="warning")


async def list_quotas(database: Database, org_id: str) -> list[Quota]:
    """The organisation's quotas, by scope and name."""
    return [Quota(**dict(row)) for row in await database.rows("list_quotas", org=org_id)]
