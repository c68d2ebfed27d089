"""Quotas of tools: never more calls than allowed, from however many workers, and none of it costs a tool without one."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import psycopg
import pytest

from interlock.admission.quotas import CallQuotas, Quota, Slot, list_quotas
from interlock.base.errors import Deferred, FailureKind, InvalidInput, Unavailable
from interlock.store.database import Database
from settled import remove_quota, set_quota

pytestmark = pytest.mark.usefixtures("tenants")
ORG, OTHER = "acme", "globex"


async def workers(database: Database, count: int) -> list[CallQuotas]:
    """As many processes' memories over the same database."""
    made = [CallQuotas(database) for _ in range(count)]
    for one in made:
        await one.refresh()
    return made


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is only slow is waited for."""
    monkeypatch.setattr("interlock.admission.quotas._PATIENCE", 60.0)


async def crowd(calls: list[CallQuotas], times: int) -> tuple[list[tuple[CallQuotas, Slot]], list[Deferred]]:
    """Everybody takes at once: who got a slot, and what the others were told."""

    async def take(one: CallQuotas) -> tuple[CallQuotas, Slot]:
        slot = await one.take(ORG, "pay", 10)
        assert slot is not None
        return one, slot

    tried = await asyncio.gather(*(take(one) for one in calls for _ in range(times)), return_exceptions=True)
    assert all(isinstance(one, tuple | Deferred) for one in tried), tried
    return [one for one in tried if isinstance(one, tuple)], [one for one in tried if isinstance(one, Deferred)]


async def give_back(taken: list[tuple[CallQuotas, Slot]]) -> None:
    for calls, slot in taken:
        calls.give_back(slot)
        await calls.close()


async def test_no_more_calls_at_once_than_allowed(database: Database) -> None:
    await set_quota(database, ORG, Quota("tool", "pay", concurrency=3))
    calls = await workers(database, 4)
    taken, refused = await crowd(calls, 5)
    assert (len(taken), len(refused)) == (3, 17)
    assert {(one.kind, one.code) for one in refused} == {(FailureKind.RATE_LIMITED, "deferred")}
    assert all(0 < (one.retry_after or 0) <= 1 for one in refused)
    await give_back(taken[:2])
    taken, _ = await crowd(calls, 2)
    assert len(taken) == 2


async def test_no_more_calls_in_a_time_than_allowed(database: Database, owner: psycopg.Connection[Any]) -> None:
    await set_quota(database, ORG, Quota("tool", "pay", rate=5, per_seconds=600))
    calls = await workers(database, 3)
    taken, refused = await crowd(calls, 4)
    assert (len(taken), len(refused)) == (5, 7)
    await give_back(taken)
    assert (await crowd(calls, 1))[0] == [], "a call that has ended was made all the same"
    owner.execute(
        "update quota_uses set at = at - interval '100 seconds' where use_id = (select min(use_id) from quota_uses)"
    )
    _, (told, *_) = await crowd(calls, 1)
    assert 400 < (told.retry_after or 0) <= 500, "as soon as the oldest is forgotten"
    owner.execute(
        "update quota_uses set at = at - interval '501 seconds' where use_id = (select min(use_id) from quota_uses)"
    )
    taken, _ = await crowd(calls, 2)
    assert len(taken) == 1
    assert owner.execute("select count(*) from quota_uses").fetchone() == (5,), "what is forgotten is removed"


async def test_the_slot_of_a_dead_worker_is_free_in_the_end(database: Database, owner: psycopg.Connection[Any]) -> None:
    await set_quota(database, ORG, Quota("tool", "pay", concurrency=1))
    calls = await workers(database, 1)
    taken, _ = await crowd(calls, 2)
    assert len(taken) == 1
    left = owner.execute("select extract(epoch from lease_until - now()) from quota_uses").fetchone()
    assert left is not None
    assert 10 < left[0] <= 40, "the tool's ten seconds, and some grace"
    owner.execute("update quota_uses set lease_until = now() - interval '1 second'")
    taken, _ = await crowd(calls, 2)
    assert len(taken) == 1


async def test_the_same_question_twice_takes_one_slot(database: Database, owner: psycopg.Connection[Any]) -> None:
    """As after an answer that was lost on the way."""
    await set_quota(database, ORG, Quota("tool", "pay", concurrency=1))
    for _ in range(2):
        row = await database.row("take_call", ORG, "pay", "the same", 10.0, org=ORG)
        assert row is not None
        assert row["wait"] is None
    assert owner.execute("select count(*) from quota_uses").fetchone() == (1,)


class _NoDatabase(Database):
    asked = 0

    async def rows(self, query: str, *args: Any, org: str = "") -> list[Any]:
        self.asked += 1
        raise Unavailable("away")


async def test_without_a_quota_nobody_is_asked_and_with_one_nobody_passes_unasked(database: Database) -> None:
    await set_quota(database, ORG, Quota("tool", "pay", rate=5))
    (calls,) = await workers(database, 1)
    calls._database = away = _NoDatabase("postgresql://nobody")
    assert await calls.take(ORG, "refund", 10) is None
    assert await calls.take(OTHER, "pay", 10) is None
    calls.give_back(None)
    assert away.asked == 0
    with pytest.raises(Unavailable):
        await calls.take(ORG, "pay", 10)
    calls.give_back(Slot(ORG, "gone"))
    await calls.close()  # its lease will end; nothing is raised
    assert away.asked == 2


async def test_a_quota_that_was_removed_lets_calls_through(database: Database) -> None:
    await set_quota(database, ORG, Quota("tool", "pay", concurrency=0))
    (calls,) = await workers(database, 1)
    with pytest.raises(Deferred):
        await calls.take(ORG, "pay", 10)
    await remove_quota(database, ORG, "tool", "pay")
    with pytest.raises(asyncpg.PostgresError, match="no such quota"):
        await remove_quota(database, ORG, "tool", "pay")
    assert await calls.take(ORG, "pay", 10) is not None, "not yet refreshed: it asks, and is let through"
    await calls.refresh()
    assert await calls.take(ORG, "pay", 10) is None


HOSTILE = ["'; drop table quotas; --", "x" * 200, "é漢", '{"a": 1}', "%s $1"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_names_are_only_names(name: str, database: Database) -> None:
    await set_quota(database, ORG, Quota("tool", name, concurrency=1))
    await set_quota(database, ORG, Quota("tool", name, rate=2, per_seconds=0.5))
    assert await list_quotas(database, ORG) == [Quota("tool", name, rate=2, per_seconds=0.5)]
    assert await list_quotas(database, OTHER) == []
    with pytest.raises(asyncpg.PostgresError, match="no such quota"):
        await remove_quota(database, OTHER, "tool", name)
    (calls,) = await workers(database, 1)
    assert await calls.take(ORG, name, 10) is not None


@pytest.mark.parametrize(
    "given",
    [
        {"scope": "planet", "rate": 1},
        {"scope": "org", "name": "x", "rate": 1},
        {"scope": "tool", "rate": 1},
        {"scope": "org"},
        {"scope": "org", "rate": -1},
        {"scope": "org", "concurrency": 2**31},
        {"scope": "org", "rate": 1, "per_seconds": 0},
        {"scope": "org", "rate": 1, "per_seconds": float("nan")},
    ],
)
def test_what_is_no_quota_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Quota(**given)
