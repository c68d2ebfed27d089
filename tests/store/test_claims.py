"""Who is served next: organisations and workflows fairly, priorities inside a lane, and never more than the quotas allow."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from interlock.store.commit import Commit, Committer
from interlock.store.database import Database

from .rows import REF, new_run
from .test_doubt import until_waiting

if TYPE_CHECKING:
    from conftest import Tenant

LEASE = 3600.0
Owner = psycopg.Connection[Any]
pytestmark = pytest.mark.usefixtures("workflow", "tenants")
ORG, OTHER = "acme", "globex"


def put(
    owner: Owner,
    count: int,
    *,
    org: str = ORG,
    workflow: str = "ask",
    priority: int = 0,
    age: int = 0,
    begun: bool = False,
    engine: str = "postgres",
) -> list[str]:
    """Runs in the queue, `age` seconds old and a little younger each; their ids in order of age."""
    known = {"org": org, "name": workflow, "empty": Jsonb({}), "ref": Jsonb(REF)}
    owner.execute(
        "insert into workflow_versions values (%(org)s, %(name)s, 'v1', %(empty)s, 'ada') on conflict do nothing", known
    )
    values = {**known, "count": count, "priority": priority, "age": age, "fence": int(begun), "engine": engine}
    (made,) = owner.execute("select coalesce(max(substr(run_id, 5)::integer), 0) from runs").fetchone() or (0,)
    values["first"] = made + 1
    owner.execute(
        "insert into runs (run_id, org_id, workflow, version, principal, idempotency_key, input, trace_id, span_id) "
        "select 'run_' || lpad(n::text, 7, '0'), %(org)s, %(name)s, 'v1', %(empty)s, n::text, %(ref)s, 't', 's' "
        "from generate_series(%(first)s::integer, %(first)s + %(count)s - 1) n",
        values,
    )
    owner.execute(
        "insert into queue (run_id, org_id, workflow, priority, engine, fence, available_at) "
        "select 'run_' || lpad(n::text, 7, '0'), %(org)s, %(name)s, %(priority)s, %(engine)s, %(fence)s, "
        "now() - make_interval(secs => %(age)s) + make_interval(secs => (n - %(first)s) * 0.000001) - interval '1 s' "
        "from generate_series(%(first)s::integer, %(first)s + %(count)s - 1) n",
        values,
    )
    return [f"run_{n:07}" for n in range(made + 1, made + count + 1)]


async def claim(database: Database, wanted: int, *engine: str, worker: str = "w") -> list[str]:
    if engine:
        async with database.connection("") as connection:
            rows = await connection.fetch("select * from claim_runs($1, $2, $3, $4)", worker, LEASE, wanted, *engine)
    else:
        rows = await database.rows("claim_runs", worker, LEASE, wanted, "postgres", 1, 1)
    claimed = [row["run_id"] for row in rows]
    assert len(claimed) == len(set(claimed)) <= wanted
    return claimed


def lanes(owner: Owner, claimed: list[str]) -> Counter[tuple[str, str]]:
    rows = owner.execute("select org_id, workflow from runs where run_id = any(%s)", (claimed,)).fetchall()
    return Counter((org, workflow) for org, workflow in rows)


def finish(owner: Owner, claimed: list[str]) -> None:
    owner.execute("delete from queue where run_id = any(%s)", (claimed,))


def quota(owner: Owner, scope: str, name: str, org: str = ORG, per: float = 3600, **limits: int) -> None:
    values = (org, scope, name, limits.get("concurrency"), limits.get("rate"), per)
    owner.execute("insert into quotas values (%s, %s, %s, %s, %s, %s)", values)


# -- fairness ------------------------------------------------------------------------------------------------------


async def test_a_crowd_does_not_keep_a_small_organisation_waiting(database: Database, owner: Owner) -> None:
    put(owner, 500, age=100)
    put(owner, 3, org=OTHER)
    assert lanes(owner, await claim(database, 10)) == {(ORG, "ask"): 7, (OTHER, "ask"): 3}


async def test_organisations_then_workflows_share_alike(database: Database, owner: Owner) -> None:
    for workflow in ("a", "b", "c"):
        put(owner, 50, workflow=workflow, age=60)
    put(owner, 50, org=OTHER, workflow="a")
    claimed = await claim(database, 24)
    assert lanes(owner, claimed) == {(ORG, "a"): 4, (ORG, "b"): 4, (ORG, "c"): 4, (OTHER, "a"): 12}


async def test_what_a_lane_has_already_counts(database: Database, owner: Owner) -> None:
    put(owner, 8, age=60)
    assert len(await claim(database, 8)) == 8
    put(owner, 50, age=60)
    put(owner, 50, org=OTHER)
    assert lanes(owner, await claim(database, 8)) == {(OTHER, "ask"): 8}
    assert lanes(owner, await claim(database, 10)) == {(ORG, "ask"): 5, (OTHER, "ask"): 5}


async def test_one_at_a_time_is_fair_as_well(database: Database, owner: Owner) -> None:
    """When nothing is leased all lanes are alike; then chance decides, not age, or the crowd would come first."""
    put(owner, 300, age=100)
    put(owner, 20, org=OTHER)
    served: Counter[tuple[str, str]] = Counter()
    for _ in range(150):
        claimed = await claim(database, 1)
        served += lanes(owner, claimed)
        finish(owner, claimed)
    assert served[OTHER, "ask"] == 20  # missed about once in 10^20 if chance is fair


async def test_inside_a_lane_priority_then_begun_then_age(database: Database, owner: Owner) -> None:
    late = put(owner, 2, priority=-5, age=500)
    old = put(owner, 2, age=50)
    young = put(owner, 2, age=5)
    woken = put(owner, 2, age=1, begun=True)
    urgent = put(owner, 2, priority=100)
    order = [one for _ in range(10) for one in await claim(database, 1)]
    assert order == urgent + woken + old + young + late


async def test_engines_do_not_take_each_others_runs(database: Database, owner: Owner) -> None:
    ours, theirs = put(owner, 2), put(owner, 2, engine="temporal")
    assert sorted(await claim(database, 10)) == ours
    assert sorted(await claim(database, 10, "temporal")) == theirs
    assert await claim(database, 10, "'; drop table queue; --") == []


async def test_what_sleeps_in_a_lane_hides_nothing(database: Database, owner: Owner) -> None:
    asleep = put(owner, 20, priority=50, begun=True)
    owner.execute("update queue set available_at = 'infinity' where run_id = any(%s)", (asleep[:10],))
    owner.execute("update queue set available_at = now() + interval '1 day' where run_id = any(%s)", (asleep[10:],))
    ready = put(owner, 3)
    assert sorted(await claim(database, 10)) == ready
    owner.execute("update queue set available_at = now() where run_id = %s", (asleep[15],))
    assert await claim(database, 10) == [asleep[15]]


async def test_runs_of_a_dead_worker_come_before_new_ones(database: Database, owner: Owner) -> None:
    old = put(owner, 3)
    await claim(database, 3, worker="dead")
    owner.execute("update queue set lease_until = now() - interval '1 second'")
    put(owner, 10, age=600)
    assert sorted(await claim(database, 3, worker="alive")) == old
    assert owner.execute("select distinct worker, fence from queue where worker is not null").fetchall() == [
        ("alive", 2)
    ]


async def test_the_row_of_a_new_run_says_lane_priority_and_engine(
    committer: Committer, owner: Owner, tenants: tuple[Tenant, Tenant]
) -> None:
    plain = new_run(ORG)
    full = replace(new_run(ORG), priority=-7, engine="temporal")
    await committer.submit(Commit(ORG, new_runs=[plain, full]))
    rows = owner.execute(
        "select q.workflow, q.priority, q.engine, r.priority, r.engine from queue q join runs r using (run_id) order by run_id"
    ).fetchall()
    assert rows == [("ask", 0, "postgres", 0, "postgres"), ("ask", -7, "temporal", -7, "temporal")]


# -- cost ----------------------------------------------------------------------------------------------------------


async def read(owner: Owner, database: Database) -> int:
    """Rows of the queue that a claim of ten reads, by the server's own count."""

    def total() -> int:
        row = owner.execute(
            "select pg_stat_get_xact_tuples_returned('queue'::regclass) + pg_stat_get_xact_tuples_fetched('queue'::regclass) "
            "+ (select coalesce(sum(pg_stat_get_xact_tuples_returned(indexrelid)), 0) "
            "from pg_index where indrelid = 'queue'::regclass)"
        ).fetchone()
        assert row is not None
        return int(row[0])

    with owner.transaction(force_rollback=True):
        before = total()
        owner.execute("select * from claim_runs('w', 60, 10)")
        return total() - before


