"""The relay from the outbox to its sinks."""

from __future__ import annotations

import asyncio
import json
import random
import sys
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
from interlock.store.outbox import EventRefused, OutboxEvent, Relay, refused_events
from interlock.store.rows import JournalRow, OutboxRow
from interlock.telemetry import logs
from settled import requeue_event

if TYPE_CHECKING:
    from conftest import Tenant

Publish = Callable[..., Awaitable[None]]


@pytest.fixture
async def publish(database: Database, tenants: tuple[Tenant, Tenant]) -> AsyncIterator[Publish]:
    """Commits events 0 to n-1 of an organisation, each in a commit of its own; `runs` are theirs, in turn."""
    committer = Committer(database, AuditLog(bytes(range(32, 64))).seal)
    committer.start()

    async def publish(count: int, org: int = 0, runs: tuple[str, ...] = ()) -> None:
        org_id = tenants[org].org_id
        for n in range(count):
            run = {"run_id": runs[n % len(runs)]} if runs else {}
            event = OutboxRow(org_id=org_id, topic="test", payload={"n": n, **run})
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
    for name in ("_POLL_SECONDS", "_FIRST_WAIT", "_LONGEST_WAIT", "_LONGEST_BACKOFF"):
        monkeypatch.setattr(outbox, name, 0.005)


def left(owner: psycopg.Connection[Any]) -> list[int]:
    """Events that some receiver has not got, in order."""
    rows = owner.execute(
        "select outbox_id, payload from outbox union select event_id, payload from deliveries where status = 'pending' order by 1"
    ).fetchall()
    return [row[1]["n"] for row in rows]


def take_leases_back(owner: psycopg.Connection[Any]) -> None:
    """As if their time had run out."""
    owner.execute("update event_sinks set held_until = '-infinity'")


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
    relay = Relay(database, {"one": receiver, "two": second})
    assert [await relay.deliver("one") for _ in range(3)] == [100, 20, 0]
    assert receiver.got == list(range(120))
    assert second.got == []
    assert left(owner) == list(range(120))
    assert [await relay.deliver("two") for _ in range(3)] == [100, 20, 0]
    assert second.events == receiver.events
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
    await Relay(database, {"sink": receiver}).deliver("sink")
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
    assert await Relay(database, {"sink": receiver}).deliver("sink") == 0
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
    relay = Relay(database, {"sink": receiver}, complain=lambda failure: complaints.append(str(failure)))
    with pytest.raises(Unavailable):
        await relay.deliver("sink")
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
    relay = Relay(database, {"sink": receiver}, complain=lambda failure: complaints.append(str(failure)))
    relay.start()
    await receiver.until(3)
    await relay.close()
    assert complaints == ["the first reason", "the second reason"]


