"""The connection breaks and nobody says whether the commit took place. What returned is there once; what raised, at most."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.audit.log import AuditLog
from interlock.base.errors import Unavailable
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.migrate import app_url
from interlock.store.people_rows import DecidedReview
from interlock.store.rows import NewRun

from .conftest import MASTER_KEY
from .rows import deploy, entry, journal, new_run, review, signal
from .test_commit import check_chain, markers
from .wire import Fault, Wire

if TYPE_CHECKING:
    from conftest import Server, Tenant

KINDS = ("audit", "run", "step", "step without audit", "decision", "signal")


class CountingDatabase(Database):
    """Counts how often the committer had to connect: once, and once for every break that it noticed."""

    connects = 0

    async def dedicated(self) -> Any:
        connection = await super().dedicated()
        self.connects += 1
        return connection


@asynccontextmanager
async def opened(url: str, log: AuditLog) -> AsyncIterator[tuple[Committer, CountingDatabase]]:
    database = CountingDatabase(url, pool_size=2)
    await database.open()
    committer = Committer(database, log.seal)
    committer.start()
    try:
        yield committer, database
    finally:
        await committer.close()
        await database.close()


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    async with Wire(database_url) as wire:
        yield wire


def commit_of(kind: str, run: NewRun) -> Commit:
    """A commit of every shape that the platform makes; the text `marker` goes over the wire with it."""
    org = run.org_id
    commit = Commit(org)
    if kind != "step without audit":
        commit.audit = [entry(org, n="marker")]
    match kind:
        case "run":
            commit.new_runs = [new_run(org, "run_marker")]
        case "step" | "step without audit":
            commit.fence = (run.run_id, 1)
            commit.journal = [journal(run, 1, text="marker")]
        case "decision":
            decided = DecidedReview(review_id="v", status="approved", decided_by="ada", note="marker")
            commit.decided_reviews, commit.new_signals = [decided], [signal(run)]
        case "signal":
            commit.new_signals = [signal(run, text="marker")]
    return commit


def found(owner: psycopg.Connection[Any], kind: str) -> dict[str, int]:
    """What there is of the commit, table by table; every number is one if it was written once."""
    queries = {
        "audit": "select count(*) from audit where entry -> 'detail' ->> 'n' = 'marker'",
        "run": "select count(*) from runs join queue using (run_id) where run_id = 'run_marker'",
        "journal": "select count(*) from journal",
        "review": "select count(*) from reviews where status = 'approved'",
        "signal": "select count(*) from signals",
    }
    wanted = {
        "audit": ["audit"],
        "run": ["audit", "run"],
        "step": ["audit", "journal"],
        "step without audit": ["journal"],
        "decision": ["audit", "review", "signal"],
        "signal": ["audit", "signal"],
    }[kind]
    rows = {name: owner.execute(queries[name]).fetchone() for name in wanted}
    return {name: row[0] for name, row in rows.items() if row is not None}


async def prepare(committer: Committer, owner: psycopg.Connection[Any], org: str) -> NewRun:
    """A run that is leased with fence 1 and has an open review; the committer knows the log's head."""
    run = new_run(org)
    await committer.submit(Commit(org, new_runs=[run], new_reviews=[review(run, "v")], audit=[entry(org, n="first")]))
    owner.execute("update queue set fence = 1, worker = 'me', lease_until = now() + interval '1 hour'")
    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["request", "answer"])
async def test_a_break_is_not_noticed_by_who_submits(
    wire: Wire, owner: psycopg.Connection[Any], audit_log: AuditLog, workflow: None, tenants: tuple[Tenant, Tenant],
    kind: str, fault: Fault,
) -> None:  # fmt: skip
    org = tenants[0].org_id
    async with opened(wire.url, audit_log) as (committer, database):
        run = await prepare(committer, owner, org)
        before = found(owner, kind)
        wire.break_at("marker", fault)
        await committer.submit(commit_of(kind, run))
        assert (wire.cuts, database.connects) == (1, 2)
        assert set(before.values()) == {0}
        assert set(found(owner, kind).values()) == {1}
        await committer.submit(Commit(org, audit=[entry(org, n="after")]))
    check_chain(owner, audit_log, org)


@pytest.mark.parametrize("fault", ["request", "answer"])
async def test_another_process_that_appends_meanwhile_confuses_nobody(
    wire: Wire, database_url: str, owner: psycopg.Connection[Any], audit_log: AuditLog, workflow: None,
    tenants: tuple[Tenant, Tenant], fault: Fault,
) -> None:  # fmt: skip
    org = tenants[0].org_id
    async with opened(wire.url, audit_log) as (committer, _), opened(database_url, audit_log) as (other, _):
        run = await prepare(committer, owner, org)
        wire.on_cut = lambda: other.submit(Commit(org, audit=[entry(org, n="between")]))
        wire.break_at("marker", fault)
        await committer.submit(commit_of("decision", run))
    assert wire.cuts == 1
    assert set(found(owner, "decision").values()) == {1}
    assert markers(owner) == Counter(["first", "between", "marker"])
    check_chain(owner, audit_log, org)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_statement_that_arrives_after_its_repetition_is_refused(
    wire: Wire, owner: psycopg.Connection[Any], audit_log: AuditLog, workflow: None, tenants: tuple[Tenant, Tenant],
    kind: str,
) -> None:  # fmt: skip
    org = tenants[0].org_id
    async with opened(wire.url, audit_log) as (committer, _):
        run = await prepare(committer, owner, org)
        wire.break_at("marker", "late")
        await committer.submit(commit_of(kind, run))
        assert wire.cuts == 1
        await wire.release()
        assert set(found(owner, kind).values()) == {1}
    check_chain(owner, audit_log, org)


