"""The relay from the outbox to its sinks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import structlog

from interlock.audit.log import AuditLog
from interlock.base.errors import Unavailable
from interlock.notify.webhook import to_log
from interlock.store import outbox
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.outbox import OutboxEvent, Relay
from interlock.store.rows import JournalRow, OutboxRow
from interlock.telemetry import logs

if TYPE_CHECKING:
    from conftest import Tenant

Publish = Callable[..., Awaitable[None]]


@pytest.fixture
async def publish(database: Database, tenants: tuple[Tenant, Tenant]) -> AsyncIterator[Publish]:
    """Commits events 0 to n-1 of the first organisation, each in a commit of its own."""
    committer = Committer(database, AuditLog(bytes(range(32, 64))).seal)
    committer.start()

    async def publish(count: int, org: int = 0) -> None:
        org_id = tenants[org].org_id
        for n in range(count):
            event = OutboxRow(org_id=org_id, topic="test", payload={"n": n})
            await committer.submit(Commit(org_id, outbox=[event]))

    yield publish
    await committer.close()


class Receiver:
    """A sink that writes down what it gets, and fails when told to."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.events: list[OutboxEvent] = []
        self.fail: Callable[[int], Exception | None] = lambda _: None

    async def __call__(self, event: OutboxEvent) -> None:
        error = self.fail(event.payload["n"])
        if error is not None:
            raise error
        self.events.append(event)
        self.got.append(event.payload["n"])

    async def until(self, count: int) -> None:
        async with asyncio.timeout(180):
            while len(self.got) < count:
                await asyncio.sleep(0.005)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_POLL_SECONDS", 0.005)


def left(owner: psycopg.Connection[Any]) -> list[int]:
    return [row[0]["n"] for row in owner.execute("select payload from outbox order by outbox_id").fetchall()]


async def until_empty(owner: psycopg.Connection[Any]) -> None:
    async with asyncio.timeout(180):
        while left(owner):
            await asyncio.sleep(0.005)


async def test_events_arrive_in_order_and_are_forgotten(
    database: Database,
    owner: psycopg.Connection[Any],
    publish: Publish,
    receiver: Receiver,
    tenants: tuple[Tenant, Tenant],
) -> None:
    second = Receiver()
    await publish(120)  # more than a batch
    relay = Relay(database, [receiver, second])
    assert [await relay.deliver(), await relay.deliver(), await relay.deliver()] == [100, 20, 0]
    assert receiver.got == second.got == list(range(120))
    assert left(owner) == []
    event = receiver.events[0]
    assert (event.org_id, event.topic, event.payload) == (tenants[0].org_id, "test", {"n": 0})
    ids = [one.event_id for one in receiver.events]
    assert ids == sorted(set(ids))


async def test_events_of_all_organisations_leave(
    database: Database, publish: Publish, receiver: Receiver, tenants: tuple[Tenant, Tenant]
) -> None:
    await publish(2, org=0)
    await publish(3, org=1)
    await Relay(database, [receiver]).deliver()
    assert [event.org_id for event in receiver.events] == [tenants[0].org_id] * 2 + [tenants[1].org_id] * 3


async def test_what_was_refused_leaves_no_event(
    database: Database, owner: psycopg.Connection[Any], receiver: Receiver, tenants: tuple[Tenant, Tenant]
) -> None:
    committer = Committer(database, AuditLog(bytes(range(32, 64))).seal)
    committer.start()
    org = tenants[0].org_id
    event = OutboxRow(org_id=org, topic="test", payload={"n": 1})
    broken = JournalRow(run_id="nobody", seq=1, org_id=org, event={})
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await committer.submit(Commit(org, outbox=[event], journal=[broken]))
    await committer.close()
    assert await Relay(database, [receiver]).deliver() == 0
    assert receiver.got == []


