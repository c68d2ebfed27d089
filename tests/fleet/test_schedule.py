"""The scheduler: each job in one process at a time, again after its interval, after a crash too."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg
import structlog

from interlock.base.errors import Unavailable
from interlock.fleet.schedule import Schedule, ScheduledJob
from interlock.store.database import Database
from interlock.telemetry import logs


class Work:
    """Counts how often it was done, and how often at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.done = self.now = self.most = 0
        self.error = error
        self.hold: asyncio.Event | None = None

    async def __call__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await (asyncio.sleep(0.002) if self.hold is None else self.hold.wait())
            self.done += 1
            if self.error is not None:
                raise self.error
        finally:
            self.now -= 1


def make_due(owner: psycopg.Connection[Any], name: str = "clean") -> None:
    owner.execute("update schedule set due_at = now() - interval '1 second' where name = %s", (name,))


def due_in(owner: psycopg.Connection[Any], name: str = "clean") -> float:
    row = owner.execute("select extract(epoch from due_at - now()) from schedule where name = %s", (name,)).fetchone()
    assert row is not None
    return float(row[0])


async def test_a_job_is_due_after_its_interval_and_not_before(
    database: Database, owner: psycopg.Connection[Any]
) -> None:
    work = Work()
    one = Schedule(database, [ScheduledJob("clean", work, every=1000)])
    await one.run_due()
    await one.run_due()
    assert work.done == 0
    assert 900 < due_in(owner) <= 1000
    make_due(owner)
    await one.run_due()
    await one.run_due()
    assert work.done == 1
    assert 900 < due_in(owner) <= 1000


async def test_of_many_processes_one_does_it(database: Database, owner: psycopg.Connection[Any]) -> None:
    work = Work()
    many = [Schedule(database, [ScheduledJob("clean", work, every=1000)]) for _ in range(6)]
    await asyncio.gather(*(one.run_due() for one in many))
    for done in range(1, 6):
        make_due(owner)
        await asyncio.gather(*(one.run_due() for one in many))
        assert work.done == done
    assert work.most == 1


async def test_a_job_that_takes_long_delays_no_other_process_s_jobs(
    database: Database, owner: psycopg.Connection[Any]
) -> None:
    slow, quick = Work(), Work()
    slow.hold = asyncio.Event()
    jobs = [ScheduledJob("clean", slow, every=1000), ScheduledJob("count", quick, every=1000)]
    one, other = Schedule(database, jobs), Schedule(database, jobs)
    await one.run_due()
    make_due(owner)
    make_due(owner, "count")
    busy = asyncio.create_task(one.run_due())
    async with asyncio.timeout(60):
        while not slow.now:
            await asyncio.sleep(0.001)
    await other.run_due()
    assert (slow.most, quick.done) == (1, 1)
    slow.hold.set()
    await busy
    assert (slow.done, quick.done) == (1, 1)


async def test_a_failure_is_logged_once_and_the_job_is_due_again_sooner(
    database: Database, owner: psycopg.Connection[Any], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    failing, other = Work(Unavailable("the store is away")), Work()
    one = Schedule(database, [ScheduledJob("clean", failing, every=1000), ScheduledJob("count", other, every=1000)])
    await one.run_due()
    logs.configure(level="info", file=path)
    try:
        for _ in range(3):
            make_due(owner)
            await one.run_due()
            assert 0 < due_in(owner) <= 60
        make_due(owner, "count")
        failing.error = ValueError("a bug")
        make_due(owner)
        await one.run_due()
    finally:
        structlog.reset_defaults()
    said = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(said) == 2
    assert 'the job "clean" failed: the store is away' in json.dumps(said[0]).replace('\\"', '"')
    assert "ValueError: a bug" in json.dumps(said[1])
    assert other.done == 1
    failing.error = None
    make_due(owner)
    await one.run_due()
    assert due_in(owner) > 900


async def test_a_job_of_a_dead_process_is_taken_over_when_its_lease_ends(
    database: Database, owner: psycopg.Connection[Any]
) -> None:
    work = Work()
    one = Schedule(database, [ScheduledJob("clean", work, every=1000)])
    await one.run_due()
    owner.execute("update schedule set due_at = '-infinity', holder = 'dead', held_until = now() + interval '1 hour'")
    await one.run_due()
    assert work.done == 0
    owner.execute("update schedule set held_until = now() - interval '1 second'")
    await one.run_due()
    assert work.done == 1
    # What the other one says when it wakes up does not count any more.
    await database.row("job_done", "clean", "dead", 5.0)
    assert due_in(owner) > 900


async def test_a_job_is_cancelled_before_its_lease_ends(database: Database, owner: psycopg.Connection[Any]) -> None:
    work = Work()
    work.hold = asyncio.Event()
    one = Schedule(database, [ScheduledJob("clean", work, every=1000, lease=0.2)])
    await one.run_due()
    make_due(owner)
    await one.run_due()
    assert (work.done, work.now) == (0, 0)
    assert due_in(owner) <= 60


async def test_closing_leaves_the_job_to_others_at_once(database: Database, owner: psycopg.Connection[Any]) -> None:
    work, after = Work(), Work()
    work.hold = asyncio.Event()
    await Schedule(database, [ScheduledJob("clean", work, every=1000)]).run_due()
    one = Schedule(database, [ScheduledJob("clean", work, every=1000)], look_seconds=0.01)
    one.start()
    make_due(owner)
    async with asyncio.timeout(60):
        while not work.now:
            await asyncio.sleep(0.001)
    await one.close()
    await one.close()
    assert (work.done, work.now) == (0, 0)
    await Schedule(database, [ScheduledJob("clean", after, every=1000)]).run_due()
    assert after.done == 1
