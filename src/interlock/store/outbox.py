"""The outbox's other end: events leave at least once, in order, after the transaction that caused them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from interlock.base.errors import InterlockError, Unavailable
from interlock.store.database import Database, Row

_POLL_SECONDS = 0.5
_BATCH = 100
_LOCK = 0x1CE10B  # of the relay that is at work; any number that nothing else locks


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
    """Delivers outbox events to every sink, then forgets them. Of the relays in many processes one works at a time.

    Args:
        complain: told why events stay, once for every reason.
    """

    def __init__(
        self, database: Database, sinks: list[Sink], *, complain: Callable[[Exception], None] | None = None
    ) -> None:
        self._database = database
        self._sinks = sinks
        self._complain = complain
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="outbox relay")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        known = ""
        while True:
            delivered, failure = 0, None
            try:
                delivered = await self._database.retrying(self.deliver)
            except Exception as error:  # noqa: BLE001  after any error the events stay, and are tried again
                failure = error
            if failure is not None and self._complain is not None and str(failure) != known:
                self._complain(failure)
            known = str(failure) if failure is not None else ""
            if delivered < _BATCH:
                await asyncio.sleep(_POLL_SECONDS)

    async def deliver(self) -> int:
        """Delivers one batch; how many events. Those that a sink did not take stay, and so does everything after them.

        Raises:
            InterlockError: what the sink said.
        """
        async with self._database.connection() as connection, connection.transaction():
            # One relay at a time: two would each have a part of the events, and their order would be lost.
            if not await connection.fetchval("select pg_try_advisory_xact_lock($1)", _LOCK):
                return 0
            rows = await connection.fetch("select * from peek_outbox($1)", _BATCH)
            delivered, failure = await self._deliver(rows)
            await connection.execute("select drop_outbox($1)", delivered)
        if failure is not None:
            raise failure
        return len(delivered)

    async def _deliver(self, rows: list[Row]) -> tuple[list[int], InterlockError | None]:
        delivered: list[int] = []
        for row in rows:
            event = OutboxEvent(
                row["outbox_id"], row["org_id"], row["topic"], row["payload"], row["created_at"].timestamp()
            )
            try:
                for sink in self._sinks:
                    await sink(event)
            except InterlockError as error:
                return delivered, error
            except Exception as error:  # noqa: BLE001  a sink's bug is no reason to lose an event either
                said = f"a receiver of events failed with {type(error).__name__}; events are kept"
                return delivered, Unavailable(said, detail=repr(error))
            delivered.append(event.event_id)
        return delivered, None