@pytest.mark.parametrize(
    "error", [Unavailable("away"), ValueError("a bug"), OSError("broken pipe"), TimeoutError(), KeyError("x")]
)
async def test_a_failing_sink_holds_up_what_comes_after_and_loses_nothing(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver, error: Exception
) -> None:
    await publish(5)
    broken = True
    receiver.fail = lambda n: error if n == 2 and broken else None
    complaints: list[str] = []
    relay = Relay(database, [receiver], complain=lambda failure: complaints.append(str(failure)))
    for _ in range(2):
        with pytest.raises(Unavailable):
            await relay.deliver()
        assert receiver.got == [0, 1]
        assert left(owner) == [2, 3, 4]
    relay.start()
    async with asyncio.timeout(180):
        while not complaints:
            await asyncio.sleep(0.005)
    broken = False
    await receiver.until(5)
    await publish(1)  # and it still works
    await receiver.until(6)
    await until_empty(owner)
    await relay.close()
    assert receiver.got == [0, 1, 2, 3, 4, 0]
    assert len(complaints) == 1


async def test_one_complaint_for_one_reason(database: Database, publish: Publish, receiver: Receiver) -> None:
    await publish(3)
    tries = 0

    def fail(n: int) -> Exception | None:
        nonlocal tries
        tries += 1
        return Unavailable("the first reason" if tries < 10 else "the second reason") if tries < 20 else None

    receiver.fail = fail
    complaints: list[str] = []
    relay = Relay(database, [receiver], complain=lambda failure: complaints.append(str(failure)))
    relay.start()
    await receiver.until(3)
    await relay.close()
    assert complaints == ["the first reason", "the second reason"]


async def test_a_relay_that_is_cut_off_delivers_again(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    """At least once: the sink has got the event, and the process stops before that is on record."""
    await publish(3)
    reached = asyncio.Event()

    async def hang(event: OutboxEvent) -> None:
        if event.payload["n"] == 1:
            reached.set()
            await asyncio.Event().wait()

    relay = Relay(database, [receiver, hang])
    relay.start()
    await reached.wait()
    assert receiver.got == [0, 1]
    await relay.close()
    assert left(owner) == [0, 1, 2]
    await Relay(database, [receiver]).deliver()
    assert receiver.got == [0, 1, 0, 1, 2]
    assert left(owner) == []


async def test_a_connection_that_breaks_while_delivering_loses_nothing(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    await publish(4)
    strokes = 0

    async def cut(event: OutboxEvent) -> None:
        nonlocal strokes
        if event.payload["n"] == 2 and strokes < 2:
            strokes += 1
            owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'interlock_app' "
                          "and datname = current_database()")  # fmt: skip

    relay = Relay(database, [receiver, cut])
    relay.start()
    await until_empty(owner)
    await relay.close()
    assert strokes == 2
    assert set(receiver.got) == {0, 1, 2, 3}
    last = {n: max(index for index, got in enumerate(receiver.got) if got == n) for n in range(4)}
    assert sorted(last, key=lambda n: last[n]) == [0, 1, 2, 3]


async def test_many_relays_deliver_each_event_once_and_in_order(
    database: Database, database_url: str, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    others = [Database(database_url, pool_size=2) for _ in range(2)]
    for other in others:
        await other.open()

    async def slow(event: OutboxEvent) -> None:
        await asyncio.sleep(0)
        await receiver(event)

    relays = [Relay(one, [slow]) for one in (database, *others)]
    for relay in relays:
        relay.start()
    await publish(150)
    await until_empty(owner)
    for relay in relays:
        await relay.close()
    for other in others:
        await other.close()
    assert receiver.got == list(range(150))


async def test_every_event_is_in_the_log(
    database: Database, publish: Publish, tmp_path: Path, tenants: tuple[Tenant, Tenant]
) -> None:
    path = tmp_path / "log.jsonl"
    logs.configure(level="info", file=path)
    try:
        await publish(2)
        await Relay(database, [to_log]).deliver()
    finally:
        structlog.reset_defaults()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event_type"] for line in lines] == ["event", "event"]
    data = [line["structured_data"] for line in lines]
    assert [(one["topic"], one["org_id"], one["n"]) for one in data] == [("test", tenants[0].org_id, n) for n in (0, 1)]
