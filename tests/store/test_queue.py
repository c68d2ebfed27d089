"""The queue: a run has one driver at a time, a silent driver loses it, and no signal is slept through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from interlock.base.errors import LeaseLost
from interlock.store.commit import SETTLE, Commit, Committer, batch_of, encode
from interlock.store.database import Database
from interlock.store.rows import FinishedRun, NewRun, ReleasedRun, UsedSignal

from .rows import journal, new_run, run_update, signal
from .test_doubt import until_waiting

if TYPE_CHECKING:
    from conftest import Tenant

LEASE = 3600.0


async def runs_of(committer: Committer, tenants: tuple[Tenant, Tenant], count: int) -> list[NewRun]:
    runs = [new_run(tenants[n % 2].org_id) for n in range(count)]
    await asyncio.gather(*(committer.submit(Commit(run.org_id, new_runs=[run])) for run in runs))
    return runs


async def claim(database: Database, worker: str, wanted: int = 10, lease: float = LEASE) -> dict[str, int]:
    """run id → fence."""
    rows = await database.rows("claim_runs", worker, lease, wanted, "postgres", 1, 1)
    assert len(rows) == len({row["run_id"] for row in rows}) <= wanted
    return {row["run_id"]: row["fence"] for row in rows}


async def test_many_claimants_never_share_a_run(
    committer: Committer, database: Database, tenants: tuple[Tenant, Tenant]
) -> None:
    runs = await runs_of(committer, tenants, 200)
    taken: dict[str, list[str]] = {}

    async def claimant(name: str) -> None:
        while claimed := await claim(database, name, 7):
            for run_id, fence in claimed.items():
                assert fence == 1
                taken.setdefault(run_id, []).append(name)

    await asyncio.gather(*(claimant(f"w{n}") for n in range(16)))
    assert set(taken) == {run.run_id for run in runs}
    assert all(len(by) == 1 for by in taken.values())
    assert len({by[0] for by in taken.values()}) > 4, "one of them took nearly all, so they hardly competed"


async def test_a_lease_that_ran_out_is_taken_over_and_the_old_driver_refused(
    committer: Committer, database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    (run,) = await runs_of(committer, tenants, 1)
    run_id, org = run.run_id, run.org_id
    assert await claim(database, "first") == {run_id: 1}
    assert await claim(database, "second") == {}
    owner.execute("update queue set lease_until = now() - interval '1 second'")
    assert await claim(database, "second") == {run_id: 2}
    with pytest.raises(LeaseLost):
        await committer.submit(Commit(org, fence=(run_id, 1), journal=[journal(run, 1)]))
    await committer.submit(Commit(org, fence=(run_id, 2), journal=[journal(run, 1)]))


async def test_renewing_keeps_the_leases_of_runs_that_a_worker_still_drives(
    committer: Committer, database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    await runs_of(committer, tenants, 4)
    mine, theirs = await claim(database, "me", 3, lease=1.0), await claim(database, "they", 1, lease=1.0)
    assert (len(mine), len(theirs)) == (3, 1)
    owner.execute("update queue set lease_until = now() - interval '1 second'")
    let_go, *driven = mine
    assert await database.rows("renew_leases", "me", LEASE, [*driven, *theirs]) == []
    assert await claim(database, "third") == dict.fromkeys([let_go, *theirs], 2)


async def test_renewing_tells_which_runs_were_told_something(
    committer: Committer, database: Database, tenants: tuple[Tenant, Tenant]
) -> None:
    """Whoever missed the notification hears of it with the next renewal."""
    runs = await runs_of(committer, tenants, 4)
    mine = await claim(database, "me", 3)
    await claim(database, "they", 1)
    for run in runs:
        await committer.submit(Commit(run.org_id, new_signals=[signal(run), signal(run, kind="second")]))
    told = await database.rows("renew_leases", "me", LEASE, [run.run_id for run in runs])
    assert sorted(row["signalled"] for row in told) == sorted(mine)


async def test_a_dead_run_that_was_told_something_meanwhile_stays_for_the_next(
    committer: Committer, database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    """The signal came while the run was ending: it may bring the run back, and nobody would send it again."""
    told, quiet, over = await runs_of(committer, tenants, 3)
    fences = await claim(database, "me")
    for run in (told, over):
        await committer.submit(Commit(run.org_id, new_signals=[signal(run)]))
    endings = {told.run_id: "dead", quiet.run_id: "dead", over.run_id: "failed"}
    for run in (told, quiet, over):
        commit = Commit(run.org_id, fence=(run.run_id, fences[run.run_id]))
        commit.runs = [run_update(run.run_id, "compensating")]
        await committer.submit(commit)
        commit.runs = [run_update(run.run_id, endings[run.run_id], finished=True)]
        commit.finished = [FinishedRun(run_id=run.run_id)]
        await committer.submit(commit)
    assert await claim(database, "they") == {told.run_id: 2}
    assert owner.execute("select run_id from queue").fetchall() == [(told.run_id,)]
    assert owner.execute("select run_id from signals").fetchall() == [(told.run_id,)], "told too late, it goes"


async def test_a_failed_hand_on_waits_although_a_signal_is_there(
    committer: Committer, database: Database, tenants: tuple[Tenant, Tenant]
) -> None:
    (run,) = await runs_of(committer, tenants, 1)
    fences = await claim(database, "me")
    await committer.submit(Commit(run.org_id, new_signals=[signal(run)]))
    commit = Commit(run.org_id, fence=(run.run_id, fences[run.run_id]))
    commit.released = [ReleasedRun(run_id=run.run_id, wake_at=4e9, failed=True)]
    await committer.submit(commit)
    assert await claim(database, "me") == {}


@pytest.mark.parametrize(("status", "place"), [("running", True), ("compensating", True), ("waiting", False)])
async def test_a_run_at_work_under_its_own_engine_keeps_its_place(
    status: str,
    place: bool,
    committer: Committer,
    database: Database,
    owner: psycopg.Connection[Any],
    tenants: tuple[Tenant, Tenant],
) -> None:
    """Whether it was told something and works, or the bridge that had something to tell it died."""
    run = replace(new_run(tenants[0].org_id), engine="temporal")
    await committer.submit(Commit(run.org_id, new_runs=[run]))
    rows = await database.rows("claim_kept", "bridge", LEASE, 10, "temporal", 1, 1)
    assert [row["works"] for row in rows] == [False]
    statuses = ["running"] if status == "running" else ["running", status]
    for one in statuses:
        await committer.submit(Commit(run.org_id, runs=[run_update(run.run_id, one)]))
    commit = Commit(run.org_id, fence=(run.run_id, rows[0]["fence"]))
    commit.released = [ReleasedRun(run_id=run.run_id, wake_at=None, kept=True)]
    await committer.submit(commit)
    forever = "select worker, lease_until = 'infinity' from queue"
    assert owner.execute(forever).fetchall() == [("temporal", place)]

    await committer.submit(Commit(run.org_id, new_signals=[signal(run)]))
    rows = await database.rows("claim_kept", "bridge", LEASE, 10, "temporal", 1, 1)
    assert [row["works"] for row in rows] == [True]
    owner.execute("update queue set lease_until = now() - interval '1 second'")
    rows = await database.rows("claim_kept", "another", LEASE, 10, "temporal", 1, 1)
    taken = owner.execute(forever).fetchall()
    assert taken == [("temporal", True)] if place else taken == [("another", False)]
    if place:
        rows = await database.rows("claim_kept", "another", LEASE, 10, "temporal", 1, 1)
        assert [row["works"] for row in rows] == [True]


async def test_releasing_makes_a_workers_own_runs_available_at_once(
    committer: Committer, database: Database, tenants: tuple[Tenant, Tenant]
) -> None:
    await runs_of(committer, tenants, 4)
    mine, theirs = await claim(database, "me", 3), await claim(database, "they", 1)
    await database.execute("release_leases", "me")
    assert await claim(database, "third") == dict.fromkeys(mine, 2)
    assert theirs.keys().isdisjoint(mine)


async def test_a_sleeping_run_is_left_alone_until_its_time(
    committer: Committer, database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    timed, waiting = await runs_of(committer, tenants, 2)
    fences = await claim(database, "me")
    for run, wake_at in ((timed, 4e9), (waiting, None)):  # the year 2096; a signal only
        commit = Commit(run.org_id, fence=(run.run_id, fences[run.run_id]))
        commit.released = [ReleasedRun(run_id=run.run_id, wake_at=wake_at)]
        await committer.submit(commit)
    assert await claim(database, "me") == {}
    assert (await database.row("queue_depth"))[0] == 0
    owner.execute("update queue set available_at = now() where available_at < 'infinity'")
    assert await claim(database, "me") == {timed.run_id: 2}
    await committer.submit(Commit(waiting.org_id, new_signals=[signal(waiting)]))
    assert await claim(database, "me") == {waiting.run_id: 2}


async def test_a_finished_run_leaves_the_queue(
    committer: Committer, database: Database, tenants: tuple[Tenant, Tenant]
) -> None:
    (run,) = await runs_of(committer, tenants, 1)
    (fence,) = (await claim(database, "me")).values()
    await committer.submit(Commit(run.org_id, fence=(run.run_id, fence), finished=[FinishedRun(run_id=run.run_id)]))
    await committer.submit(Commit(run.org_id, new_signals=[signal(run)]))  # too late, and harmless
    assert await claim(database, "me") == {}
    with pytest.raises(LeaseLost):
        await committer.submit(Commit(run.org_id, fence=(run.run_id, fence), journal=[journal(run, 1)]))


@pytest.fixture
async def connections(database_url: str) -> AsyncIterator[tuple[Any, Any]]:
    """Two processes' connections, whose transactions a test interleaves by hand."""
    opened = [await asyncpg.connect(database_url) for _ in range(2)]
    yield opened[0], opened[1]
    for connection in opened:
        connection.terminate()


