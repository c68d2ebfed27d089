"""Group commit: many say something at once, one transaction writes it, and only the guilty are refused."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from interlock.admission.quotas import Quota
from interlock.audit.log import AuditLog
from interlock.audit.verify import Verification, verify
from interlock.base.errors import Conflict, InvalidInput, LeaseLost, NotFound, Unavailable
from interlock.store.admin_rows import (
    DrainedWorker,
    MovedHead,
    NewKey,
    NewVersion,
    RemovedQuota,
    RequeuedDelivery,
    RevokedKey,
)
from interlock.store.commit import PARTS, Commit, Committer, batch_of
from interlock.store.database import Database
from interlock.store.people_rows import (
    ClosedDeadLetter,
    ClosedReview,
    DecidedDeadLetter,
    DecidedReview,
    RevokedApproval,
)
from interlock.store.rows import (
    AbandonedCall,
    ActivatedPolicy,
    CrashedRun,
    DoneClaim,
    FinishedRun,
    ForwardedSignal,
    KeptResult,
    NewPolicySet,
    NewRun,
    NewVault,
    PlaceRow,
    ReleasedRun,
    RequeuedRun,
    RevivedRun,
    SettledReservation,
    SignalId,
    UsedReservation,
    UsedSignal,
)

from .conftest import AUDIT_KEY
from .rows import (
    REF,
    act_review,
    approval,
    artifact,
    claim,
    consumption,
    contents,
    dead_letter,
    effect,
    entry,
    journal,
    new_run,
    outbox,
    review,
    run_update,
    signal,
)

if TYPE_CHECKING:
    from conftest import Tenant

SPAWN = multiprocessing.get_context("spawn")


def check_chain(owner: psycopg.Connection[Any], log: AuditLog, org_id: str) -> Verification:
    names = ("org_id", "seq", "event_id", "entry", "prev_hash", "hash", "key_id", "signature", "proof")
    rows = owner.execute(f"select {', '.join(names)} from audit where org_id = %s order by seq", (org_id,)).fetchall()
    verdict = verify([dict(zip(names, row, strict=True)) for row in rows], {log.key_id: log.public_key}, org_id=org_id)
    head = owner.execute("select seq, hash from audit_heads where org_id = %s", (org_id,)).fetchone()
    assert verdict.ok, verdict.problem
    assert head == (verdict.last_seq, verdict.last_hash)
    return verdict


def markers(owner: psycopg.Connection[Any]) -> Counter[str]:
    """How often each `n` of the entries' details is in the log."""
    rows = owner.execute("select entry -> 'detail' ->> 'n' from audit order by org_id, seq").fetchall()
    return Counter(row[0] for row in rows)


async def test_what_gathers_meanwhile_shares_a_transaction(
    committer: Committer, owner: psycopg.Connection[Any], audit_log: AuditLog, tenants: tuple[Tenant, Tenant]
) -> None:
    orgs = [tenant.org_id for tenant in tenants]
    commits = [
        Commit(orgs[n % 2], new_runs=[new_run(orgs[n % 2])], audit=[entry(orgs[n % 2], n=n)]) for n in range(200)
    ]
    await asyncio.gather(*(committer.submit(commit) for commit in commits))
    transactions = owner.execute("select count(distinct xmin::text), count(*) from runs").fetchone()
    assert transactions is not None
    assert transactions[1] == 200
    assert transactions[0] <= 4
    assert markers(owner) == Counter(str(n) for n in range(200))
    for org in orgs:
        assert check_chain(owner, audit_log, org).verified == 100


async def test_a_batch_has_an_upper_bound(
    database: Database,
    owner: psycopg.Connection[Any],
    audit_log: AuditLog,
    workflow: None,
    tenants: tuple[Tenant, Tenant],
) -> None:
    org = tenants[0].org_id
    committer = Committer(database, audit_log.seal, batch=10)
    committer.start()
    await asyncio.gather(*(committer.submit(Commit(org, audit=[entry(org, n=n)])) for n in range(95)))
    await committer.close()
    sizes = [row[0] for row in owner.execute("select count(*) from audit group by xmin::text").fetchall()]
    assert len(sizes) >= 10
    assert max(sizes) <= 10
    assert check_chain(owner, audit_log, org).verified == 95


