"""Event streams of runs: the journal as it grows, and the run's status and open questions.

One connection a process listens for changes of followed runs; a follower looks when its run is notified, and otherwise every
15 seconds in case a notification was lost. A look reads the run's row and what is new in its journal; it never folds, so an
idle follower costs the same however long the journal is. The caller's key is checked again every two seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from interlock.base.background import Loop
from interlock.base.errors import NotFound, TooManyRequests
from interlock.base.usage import cost_json
from interlock.identity.principal import Principal
from interlock.machine.events import RunStatus
from interlock.services.views.events import (
    JournalEntry,
    ReviewClosed,
    ReviewOpened,
    RunEnded,
    StatusChanged,
    StreamEvent,
    Waiting,
)
from interlock.services.views.runs import is_over
from interlock.store.database import Database, Row, Snapshot
from interlock.store.listener import Listener
from interlock.telemetry import names
from interlock.telemetry.logs import log

CHANNEL = "interlock_runs"

_LOOK_SECONDS = 15.0  # between two looks at a run of which nothing is notified
_SECOND_LOOK_SECONDS = 1.0  # after the first: a commit that began before the run was followed sends no notification
_PAUSE_SECONDS = 0.05  # between two looks at a run that changes all the time
_CHECK_SECONDS = 2.0  # between two checks of the key
_FOLLOWED_SECONDS = 60.0  # how long a run counts as followed without renewal
_RENEW_SECONDS = 20.0
_PAGE = 500  # journal entries read at once

Authenticate = Callable[[], Awaitable[Principal]]


@dataclass(slots=True)
class _Position:
    """Position of a follower.

    Attributes:
        after: number of the last journal entry.
        status: the last status; None before the first look.
        waiting: the questions that the last `waiting` named.
        marks: of reviews and dead letters at the last look; they differ once one is opened or closed.
        open_reviews: id → step of those that were named as open.
    """

    after: int
    status: str | None = None
    waiting: tuple[frozenset[str], frozenset[str]] | None = None
    marks: tuple[str, str] = ("", "")
    open_reviews: dict[str, str] = field(default_factory=dict)


class Followers:
    """Event streams of one process.

    Args:
        most, most_per_org: streams at once.
    """

    def __init__(self, database: Database, *, most: int, most_per_org: int) -> None:
        self._database = database
        self._most, self._most_per_org = most, most_per_org
        self._wakes: dict[tuple[str, str], set[asyncio.Event]] = {}
        self._by_org: Counter[str] = Counter()
        self._listener = Listener(database, CHANNEL, self._notified)
        self._renewal = Loop(
            "followed runs", self._renew, every=_RENEW_SECONDS, at_once=False, longest=_RENEW_SECONDS, report=_down
        )

    async def close(self) -> None:
        """Stops listening; open streams are ended by their entry points."""
        await self._renewal.close()
        await self._listener.close()

    def wake(self) -> None:
        """Has every follower look, and notice that its server stops."""
        self._notified("")

    async def follow(
        self, principal: Principal, run_id: str, after: int, *, authenticate: Authenticate, stopping: asyncio.Event
    ) -> AsyncIterator[StreamEvent | None]:
        """A stream of a run's events; None now and then, when there was nothing to say for a while.

        It ends after RunEnded, or without it once `stopping` is set. What it raises while it is read ends it too: Unauthenticated
        and Denied by the repeated check of the key, Unavailable while the database is away.

        Args:
            after: number of the last journal entry that the client has.
            authenticate: gives the principal again, or raises Unauthenticated.

        Raises:
            NotFound: no such run in this organisation. TooManyRequests: a bound on streams is reached.
        """
        principal.require("run.read")
        await self._state(principal, run_id)
        self._check_bounds(principal.org_id)
        return self._stream(principal, run_id, after, authenticate, stopping)

    async def entries(
        self, principal: Principal, run_id: str, after: int = 0, last: int | None = None
    ) -> AsyncIterator[JournalEntry]:
        """The journal's entries after a number, up to `last` or as far as they are there now."""
        principal.require("run.read")
        while rows := await self._database.rows("get_journal", run_id, after, _PAGE, org=principal.org_id):
            for row in rows:
                if last is not None and row["seq"] > last:
                    return
                yield JournalEntry.model_validate({"seq": row["seq"], **row["event"]})
            after = rows[-1]["seq"]

    # -- one stream --------------------------------------------------------------------------------------------

    async def _stream(
        self, principal: Principal, run_id: str, after: int, authenticate: Authenticate, stopping: asyncio.Event
    ) -> AsyncIterator[StreamEvent | None]:
        position = _Position(after)
        with self._registered(principal.org_id, run_id) as wake:
            await self._follow_runs(principal.org_id, [run_id])
            self._listen()
            next_look = time.monotonic()
            while not stopping.is_set():
                if wake.is_set() or time.monotonic() >= next_look:
                    first = position.status is None
                    wake.clear()
                    async for event in self._look(principal, run_id, position):
                        yield event
                    if position.status is not None and is_over(position.status):
                        return
                    yield None
                    next_look = time.monotonic() + (_SECOND_LOOK_SECONDS if first else _LOOK_SECONDS)
                    await asyncio.sleep(_PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_CHECK_SECONDS, max(0.0, next_look - time.monotonic()))):
                        await wake.wait()
                (await authenticate()).require("run.read")

    async def _look(self, principal: Principal, run_id: str, position: _Position) -> AsyncIterator[StreamEvent]:
        """Yields what is new, all of it as of one moment: entries end where the status was read."""
        row, reviews, asked = await self._read(principal, run_id, position)
        if (row["last_seq"] or 0) > position.after:
            async for entry in self.entries(principal, run_id, position.after, row["last_seq"]):
                position.after = entry.seq
                yield entry
        for event in _changed_reviews(run_id, reviews, position.open_reviews):
            yield event
        moved, marks = row["status"] != position.status, _marks(row)
        if moved:
            yield StatusChanged(run_id=run_id, status=row["status"], reason=row["reason"])
        if row["status"] != RunStatus.WAITING:
            position.waiting = None
        elif moved or marks != position.marks:
            open_reviews = [one["id"] for one in asked if one["kind"] == "review"]
            dead_letters = [one["id"] for one in asked if one["kind"] == "dead_letter"]
            questions = (frozenset(open_reviews), frozenset(dead_letters))
            if questions != position.waiting:
                position.waiting = questions
                yield Waiting(run_id=run_id, reviews=open_reviews, dead_letters=dead_letters)
        position.status, position.marks = row["status"], marks
        if is_over(row["status"]):
            yield RunEnded.model_validate(dict(row) | cost_json(row["nano_usd"], row["unpriced"]))

    async def _read(self, principal: Principal, run_id: str, position: _Position) -> tuple[Row, list[Row], list[Row]]:
        """The run's state, its reviews and its open questions; without the last two if nothing but the journal moved."""
        row = await self._state(principal, run_id)
        if (row["status"], _marks(row)) == (position.status, position.marks):
            return row, [], []

        async def read(snapshot: Snapshot) -> tuple[Row, list[Row], list[Row]]:
            row = _found(await snapshot.row("run_state", run_id), run_id)
            reviews = await snapshot.rows("followed_reviews", run_id, list(position.open_reviews))
            return row, reviews, await snapshot.rows("open_questions", run_id)

        return await self._database.in_snapshot(read, org=principal.org_id)

    async def _state(self, principal: Principal, run_id: str) -> Row:
        return _found(await self._database.row("run_state", run_id, org=principal.org_id), run_id)

    # -- all streams of the process ----------------------------------------------------------------------------

    def _check_bounds(self, org_id: str) -> None:
        if self._by_org[org_id] >= self._most_per_org:
            raise TooManyRequests(
                f"this organisation follows {self._most_per_org} runs here already (server.followers_per_org); "
                "close a stream, or raise the setting"
            )
        if self._by_org.total() >= self._most:
            raise TooManyRequests(
                f"this server has {self._most} event streams open already (server.followers); try again later"
            )

    @contextlib.contextmanager
    def _registered(self, org_id: str, run_id: str) -> Iterator[asyncio.Event]:
        # Again, because streams that were let in at the same moment begin one after the other.
        self._check_bounds(org_id)
        wake, key = asyncio.Event(), (org_id, run_id)
        self._wakes.setdefault(key, set()).add(wake)
        self._by_org[org_id] += 1
        try:
            yield wake
        finally:
            self._by_org[org_id] -= 1
            if not self._by_org[org_id]:
                del self._by_org[org_id]
            self._wakes[key].discard(wake)
            if not self._wakes[key]:
                del self._wakes[key]

    def _listen(self) -> None:
        if not self._renewal.running:
            self._listener.start()
            self._renewal.start()

    def _notified(self, run_id: str) -> None:
        for key, wakes in self._wakes.items():
            if run_id in {"", key[1]}:
                for wake in wakes:
                    wake.set()

    async def _renew(self) -> None:
        for org_id in list(self._by_org):
            await self._follow_runs(org_id, [run_id for org, run_id in list(self._wakes) if org == org_id])

    async def _follow_runs(self, org_id: str, run_ids: list[str]) -> None:
        await self._database.execute("follow_runs", org_id, run_ids, _FOLLOWED_SECONDS, org=org_id)


def _found(row: Row | None, run_id: str) -> Row:
    if row is None:
        raise NotFound(f'no run "{run_id}" in this organisation')
    return row


def _marks(row: Row) -> tuple[str, str]:
    return row["reviews_mark"], row["dead_letters_mark"]


def _changed_reviews(run_id: str, rows: list[Row], known: dict[str, str]) -> Iterator[StreamEvent]:
    """Events of reviews that were opened or closed; `known` holds those named as open, and follows."""
    for row in rows:
        if row["status"] != "open":
            known.pop(row["review_id"])
            yield ReviewClosed.model_validate({"run_id": run_id, **dict(row)})
        elif row["review_id"] not in known:
            known[row["review_id"]] = row["step"]
            yield ReviewOpened.model_validate({"run_id": run_id, **dict(row)})


def _down(error: Exception) -> None:
    # Followers look every 15 s in any case.
    log(names.LOG_DATABASE_DOWN, str(error), level="warning")