async def test_a_repetition_waits_for_the_first_attempt_that_still_runs(
    wire: Wire, owner: psycopg.Connection[Any], owner_url: str, audit_log: AuditLog, workflow: None,
    tenants: tuple[Tenant, Tenant],
) -> None:  # fmt: skip
    """The server holds the statement up at the log's head; it is let go only when the repetition waits behind it."""
    org = tenants[0].org_id
    async with opened(wire.url, audit_log) as (committer, _):
        run = await prepare(committer, owner, org)
        with psycopg.connect(owner_url) as holder:
            holder.execute("select from audit_heads for update")
            wire.break_at("marker", "late")
            wire.on_cut = lambda: release_later(wire)
            submitted = asyncio.create_task(committer.submit(commit_of("decision", run)))
            await until_waiting(owner, 2)
            holder.rollback()
        await submitted
    assert wire.cuts == 1
    assert set(found(owner, "decision").values()) == {1}
    assert check_chain(owner, audit_log, org).verified == 2


async def release_later(wire: Wire) -> None:
    """The held statement arrives at once, while its client has already given up."""
    task = asyncio.create_task(wire.release())
    wire._tasks.add(task)
    await asyncio.sleep(0)


async def until_waiting(owner: psycopg.Connection[Any], wanted: int) -> None:
    query = (
        "select count(*) from pg_stat_activity where datname = current_database() "
        "and usename = 'interlock_app' and wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(180):
        while owner.execute(query).fetchone() != (wanted,):
            await asyncio.sleep(0.01)


async def submit_much(
    committer: Committer, org: str, done: asyncio.Event, returned: Counter[str], raised: Counter[str]
) -> None:
    """Eight submitters, until told to stop; counts the markers that returned, and those that raised."""

    async def one(name: int) -> None:
        n = 0
        while not done.is_set():
            marker = f"{name}/{n}"
            run = new_run(org)
            try:
                await committer.submit(Commit(org, new_runs=[run], audit=[entry(org, run.run_id, n=marker)]))
            except Unavailable:
                raised[marker] += 1
            else:
                returned[marker] += 1
            n += 1
            await asyncio.sleep(0.002)

    await asyncio.gather(*map(one, range(8)))


def check(
    owner: psycopg.Connection[Any], log: AuditLog, org: str, returned: Counter[str], raised: Counter[str]
) -> None:
    there = markers(owner)
    assert {marker: there[marker] for marker in returned} == dict.fromkeys(returned, 1)
    assert all(there[marker] <= 1 for marker in raised)
    assert set(there) <= set(returned) | set(raised)
    # The runs' rows and the log's entries are of one transaction: neither is there without the other.
    halves = owner.execute(
        "select count(*) from (select run_id from runs) r full join (select entry ->> 'run_id' as run_id from audit) a "
        "using (run_id) where r.run_id is null or a.run_id is null"
    ).fetchone()
    assert halves == (0,)
    check_chain(owner, log, org)


async def test_a_storm_of_broken_connections(
    database_url: str, owner: psycopg.Connection[Any], audit_log: AuditLog, workflow: None,
    tenants: tuple[Tenant, Tenant],
) -> None:  # fmt: skip
    org, done, chance = tenants[0].org_id, asyncio.Event(), random.Random(7)
    returned, raised = Counter[str](), Counter[str]()
    async with opened(database_url, audit_log) as (committer, database):
        submitting = asyncio.create_task(submit_much(committer, org, done, returned, raised))
        strokes = 0
        while database.connects < 12 or len(returned) <= 50:
            await asyncio.sleep(chance.uniform(0.01, 0.1))
            killed = owner.execute(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity "
                "where usename = 'interlock_app' and datname = current_database()"
            ).fetchone()
            assert killed is not None
            strokes += killed[0]
            assert strokes < 5000, "they are killed, and nobody connects again"
        done.set()
        await submitting
    check(owner, audit_log, org, returned, raised)


async def test_a_server_that_crashes_again_and_again(private_server: Server, audit_log: AuditLog) -> None:
    org, done = "acme", asyncio.Event()
    returned, raised = Counter[str](), Counter[str]()
    url = private_server.url
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("insert into orgs values ('acme', 'Acme')")
        owner.execute("insert into audit_heads values ('acme')")
        deploy(owner, org)
    async with opened(app_url(url, MASTER_KEY), audit_log) as (committer, database):
        submitting = asyncio.create_task(submit_much(committer, org, done, returned, raised))
        for crash in range(1, 4):
            while database.connects < crash:  # it writes again
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(private_server.restart, "immediate")
        while database.connects < 4 or len(returned) <= 50:
            await asyncio.sleep(0.02)
        done.set()
        await submitting
    with psycopg.connect(url, autocommit=True) as owner:
        check(owner, audit_log, org, returned, raised)
