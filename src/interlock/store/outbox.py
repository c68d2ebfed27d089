"""The outbox's other end: events leave at least once, in order, after the transaction that caused them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from interlock.base.errors import InterlockError
from interlock.store.database import Database

_POLL_SECONDS = 0.5
_BATCH = 100


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """Something that happened, for the world outside. `event_id` grows; receivers drop what they have seen."""

    event_id: int
    org_id: str
    topic: str
    payload: dict[str, Any]
    at: float


Sink = Callable[[OutboxEvent], Awaitable[None]]


class Relay:
    """Delivers outbox events to every sink, then forgets them. Relays in many processes do not get in each other's way."""

    def __init__(self, database: Database, sinks: list[Sink]) -> None:
        self._database = database
        self._sinks = sinks
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="outbox relay")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                delivered = await self._database.retrying(self.deliver)
            except InterlockError:
                delivered = 0  # a sink or the database is away; the events stay
            if delivered < _BATCH:
                await asyncio.sleep(_POLL_SECONDS)

    async def deliver(self) -> int:
        """Delivers one batch; the rows stay locked meanwhile, and stay if a sink fails."""
        async with self._database.connection() as connection, connection.transaction():
            rows = await connection.fetch("select * from peek_outbox($1)", _BATCH)
            for row in rows:
                event = OutboxEvent(
                    row["outbox_id"], row["org_id"], row["topic"], row["payload"], row["created_at"].timestamp()
                )
                for sink in self._sinks:
                    await sink(event)
            await connection.execute("select drop_outbox($1)", [row["outbox_id"] for row in rows])
        return len(rows)