async def test_a_round_without_a_due_event_is_no_sign_of_life(
    database: Database,
    owner: psycopg.Connection[Any],
    publish: Publish,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the only event is put off, rounds find nothing due; the same failure after them is no news."""
    for wait in ("_FIRST_WAIT", "_LONGEST_WAIT"):
        monkeypatch.setattr(outbox, wait, 3600.0)
    await publish(1)
    tries = idle = 0

    def fail(_: int) -> Exception | None:
        nonlocal tries, idle
        tries, idle = tries + 1, 0
        return Unavailable("away") if tries < 4 else None

    receiver.fail = fail
    complaints: list[str] = []
    relay = Relay(database, {"sink": receiver}, complain=lambda failure: complaints.append(str(failure)))
    deliver = relay.deliver

    async def counted(name: str) -> int:
        nonlocal idle
        count = await deliver(name)
        idle += 1
        return count

    monkeypatch.setattr(relay, "deliver", counted)
    relay.start()
    async with asyncio.timeout(180):
        for number in (1, 2, 3):
            while tries < number or idle < 2:
                await asyncio.sleep(0.005)
            owner.execute("update deliveries set next_try = now()")
    await receiver.until(1)
    await relay.close()
    assert (complaints, tries) == (["away"], 4)


async def test_a_dead_receiver_stops_no_other(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    dead, broken = Receiver(), True
    dead.fail = lambda _: Unavailable("away") if broken else None
    relay = Relay(database, {"dead": dead, "live": receiver})
    relay.start()
    await publish(30, runs=("a", "b", "c"))
    await receiver.until(30)
    assert receiver.got == list(range(30))
    assert dead.got == []
    assert left(owner) == list(range(30))
    broken = False
    await until_empty(owner)
    await relay.close()
    assert sorted(dead.got) == list(range(30))
    for run in range(3):
        assert [n for n in dead.got if n % 3 == run] == list(range(run, 30, 3))


async def test_a_receiver_that_hangs_stops_no_other_and_holds_no_transaction(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    hanging = asyncio.Event()

    async def hang(event: OutboxEvent) -> None:
        hanging.set()
        await asyncio.Event().wait()

    relay = Relay(database, {"hangs": hang, "live": receiver})
    relay.start()
    await publish(3)
    await hanging.wait()
    await receiver.until(3)
    open_ones = "select count(*) from pg_stat_activity where usename = 'interlock_app' and xact_start is not null"
    async with asyncio.timeout(60):
        while owner.execute(open_ones).fetchone() != (0,):  # those of polls end at once
            await asyncio.sleep(0.001)
    await relay.close()
    assert left(owner) == [0, 1, 2]


async def test_an_event_that_is_refused_lets_the_others_pass_and_can_be_sent_again(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    await publish(5, runs=("run_a",))
    poison = True
    receiver.fail = lambda n: EventRefused("the answer was 400") if n == 2 and poison else None
    complaints: list[str] = []
    relay = Relay(database, {"sink": receiver}, complain=lambda error: complaints.append(str(error)))
    assert await relay.deliver("sink") == 4
    assert receiver.got == [0, 1, 3, 4]
    assert left(owner) == []
    (refused,) = await refused_events(database)
    assert (refused.sink, refused.topic, refused.run_id) == ("sink", "test", "run_a")
    assert refused.reason == "the answer was 400"
    assert [f"does not take event {refused.event_id}" in one for one in complaints] == [True]
    for sink, event_id in (("sink", refused.event_id + 1), ("other", refused.event_id)):
        with pytest.raises(asyncpg.PostgresError, match="not refused"):
            await requeue_event(database, sink, event_id)
    await requeue_event(database, "sink", refused.event_id)
    poison = False
    assert await relay.deliver("sink") == 1
    assert receiver.events[-1].event_id == refused.event_id
    assert await refused_events(database) == []


async def test_an_event_that_always_fails_delays_only_its_run_and_is_refused_if_the_receiver_takes_others(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    tries = 0

    def fail(n: int) -> Exception | None:
        nonlocal tries
        tries += n == 4
        return Unavailable("500") if n == 4 else None

    receiver.fail = fail
    await publish(10, runs=("well", "well", "sick"))  # the sick run's are 2, 5 and 8, and 4 is the well run's
    relay = Relay(database, {"sink": receiver})
    relay.start()
    async with asyncio.timeout(180):
        while tries < 3 * outbox.ATTEMPTS:
            await asyncio.sleep(0.005)
    assert receiver.got == [0, 1, 2, 3, 5, 8]  # 6, 7 and 9 wait behind 4
    assert await refused_events(database) == []  # the receiver took nothing in between: the fault may be its own
    async with asyncio.timeout(180):
        while not (refused := await refused_events(database)):
            await publish(1, runs=("other",))
    assert refused[0].tries > 3 * outbox.ATTEMPTS
    await until_empty(owner)
    await relay.close()
    assert [n for n in receiver.got if n > 5] == [8, 6, 7, 9]


async def test_order_of_each_run_is_kept_while_deliveries_fail_at_random(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    dice = random.Random(7)
    receiver.fail = lambda _: Unavailable("no luck") if dice.random() < 0.3 else None
    relay = Relay(database, {"sink": receiver})
    relay.start()
    await publish(60, runs=("a", "b", "c", "d"))
    await until_empty(owner)
    await relay.close()
    for run in range(4):
        assert [n for n in receiver.got if n % 4 == run] == list(range(run, 60, 4))


async def test_a_relay_that_is_closed_while_it_sends_leaves_the_event_to_another(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    await publish(3)
    reached = asyncio.Event()

    async def hang(event: OutboxEvent) -> None:
        await receiver(event)
        if event.payload["n"] == 1:
            reached.set()
            await asyncio.Event().wait()

    relay = Relay(database, {"sink": hang})
    relay.start()
    await reached.wait()
    assert receiver.got == [0, 1]
    await relay.close()
    await relay.close()
    assert left(owner) == [1, 2]
    await Relay(database, {"sink": receiver}).deliver("sink")
    assert receiver.got == [0, 1, 1, 2]
    assert receiver.events[1] == receiver.events[2]
    assert left(owner) == []


CRASHING = """
import asyncio, os, sys
from interlock.store.database import Database
from interlock.store.outbox import Relay

async def main():
    database = Database(sys.argv[1], pool_size=2)
    await database.open()

    async def sink(event):
        print(event.payload["n"], event.event_id, flush=True)
        if event.payload["n"] == 1:
            os._exit(9)

    await Relay(database, {"sink": sink}).deliver("sink")

asyncio.run(main())
"""


async def test_a_process_that_dies_after_sending_is_followed_by_one_that_sends_the_same_again(
    database: Database, database_url: str, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    await publish(3)
    arguments = (sys.executable, "-c", CRASHING, database_url)
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 9
    assert [line.split()[0] for line in said.decode().splitlines()] == ["0", "1"]
    relay = Relay(database, {"sink": receiver})
    assert await relay.deliver("sink") == 0  # the dead one's lease has not run out
    take_leases_back(owner)
    assert await relay.deliver("sink") == 3
    assert receiver.got == [0, 1, 2]
    assert [line.split()[1] for line in said.decode().splitlines()] == [str(e.event_id) for e in receiver.events[:2]]


async def test_a_relay_whose_lease_is_another_s_stops_and_forgets_nothing(
    database: Database,
    owner: psycopg.Connection[Any],
    publish: Publish,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a long stop of the process: the other one has the receiver by now."""
    monkeypatch.setattr(outbox, "_FLUSH_SECONDS", -1.0)  # forgets after every event
    await publish(4)
    sent: list[int] = []

    async def late(event: OutboxEvent) -> None:
        sent.append(event.payload["n"])
        if event.payload["n"] == 1:
            take_leases_back(owner)
            assert await Relay(database, {"sink": receiver}).deliver("sink") == 3

    assert await Relay(database, {"sink": late}).deliver("sink") == 2
    assert sent == [0, 1]
    assert receiver.got == [1, 2, 3]
    assert left(owner) == []


async def test_a_receiver_that_no_process_has_is_forgotten_after_a_week(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    other = Receiver()
    await publish(2)
    await Relay(database, {"old": other, "new": receiver}).deliver("new")
    assert left(owner) == [0, 1]
    owner.execute("update event_sinks set seen_at = now() - interval '6 days' where sink = 'old'")
    await Relay(database, {"brand new": receiver}).deliver("brand new")
    assert left(owner) == [0, 1]
    owner.execute("update event_sinks set seen_at = now() - interval '8 days' where sink = 'old'")
    await Relay(database, {"newest": receiver}).deliver("newest")
    assert left(owner) == []


async def test_a_connection_that_breaks_while_delivering_loses_nothing(
    database: Database, owner: psycopg.Connection[Any], publish: Publish, receiver: Receiver
) -> None:
    await publish(4)
    strokes = 0

    async def cut(event: OutboxEvent) -> None:
        nonlocal strokes
        await receiver(event)
        if event.payload["n"] == 2 and strokes < 2:
            strokes += 1
            owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'interlock_app' "
                          "and datname = current_database()")  # fmt: skip
            raise OSError("the line is cut")

    relay = Relay(database, {"sink": cut})
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
    second = Receiver()

    async def slow(event: OutboxEvent) -> None:
        await asyncio.sleep(0)
        await receiver(event)

    relays = [Relay(one, {"slow": slow, "second": second}) for one in (database, *others)]
    for relay in relays:
        relay.start()
    await publish(150)
    await until_empty(owner)
    for relay in relays:
        await relay.close()
    for other in others:
        await other.close()
    assert receiver.got == second.got == list(range(150))


async def test_every_event_is_in_the_log(
    database: Database, publish: Publish, tmp_path: Path, tenants: tuple[Tenant, Tenant]
) -> None:
    path = tmp_path / "log.jsonl"
    logs.configure(level="info", file=path)
    try:
        await publish(2)
        await Relay(database, {"log": to_log}).deliver("log")
    finally:
        structlog.reset_defaults()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event_type"] for line in lines] == ["event", "event"]
    data = [line["structured_data"] for line in lines]
    assert [(one["topic"], one["org_id"], one["n"]) for one in data] == [("test", tenants[0].org_id, n) for n in (0, 1)]