async def test_only_the_guilty_fail(
    committer: Committer, owner: psycopg.Connection[Any], audit_log: AuditLog, tenants: tuple[Tenant, Tenant]
) -> None:
    org = tenants[0].org_id
    run = new_run(org)
    await committer.submit(Commit(org, new_runs=[run], journal=[journal(run, 1)], new_reviews=[review(run, "decided")]))
    decided = DecidedReview(review_id="decided", status="approved", decided_by="ada", note="")
    await committer.submit(Commit(org, decided_reviews=[decided]))

    guilty: list[tuple[Commit, type[Exception]]] = [
        (Commit(org, journal=[journal(run, 1)]), asyncpg.UniqueViolationError),
        (Commit(org, journal=[journal(new_run(org), 1)]), asyncpg.ForeignKeyViolationError),
        (Commit(org, runs=[run_update(run.run_id)], fence=(run.run_id, 7)), LeaseLost),
        (Commit(org, decided_reviews=[decided]), Conflict),
        (Commit(org, outbox=[outbox(org, text="nul \0")]), InvalidInput),
        (Commit(org, outbox=[outbox(org, text="half \ud800")]), InvalidInput),
        (Commit(org, outbox=[outbox(org, what=object())]), TypeError),
        (Commit("nobody"), NotFound),
        (
            Commit(tenants[1].org_id, journal=[replace(journal(run, 2), org_id="initech")]),
            asyncpg.InsufficientPrivilegeError,
        ),
    ]
    for number, (commit, _) in enumerate(guilty):
        commit.audit.append(entry(commit.org_id, n=f"guilty {number}"))
    good = [Commit(org, new_runs=[new_run(org)], audit=[entry(org, n=n)]) for n in range(len(guilty) * 2)]
    mixed = [commit for n, (bad, _) in enumerate(guilty) for commit in (good[2 * n], bad, good[2 * n + 1])]
    results = await asyncio.gather(*(committer.submit(commit) for commit in mixed), return_exceptions=True)

    assert [type(result) for result in results[1::3]] == [kind for _, kind in guilty]
    assert results[0::3] + results[2::3] == [None] * len(good)
    assert markers(owner) == Counter(str(n) for n in range(len(good)))
    assert owner.execute("select count(*) from runs").fetchone() == (1 + len(good),)
    check_chain(owner, audit_log, org)


