"""Relay of outbox events to receivers: at least once, in the order of each run, independently for each receiver.

Events are committed with what they announce. `spread_outbox` moves them into one delivery row for each receiver, so a receiver
that is away delays only its own. No transaction is open while an event is sent: a relay holds a lease on the receiver, sends,
and then forgets what was taken. If it dies in between, the next holder sends the same events again, with the same ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from interlock.base.background import Loop
from interlock.base.errors import InterlockError, Unavailable
from interlock.base.ids import new_id
from interlock.store.database import Database, Row

_POLL_SECONDS = 0.5
_BATCH = 100
_LEASE_SECONDS = 60.0
_PATIENCE_SECONDS = 20.0  # for one event; less than the half of a lease that is left at least when sending begins
_FLUSH_SECONDS = 1.0  # what was taken for longer than this is forgotten before the next event is sent
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # until an event that failed is sent again
_LONGEST_BACKOFF = 30.0  # until a receiver that failed gets any event
_FAILURES = 2  # in a row, of different events, after which the receiver is taken to be away
ATTEMPTS = 10
"""An event is refused when it failed so often while the receiver took other events in between."""
_REASON_CHARACTERS = 300
MOST_REFUSED = 1000
"""Refused events that are read at once."""


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """Something that happened, for receivers outside. `event_id` is the same each time it is sent; receivers drop repetitions."""

    event_id: int
    org_id: str
    topic: str
    payload: dict[str, Any]
    at: float


class EventRefused(Exception):
    """The receiver will never take this event; the text says why."""


@dataclass(slots=True)
class _Batch:
    """Events of one round: those taken and not yet forgotten, and what was put off."""

    accepted: list[int] = field(default_factory=list)
    count: int = 0
    flushed: float = field(default_factory=time.monotonic)
    put_off: set[tuple[str, str]] = field(default_factory=set)
    failures: int = 0  # in a row
    error: Exception | None = None  # of the last event, if that failed

    def accept(self, event_id: int) -> None:
        self.accepted.append(event_id)
        self.count += 1
        self.failures, self.error = 0, None

    def fail(self, lane: tuple[str, str], error: Exception) -> None:
        self.put_off.add(lane)
        self.failures += 1
        self.error = error


Sink = Callable[[OutboxEvent], Awaitable[None]]
"""Sends an event. Raises EventRefused if sending it again is useless; after any other error it is sent again."""


class Relay:
    """Sends outbox events to receivers. Of the relays in many processes, one at a time sends to each receiver.

    Args:
        sinks: receivers by name. The name stands in the database: events wait for it over restarts.
        complain: gets the error of a receiver once for each reason until it takes an event, and every event that is refused.
    """

    def __init__(
        self, database: Database, sinks: Mapping[str, Sink], *, complain: Callable[[Exception], None] | None = None
    ) -> None:
        self._database = database
        self._sinks = dict(sinks)
        self._complain = complain
        self._id = new_id("rel")
        self._held: dict[str, float] = {}  # until when, by time.monotonic()
        self._reported: dict[str, set[str]] = {name: set() for name in self._sinks}
        self._loops = [
            Loop(
                f"events to {name}",
                functools.partial(self._round, name),
                every=_POLL_SECONDS,
                longest=_LONGEST_BACKOFF,
                report=functools.partial(self._unavailable, name),
            )
            for name in self._sinks
        ]

    def start(self) -> None:
        for loop in self._loops:
            loop.start()

    async def close(self) -> None:
        """Cancels what is being sent, and lets other processes send at once."""
        await asyncio.gather(*(loop.close() for loop in self._loops))
        self._held.clear()
        with contextlib.suppress(Exception):  # the leases run out by themselves
            async with asyncio.timeout(2):
                await self._database.rows("release_sinks", self._id)

    async def deliver(self, name: str) -> int:
        """Sends one batch to a receiver; how many events it took. 0 if another process sends to it.

        An event that fails is put off with the later ones of its lane, or refused; the others are sent. The batch ends when two
        events in a row fail: then it is the receiver.

        Raises:
            InterlockError: of the last event, if that failed: what the sink raised, or Unavailable with the detail.
        """
        if not await self._hold(name):
            return 0
        await self._database.rows("spread_outbox", list(self._sinks), _BATCH)
        rows = await self._database.rows("due_deliveries", name, self._id, _BATCH)
        batch = _Batch()
        try:
            for row in rows:
                if batch.failures >= _FAILURES or not await self._flushed_and_held(name, batch):
                    break
                if (row["org_id"], row["lane"]) not in batch.put_off:
                    await self._deliver(name, row, batch)
        finally:
            await self._forget(name, batch)  # when cancelled too, else they would be sent again without need
        if batch.error is not None:
            raise batch.error
        return batch.count

    async def _deliver(self, name: str, row: Row, batch: _Batch) -> None:
        error = await self._send(name, row)
        if error is None:
            batch.accept(row["event_id"])
            self._reported[name].clear()
            return
        await self._forget(name, batch)
        if await self._failed(name, row["event_id"], error):
            batch.fail((row["org_id"], row["lane"]), error)

    def _unavailable(self, name: str, error: Exception) -> None:
        """Complains about a receiver. A round in which no event was due says nothing about it, so the loop cannot know."""
        if self._complain is not None and str(error) not in self._reported[name]:
            self._reported[name].add(str(error))
            self._complain(error)

    async def _round(self, name: str) -> bool:
        return await self.deliver(name) == _BATCH

    async def _hold(self, name: str) -> bool:
        """True if this relay may send for at least half of a lease."""
        now = time.monotonic()
        if self._held.get(name, 0.0) - now > _LEASE_SECONDS / 2:
            return True
        row = await self._database.row("hold_sink", name, self._id, _LEASE_SECONDS)
        if row is None or not row["held"]:
            self._held.pop(name, None)
            return False
        self._held[name] = now + _LEASE_SECONDS
        return True

    async def _send(self, name: str, row: Row) -> InterlockError | EventRefused | None:
        event = OutboxEvent(row["event_id"], row["org_id"], row["topic"], row["payload"], row["created_at"].timestamp())
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._sinks[name](event)
        except (InterlockError, EventRefused) as error:
            return error
        except Exception as error:  # noqa: BLE001  an error in a sink's code must not lose an event either
            failed = f"the receiver of events {name} failed with {type(error).__name__}; events are kept"
            return Unavailable(failed, detail=repr(error))
        return None

    async def _flushed_and_held(self, name: str, batch: _Batch) -> bool:
        if time.monotonic() - batch.flushed > _FLUSH_SECONDS:
            await self._forget(name, batch)
        return await self._hold(name)

    async def _forget(self, name: str, batch: _Batch) -> None:
        batch.flushed = time.monotonic()
        accepted, batch.accepted = batch.accepted, []
        if accepted:
            row = await self._database.row("delivered", name, self._id, accepted)
            if row is None or not row["held"]:
                self._held.pop(name, None)

    async def _failed(self, name: str, event_id: int, error: InterlockError | EventRefused) -> bool:
        """Records a failure; true if the event will be sent again, false if it was refused."""
        reason = str(error)[:_REASON_CHARACTERS]
        limits = (isinstance(error, EventRefused), ATTEMPTS, _FIRST_WAIT, _LONGEST_WAIT)
        row = await self._database.row("delivery_failed", name, self._id, event_id, reason, *limits)
        if row is None or row["status"] is None:
            self._held.pop(name, None)
        if row is None or row["status"] != "refused":
            return True
        if self._complain is not None:
            self._complain(
                Unavailable(
                    f"the receiver of events {name} does not take event {event_id}; "
                    "`interlock events refused` lists such events, `interlock events requeue` sends them again",
                    detail=reason,
                )
            )
        return False


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """An event that a receiver did not take; `run_id` is empty for an event of no run."""

    sink: str
    event_id: int
    org_id: str
    topic: str
    run_id: str
    reason: str
    tries: int
    created_at: datetime
    failed_at: datetime


async def refused_events(database: Database, event_id: int | None = None) -> list[RefusedEvent]:
    """Refused events of all organisations, or one event for each receiver that refused it; oldest first, `MOST_REFUSED` at most."""
    return [RefusedEvent(**dict(row)) for row in await database.rows("refused_deliveries", event_id, MOST_REFUSED)]