@pytest.mark.parametrize("first", ["signal", "release", "neither waits"])
async def test_a_signal_that_meets_a_release_keeps_the_run_awake(
    committer: Committer, database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant],
    connections: tuple[Any, Any], first: str,
) -> None:  # fmt: skip
    (run,) = await runs_of(committer, tenants, 1)
    org, run_id = run.org_id, run.run_id
    await claim(database, "me")
    commits = {
        "signal": Commit(org, new_signals=[signal(run)]),
        "release": Commit(org, fence=(run_id, 1), released=[ReleasedRun(run_id=run_id, wake_at=None)]),
    }
    batches = {name: encode(org, batch_of([commit])) for name, commit in commits.items()}
    if first == "neither waits":
        for batch in batches.values():
            await connections[0].execute(SETTLE, batch)
    else:
        (second,) = batches.keys() - {first}
        open_transaction = connections[0].transaction()
        await open_transaction.start()
        await connections[0].execute(SETTLE, batches[first])
        other = asyncio.create_task(connections[1].execute(SETTLE, batches[second]))
        await until_waiting(owner, 1)  # the second cannot see what the first has written, and waits for it
        await open_transaction.commit()
        await other
    assert owner.execute("select count(*) from signals").fetchone() == (1,)
    assert await claim(database, "next") == {run_id: 2}