async def test_the_cost_does_not_grow_with_what_waits(database: Database, owner: Owner) -> None:
    for org in (ORG, OTHER):
        for workflow in ("a", "b"):
            put(owner, 100, org=org, workflow=workflow)
    owner.execute("analyze queue")
    few = await read(owner, database)
    for org in (ORG, OTHER):
        for workflow in ("a", "b"):
            put(owner, 4000, org=org, workflow=workflow)
            put(owner, 1000, org=org, workflow=workflow, begun=True)
    owner.execute("update queue set available_at = now() + interval '1 day' where fence > 0 and org_id = %s", (ORG,))
    owner.execute("update queue set available_at = 'infinity' where fence > 0 and org_id = %s", (OTHER,))
    owner.execute("vacuum analyze queue")
    many = await read(owner, database)
    assert 10 <= few < 1000
    assert many < 3 * few


# -- quotas --------------------------------------------------------------------------------------------------------


async def drain(database: Database, claimants: int) -> list[str]:
    """Everything that many claimants at once get until none of them gets more."""
    got: list[str] = []

    async def claimant(name: str) -> None:
        while claimed := await claim(database, 3, worker=name):
            got.extend(claimed)

    await asyncio.gather(*(claimant(f"w{n}") for n in range(claimants)))
    assert len(got) == len(set(got))
    return got


