"""Workers that die under a run: what counts against the run, and who may have one that is suspect."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.rows import CrashedRun, NewRun, ReleasedRun, RequeuedRun

from .rows import journal, new_run, signal

if TYPE_CHECKING:
    from conftest import Tenant

LEASE = 3600.0


class Queue:
    """Claims as workers do, and lets leases run out as only the owner of the tables can."""

    def __init__(self, committer: Committer, database: Database, owner: psycopg.Connection[Any], org: str) -> None:
        self.committer, self.database, self.owner, self.org = committer, database, owner, org

    async def add(self) -> NewRun:
        run = new_run(self.org)
        await self.committer.submit(Commit(self.org, new_runs=[run]))
        return run

    async def claim(self, worker: str, wanted: int = 10) -> dict[str, int]:
        """run id → crash_streak."""
        rows = await self.database.rows("claim_runs", worker, LEASE, wanted, "postgres", 1, 1)
        return {row["run_id"]: row["crash_streak"] for row in rows}

    async def room(self, worker: str) -> bool:
        row = await self.database.row("take_exclusive_slot", worker, LEASE, "postgres", 1, 1)
        assert row is not None
        return bool(row["chosen"])

    async def alive(self, worker: str) -> None:
        await self.database.row("worker_seen", worker, "host", 1, "postgres", "0")

    def run_out(self) -> None:
        self.owner.execute("update queue set lease_until = now() - interval '1 second' where worker is not null")

    def fence(self, run: NewRun) -> tuple[str, int]:
        row = self.owner.execute("select fence from queue where run_id = %s", (run.run_id,)).fetchone()
        assert row is not None
        return run.run_id, row[0]

    def set_crash_streak(self, run: NewRun, crash_streak: int, seconds_ago: float = 60) -> None:
        self.owner.execute(
            "update queue set crash_streak = %s, worker = null, available_at = now() - make_interval(secs => %s) where run_id = %s",
            (crash_streak, seconds_ago, run.run_id),
        )

    async def settle(self, run: NewRun, **parts: Any) -> None:
        await self.committer.submit(Commit(self.org, fence=self.fence(run), **parts))


@pytest.fixture
def queue(
    committer: Committer, database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> Queue:
    return Queue(committer, database, owner, tenants[0].org_id)


async def test_deaths_without_progress_are_counted_and_progress_makes_them_forgotten(queue: Queue) -> None:
    run = await queue.add()
    for crash_streak in range(3):
        assert await queue.claim(f"w{crash_streak}") == {run.run_id: crash_streak}
        queue.run_out()
    assert await queue.claim("w3") == {run.run_id: 3}
    await queue.settle(run, journal=[journal(run, 1)])
    queue.run_out()
    assert await queue.claim("w4") == {run.run_id: 0}
    queue.run_out()
    assert await queue.claim("w5") == {run.run_id: 1}, "what it had done before does not excuse it"


@pytest.mark.parametrize("given_back", ["released", "requeued"])
async def test_a_drive_that_ended_well_and_a_person_clear_a_run(given_back: str, queue: Queue) -> None:
    run = await queue.add()
    queue.set_crash_streak(run, 2)
    await queue.claim("w1")
    rows = {"released": [ReleasedRun(run_id=run.run_id, wake_at=0.0)], "requeued": [RequeuedRun(run_id=run.run_id)]}
    await queue.settle(run, **{given_back: rows[given_back]})
    queue.run_out()
    assert await queue.claim("w2") == {run.run_id: 0 if given_back == "released" else 1}


async def test_a_worker_that_still_speaks_has_not_died(queue: Queue) -> None:
    """It let the run go, or could not renew in time; nobody knows of a death."""
    run = await queue.add()
    await queue.claim("w1")
    await queue.alive("w1")
    queue.run_out()
    assert await queue.claim("w2") == {run.run_id: 0}
    await queue.alive("w2")
    queue.owner.execute("update workers set seen_at = now() - make_interval(secs => %s)", (LEASE * 0.6,))
    queue.run_out()
    assert await queue.claim("w3") == {run.run_id: 1}


async def test_a_worker_that_speaks_again_was_only_stopped(queue: Queue) -> None:
    run = await queue.add()
    for number in range(3):
        await queue.claim(f"w{number}")
        queue.run_out()
    await queue.claim("other")
    await queue.alive("w1")
    await queue.alive("w1")  # it says so again and again
    queue.run_out()
    assert await queue.claim("next") == {run.run_id: 3}, "w0, w2 and the other"
    await queue.settle(run, released=[ReleasedRun(run_id=run.run_id, wake_at=0.0)])
    await queue.claim("w4")
    queue.run_out()
    await queue.claim("w5")
    await queue.alive("w0")  # its death is forgotten already
    await queue.settle(run, crashed=[CrashedRun(run_id=run.run_id, parked=False)])
    queue.run_out()
    assert await queue.claim("w6") == {run.run_id: 2}


async def test_leases_of_another_engine_are_not_for_driving(queue: Queue) -> None:
    run = replace(new_run(queue.org), engine="temporal")
    await queue.committer.submit(Commit(queue.org, new_runs=[run]))
    for _ in range(5):
        rows = await queue.database.rows("claim_runs", "w", LEASE, 9, "temporal", 1, 1)
        assert [row["crash_streak"] for row in rows] == [0]
        queue.run_out()


async def test_a_suspect_is_driven_alone_until_it_gets_further(queue: Queue) -> None:
    suspect, other, third = await queue.add(), await queue.add(), await queue.add()
    queue.set_crash_streak(suspect, 3)
    assert await queue.claim("idle", 10) == {suspect.run_id: 3}, "nothing else, whatever was wanted"
    assert await queue.claim("idle", 10) == {}
    assert await queue.claim("second", 10) == {other.run_id: 0, third.run_id: 0}
    await queue.settle(suspect, journal=[journal(suspect, 1)])
    added = await queue.add()
    assert await queue.claim("idle", 10) == {added.run_id: 0}


async def test_a_worker_that_holds_something_gets_no_suspect(queue: Queue) -> None:
    held = await queue.add()
    assert await queue.claim("busy") == {held.run_id: 0}
    suspect = await queue.add()
    queue.set_crash_streak(suspect, 3)
    assert await queue.claim("busy") == {}
    assert await queue.claim("idle") == {suspect.run_id: 3}


async def test_after_dying_alone_it_is_given_to_anybody_to_be_parked(queue: Queue) -> None:
    run, other = await queue.add(), await queue.add()
    queue.set_crash_streak(run, 3)
    assert await queue.claim("alone") == {run.run_id: 3}
    queue.run_out()
    assert await queue.claim("next") == {run.run_id: 4, other.run_id: 0}
    await queue.settle(run, crashed=[CrashedRun(run_id=run.run_id, parked=True)])
    queue.owner.execute("update queue set worker = null, lease_until = null where run_id = %s", (other.run_id,))
    assert await queue.claim("later") == {other.run_id: 0}, "it waits for a person"
    await queue.committer.submit(Commit(queue.org, new_signals=[signal(run)]))
    assert await queue.claim("idle") == {run.run_id: 3}, "told something, it is suspect as ever"


async def test_a_quota_without_room_keeps_a_suspect_waiting(queue: Queue) -> None:
    suspect, other = await queue.add(), await queue.add()
    queue.set_crash_streak(suspect, 3)
    queue.owner.execute(
        "update queue set worker = 'w', lease_until = now() + interval '1 h' where run_id = %s", (other.run_id,)
    )
    queue.owner.execute("insert into quotas (org_id, scope, name, concurrency) values (%s, 'org', '', 1)", (queue.org,))
    assert await queue.claim("idle") == {}
    queue.owner.execute("update quotas set concurrency = 2")
    assert await queue.claim("idle") == {suspect.run_id: 3}


async def test_one_busy_worker_makes_room_and_another_only_when_that_one_is_gone(queue: Queue) -> None:
    suspect = await queue.add()
    assert not await queue.room("first"), "nothing is suspect"
    with queue.owner.transaction():  # so that no time passes in between
        queue.set_crash_streak(suspect, 3, seconds_ago=0)
        chosen = queue.owner.execute("select take_exclusive_slot('first', 60, 'postgres', 1, 1)").fetchone()
    assert chosen == (False,), "an idle worker may still come"
    queue.set_crash_streak(suspect, 3)
    assert await queue.room("first")
    assert not await queue.room("second")
    assert await queue.room("first")
    queue.owner.execute("update queue set room_until = now() - interval '1 second'")
    assert await queue.room("second")
    assert not await queue.room("first")
    assert await queue.claim("idle") == {suspect.run_id: 3}, "whoever is idle first may have it"
    assert not await queue.room("second")


async def test_the_third_loss_starts_the_time_in_which_an_idle_worker_may_come(queue: Queue) -> None:
    run = await queue.add()
    queue.set_crash_streak(run, 2)
    await queue.claim("w1")
    await queue.add()
    await queue.claim("w2")
    queue.owner.execute("update queue set lease_until = now() - interval '1 second' where worker = 'w1'")
    await queue.claim("w2")
    row = queue.owner.execute(
        "select crash_streak, worker, now() - available_at < interval '30 seconds' from queue where run_id = %s",
        (run.run_id,),
    ).fetchone()
    assert row == (3, None, True)


async def test_a_worker_that_lost_a_run_twice_and_speaks_again_is_taken_back_twice(queue: Queue) -> None:
    run = await queue.add()
    for crash_streak in range(2):
        assert await queue.claim("w1") == {run.run_id: crash_streak}
        queue.run_out()
    assert await queue.claim("w2") == {run.run_id: 2}
    await queue.alive("w1")
    queue.run_out()
    await queue.alive("w2")
    assert await queue.claim("w3") == {run.run_id: 0}


@pytest.mark.parametrize(("scope", "name"), [("org", ""), ("workflow", "ask")])
async def test_no_room_is_made_for_a_run_that_a_quota_keeps_back(scope: str, name: str, queue: Queue) -> None:
    """Else a busy worker would hand everything over for nothing, again and again. Its own runs leave their places."""
    mine, theirs, run = [await queue.add() for _ in range(3)]
    queue.set_crash_streak(run, 3)
    quota = "insert into quotas (org_id, scope, name, concurrency) values (%s, %s, %s, 1)"
    for worker, held in (("busy", mine), ("other", theirs)):
        queue.owner.execute(
            "update queue set worker = %s, lease_until = 'infinity' where run_id = %s", (worker, held.run_id)
        )
    queue.owner.execute(quota, (queue.org, scope, name))
    assert not await queue.room("busy"), "the other's run has the only place"
    queue.owner.execute("update queue set worker = null where run_id = %s", (theirs.run_id,))
    assert await queue.room("busy")