async def test_a_lost_lease_writes_nothing_anywhere(
    committer: Committer, database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    org = tenants[0].org_id
    run, other = new_run(org), new_run(org)
    setup = Commit(org, new_runs=[run, other], new_reviews=[review(run, "old", "a"), review(run, "gone", "b")])
    setup.new_dead_letters = [dead_letter(run, "old", "a"), dead_letter(run, "gone", "b")]
    acts = ["approved", "to revoke", "to approve"]
    setup.new_reviews += [act_review(run, one) for one in acts]
    await committer.submit(setup)
    given = [DecidedReview(review_id=one, status="approved", decided_by="ada", note="") for one in acts[:2]]
    granted = [approval(run, one) for one in acts[:2]]
    await committer.submit(Commit(org, decided_reviews=given, new_approvals=granted, new_signals=[signal(run)]))
    first_key = NewKey(key_id="k1", org_id=org, secret_hash="00", user_id="eve", roles=["viewer"])
    await committer.submit(Commit(org, new_keys=[first_key], new_quotas=[Quota("org", rate=1000).row(org)]))
    owner.execute("insert into event_sinks (sink) values ('s')")
    owner.execute(
        "insert into deliveries (sink, event_id, org_id, lane, topic, payload, created_at, status) "
        "values ('s', 1, %s, '', 't', '{}', now(), 'refused')",
        (org,),
    )
    claimed = {
        row["run_id"]: row["fence"] for row in await database.rows("claim_runs", "me", 60.0, 10, "postgres", 1, 1)
    }
    fence = claimed[run.run_id]
    signal_id = owner.execute("select signal_id from signals").fetchone()
    assert signal_id is not None

    def everything(fence: int) -> Commit:
        return Commit(
            org,
            fence=(run.run_id, fence),
            artifacts=[artifact(org, "x")],
            new_runs=[new_run(org, "run_new")],
            new_vaults=[NewVault(org_id=org, run_id=run.run_id, vault=REF)],
            revived=[RevivedRun(run_id=run.run_id)],
            new_claims=[claim(run, 1)],
            journal=[journal(run, 1)],
            recorded=[journal(run, 2)],
            runs=[run_update(run.run_id)],
            consumed_approvals=[consumption(run, "approved")],
            effects=[effect(run, "intended")],
            done_claims=[DoneClaim(run_id=run.run_id, command="perform:pay:1", event={})],
            used_reservations=[
                UsedReservation(scope=f"run:{run.run_id}", holder="perform:pay:1", fence=1, tokens=1, nano_usd=1)
            ],
            settled_reservations=[SettledReservation(scope=f"run:{run.run_id}", holder="perform:pay:1", fence=1)],
            new_reviews=[review(run, "new", "c")],
            closed_reviews=[ClosedReview(run_id=run.run_id, step="a")],
            decided_reviews=[
                DecidedReview(review_id="gone", status="rejected", decided_by="ada", note=""),
                DecidedReview(review_id="to approve", status="approved", decided_by="ada", note=""),
            ],
            new_approvals=[approval(run, "to approve")],
            revoked_approvals=[RevokedApproval(review_id="to revoke", revoked_by="ada")],
            results=[KeptResult(org_id=org, key="k", output=REF)],
            new_dead_letters=[dead_letter(run, "new", "c")],
            closed_dead_letters=[ClosedDeadLetter(run_id=run.run_id, step="a")],
            decided_dead_letters=[
                DecidedDeadLetter(dead_letter_id="gone", status="discarded", decided_by="ada", note="", new_run=None)
            ],
            new_policies=[NewPolicySet(org_id=org, version="p2", text="", created_by="ada")],
            activated_policies=[ActivatedPolicy(org_id=org, version="p2", activated_by="ada")],
            new_keys=[NewKey(key_id="k2", org_id=org, secret_hash="00", user_id="eve", roles=["viewer"])],
            revoked_keys=[RevokedKey(org_id=org, key_id="k1")],
            new_quotas=[Quota("tool", "pay", rate=1).row(org)],
            removed_quotas=[RemovedQuota(org_id=org, scope="org", name="")],
            new_versions=[NewVersion(org_id=org, name="ask", version="v2", definition={"tools": {}}, created_by="ada")],
            moved_heads=[MovedHead(org_id=org, name="ask", version="v2")],
            drained_workers=[DrainedWorker(worker_id="me")],
            requeued_deliveries=[RequeuedDelivery(sink="s", event_id=1)],
            signal_ids=[SignalId(run_id=run.run_id, signal_id="sig", org_id=org, name="go")],
            new_signals=[signal(run, kind="second")],
            crashed=[CrashedRun(run_id=run.run_id, parked=True)],
            requeued=[RequeuedRun(run_id=run.run_id)],
            used_signals=[UsedSignal(signal_id=signal_id[0])],
            forwarded_signals=[ForwardedSignal(signal_id=signal_id[0])],
            outbox=[outbox(org)],
            abandoned_calls=[AbandonedCall(run_id=run.run_id, step="a")],
            finished=[FinishedRun(run_id=run.run_id)],
            places=[PlaceRow(run_id=other.run_id, held=True)],
            released=[ReleasedRun(run_id=other.run_id, wake_at=None)],
            audit=[entry(org)],
        )

    # A part without a row proves nothing below.
    assert batch_of([everything(fence)]).keys() == PARTS.keys() - {
        "audit",
        "heads",
        "claims",
        "new_orgs",
    }
    before = contents(owner)
    for stale in (fence - 1, fence + 1):
        with pytest.raises(LeaseLost):
            await committer.submit(everything(stale))
        assert contents(owner) == before
    with pytest.raises(LeaseLost):
        await committer.submit(Commit(org, fence=("run_unknown", 1), audit=[entry(org)]))
    assert contents(owner) == before

    await committer.submit(everything(fence))  # and with the right fence all of it is written
    after = contents(owner)
    changed = {table for table in after if after[table] != before[table]}
    assert changed == {
        "artifacts", "runs", "queue", "journal", "effects", "reviews", "signals", "outbox", "audit", "audit_heads",
        "run_vaults", "results", "dead_letters", "approvals", "signal_ids", "policy_sets", "active_policies",
        "api_keys", "quotas", "workflow_versions", "workflow_heads", "deliveries",
    }  # fmt: skip


async def test_closing_commits_what_waits_and_refuses_what_comes_later(
    database: Database, owner: psycopg.Connection[Any], audit_log: AuditLog, tenants: tuple[Tenant, Tenant]
) -> None:
    org = tenants[0].org_id
    committer = Committer(database, audit_log.seal, batch=5)
    committer.start()
    waiting = [asyncio.create_task(committer.submit(Commit(org, audit=[entry(org, n=n)]))) for n in range(42)]
    await asyncio.sleep(0)  # all of them have submitted, none has been answered
    await committer.close()
    assert await asyncio.gather(*waiting, return_exceptions=True) == [None] * 42
    assert markers(owner) == Counter(str(n) for n in range(42))
    with pytest.raises(Unavailable):
        await asyncio.wait_for(committer.submit(Commit(org, audit=[entry(org)])), 120)


async def test_somebody_who_stops_waiting_harms_nobody(
    committer: Committer, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    org = tenants[0].org_id
    waiting = [asyncio.create_task(committer.submit(Commit(org, audit=[entry(org, n=n)]))) for n in range(9)]
    await asyncio.sleep(0)
    waiting[4].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [index for index, result in enumerate(results) if result is not None] == [4]
    await committer.submit(Commit(org, audit=[entry(org, n="last")]))
    assert markers(owner) == Counter([*map(str, range(9)), "last"])  # it was on its way already


def append(url: str, org: str, name: str, count: int, together: Barrier) -> None:
    """A process of its own that appends to an organisation's log."""

    async def main() -> None:
        database = Database(url, pool_size=2)
        await database.open()
        committer = Committer(database, AuditLog(AUDIT_KEY).seal)
        committer.start()
        for n in range(0, count, 3):
            together.wait(300)  # every round anew, so that neither is through before the other has begun
            await asyncio.gather(
                *(committer.submit(Commit(org, audit=[entry(org, n=f"{name} {n + k}")])) for k in range(3))
            )
        await committer.close()
        await database.close()

    asyncio.run(main())


def test_two_processes_append_to_one_log(
    database_url: str, owner: psycopg.Connection[Any], audit_log: AuditLog, tenants: tuple[Tenant, Tenant]
) -> None:
    org, count = tenants[0].org_id, 120
    together = SPAWN.Barrier(2)
    processes = [SPAWN.Process(target=append, args=(database_url, org, name, count, together)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found = markers(owner)
    assert found == Counter(f"{name} {n}" for name in "ab" for n in range(count))
    switches = sum(one[0] != two[0] for one, two in pairwise(found))
    assert switches > 10, "they took turns so rarely that this says nothing"
    assert check_chain(owner, audit_log, org).verified == 2 * count


async def test_steps_and_decisions_of_one_run_never_deadlock(
    database: Database, database_url: str, owner: psycopg.Connection[Any], audit_log: AuditLog, workflow: None,
    tenants: tuple[Tenant, Tenant],
) -> None:  # fmt: skip
    """A worker settles steps under leases while another process signals the same runs, in both orders of names."""
    orgs = [tenant.org_id for tenant in tenants]
    other = Database(database_url, pool_size=2)
    await other.open()
    worker, door = Committer(database, audit_log.seal), Committer(other, audit_log.seal)
    worker.start()
    door.start()
    runs = [new_run(orgs[n % 2]) for n in range(6)]
    await worker.submit(Commit(orgs[0], new_runs=runs[0::2]))
    await worker.submit(Commit(orgs[1], new_runs=runs[1::2]))
    fences = {
        row["run_id"]: row["fence"] for row in await database.rows("claim_runs", "me", 600.0, 10, "postgres", 1, 1)
    }

    async def steps(run: NewRun) -> None:
        for n in range(1, 31):
            org, run_id = run.org_id, run.run_id
            await worker.submit(Commit(org, fence=(run_id, fences[run_id]), effects=[effect(run, "intended", f"s{n}")],
                                       artifacts=[artifact(org, f"same {k}") for k in (n, n + 1)]))  # fmt: skip
            await worker.submit(
                Commit(org, fence=(run_id, fences[run_id]), journal=[journal(run, n)], audit=[entry(org)])
            )

    async def signals(run: NewRun) -> None:
        for n in range(1, 31):
            org = run.org_id
            await door.submit(Commit(org, new_signals=[signal(run)], audit=[entry(org)],
                                     artifacts=[artifact(org, f"same {k}") for k in (n + 1, n)]))  # fmt: skip

    async def renewals() -> None:
        for _ in range(60):
            await database.rows("renew_leases", "me", 600.0, list(fences))
            await asyncio.sleep(0.005)

    await asyncio.gather(renewals(), *map(steps, runs), *map(signals, reversed(runs)))
    await worker.close()
    await door.close()
    await other.close()
    counts = owner.execute(
        "select (select count(*) from journal), (select count(*) from signals), "
        "(select deadlocks from pg_stat_database where datname = current_database())"
    ).fetchone()
    assert counts == (180, 180, 0)
    for org in orgs:
        check_chain(owner, audit_log, org)