@pytest.mark.parametrize("limit", ["concurrency", "rate"])
async def test_no_quota_is_exceeded_however_many_claim(limit: str, database: Database, owner: Owner) -> None:
    for workflow in ("a", "b", "c"):
        put(owner, 40, workflow=workflow)
    put(owner, 40, org=OTHER, workflow="a")
    quota(owner, "org", "", **{limit: 11})
    quota(owner, "workflow", "a", **{limit: 2})
    quota(owner, "workflow", "b", **{limit: 0})
    quota(owner, "workflow", "nobody's", **{limit: 1})
    claimed = lanes(owner, await drain(database, 12))
    assert claimed == {(ORG, "a"): 2, (ORG, "c"): 9, (OTHER, "a"): 40}
    assert await claim(database, 10) == []


async def test_concurrency_is_free_again_when_runs_end_or_sleep(database: Database, owner: Owner) -> None:
    put(owner, 10)
    quota(owner, "workflow", "ask", concurrency=2)
    first, second = await claim(database, 5)
    assert await claim(database, 5) == []
    finish(owner, [first])
    assert len(await claim(database, 5)) == 1
    owner.execute(
        "update queue set worker = null, lease_until = null, available_at = 'infinity' where run_id = %s", (second,)
    )
    assert len(await claim(database, 5)) == 1
    assert await claim(database, 5) == []


async def test_a_rate_counts_beginnings_and_forgets(database: Database, owner: Owner) -> None:
    put(owner, 10)
    quota(owner, "org", "", rate=3, per=60)
    first = await claim(database, 5)
    assert len(first) == 3
    finish(owner, first[:2])
    assert await claim(database, 5) == [], "what ended has begun all the same"
    owner.execute("update queue set worker = null, lease_until = null where run_id = %s", (first[2],))
    assert await claim(database, 5) == [first[2]], "a run that wakes up does not begin"
    owner.execute("update quota_uses set at = at - interval '61 seconds' where holder = %s", (first[0],))
    assert len(await claim(database, 5)) == 1
    assert owner.execute("select count(*) from quota_uses").fetchone() == (3,), "what is forgotten is removed"


async def test_what_a_quota_holds_back_takes_nobodys_place(database: Database, owner: Owner) -> None:
    """A lane that may begin nothing still lets runs on that have begun, and the lanes beside it get the room."""
    put(owner, 30, workflow="a", priority=50)
    woken = put(owner, 2, workflow="a", begun=True)
    put(owner, 30, workflow="b")
    quota(owner, "workflow", "a", rate=0, concurrency=5)
    quota(owner, "org", "", concurrency=8)
    claimed = await claim(database, 10)
    assert lanes(owner, claimed) == {(ORG, "a"): 2, (ORG, "b"): 6}
    assert set(woken) <= set(claimed)


async def test_claimants_wait_for_each_other_only_where_there_is_a_quota(
    database: Database, owner: Owner, owner_url: str
) -> None:
    put(owner, 10)
    put(owner, 10, org=OTHER)
    quota(owner, "org", "", concurrency=3)
    with psycopg.connect(owner_url) as other:
        assert other.execute("select count(*) from claim_runs('slow', 60, 4)").fetchone() == (4,)
        second = asyncio.create_task(claim(database, 20))
        await until_waiting(owner, 1)
        other.commit()
        claimed = await second
    assert lanes(owner, claimed)[ORG, "ask"] == 3 - int(
        owner.execute("select count(*) from queue where worker = 'slow' and org_id = %s", (ORG,)).fetchone()[0]  # type: ignore[index]
    )
    owner.execute("delete from quotas")
    finish(owner, claimed)
    put(owner, 20)
    with psycopg.connect(owner_url) as other:
        other.execute("select count(*) from claim_runs('slow', 60, 4)")
        assert len(await claim(database, 5)) == 5, "they pass over what the other has locked, and do not wait"