async def test_without_a_signal_the_released_run_sleeps(
    committer: Committer, database: Database, tenants: tuple[Tenant, Tenant]
) -> None:
    (run,) = await runs_of(committer, tenants, 1)
    await claim(database, "me")
    await committer.submit(Commit(run.org_id, new_signals=[signal(run)]))
    signals = await database.rows("get_signals", run.run_id, org=run.org_id)
    commit = Commit(run.org_id, fence=(run.run_id, 1), released=[ReleasedRun(run_id=run.run_id, wake_at=None)])
    commit.used_signals = [UsedSignal(signal_id=row["signal_id"]) for row in signals]
    await committer.submit(commit)  # the same race's other half: what was dealt with does not wake anybody
    assert await claim(database, "next") == {}


@pytest.mark.parametrize(("engine", "query"), [("postgres", "claim_runs"), ("temporal", "claim_kept")])
async def test_a_run_is_claimed_only_by_workers_that_know_its_machine_version(
    engine: Any,
    query: str,
    committer: Committer,
    database: Database,
    owner: psycopg.Connection[Any],
    tenants: tuple[Tenant, Tenant],
) -> None:
    """Also one that has to be driven alone, and one that its engine keeps and that was sent a signal."""
    runs = [replace(new_run(tenants[0].org_id), engine=engine, machine=machine) for machine in (1, 2, 3)]
    await committer.submit(Commit(tenants[0].org_id, new_runs=runs))

    async def claimed(oldest: int, newest: int) -> set[str]:
        rows = await database.rows(query, f"{oldest} to {newest}", LEASE, 10, engine, oldest, newest)
        return {row["run_id"] for row in rows}

    first, second, third = (run.run_id for run in runs)
    assert await claimed(1, 1) == {first}
    assert await claimed(1, 1) == set()
    assert await claimed(4, 9) == set()
    owner.execute("update queue set crash_streak = 3, available_at = now() - interval '1 minute' where machine = 2")
    assert not (await database.rows("take_exclusive_slot", "busy", LEASE, engine, 1, 1))[0]["chosen"]
    assert await claimed(3, 3) == {third}
    assert (await database.rows("take_exclusive_slot", "busy", LEASE, engine, 1, 2))[0]["chosen"]
    assert await claimed(2, 2) == {second}
    if engine == "temporal":
        owner.execute("update queue set worker = engine, lease_until = 'infinity', available_at = now()")
        assert await claimed(1, 2) == {first, second}
