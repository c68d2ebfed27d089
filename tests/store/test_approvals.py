"""Approvals in the database: used up once, with their effect or not at all, whoever wants them at the same moment."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.base.errors import ApprovalInvalid, Conflict
from interlock.store.commit import Commit, Committer
from interlock.store.people_rows import ConsumedApproval, DecidedReview, RevokedApproval
from interlock.store.rows import NewRun

from . import rows

if TYPE_CHECKING:
    from conftest import Tenant
    from interlock.identity.principal import Principal


async def approved(committer: Committer, run: NewRun, review: str = "r1") -> ConsumedApproval:
    """A run in which a person has just approved an act; the row that uses the approval up."""
    await committer.submit(Commit(run.org_id, new_runs=[run], new_reviews=[rows.act_review(run, review)]))
    decided = DecidedReview(review_id=review, status="approved", decided_by="ada", note="")
    granted = rows.approval(run, review)
    await committer.submit(Commit(run.org_id, decided_reviews=[decided], new_approvals=[granted]))
    return rows.consumption(run, review)


def using(row: ConsumedApproval, run: NewRun, **changes: str) -> Commit:
    effect = rows.effect(run, "intended")
    return Commit(run.org_id, consumed_approvals=[replace(row, **changes)], effects=[effect])


async def test_used_once_with_its_effect(
    committer: Committer, admin: Principal, owner: psycopg.Connection[Any]
) -> None:
    run = rows.new_run(admin.org_id)
    row = await approved(committer, run)
    await committer.submit(using(row, run))
    assert owner.execute("select consumed_by, consumed_at is null from approvals").fetchall() == [("key", False)]
    owner.execute("delete from effects")
    for key in ("key", "another key"):
        with pytest.raises(ApprovalInvalid):
            await committer.submit(using(row, run, consumed_by=key))
    assert owner.execute("select from effects").fetchall() == []


@pytest.mark.parametrize("field", ["review_id", "org_id", "run_id", "step", "digest"])
async def test_for_nothing_else(
    field: str, committer: Committer, admin: Principal, owner: psycopg.Connection[Any]
) -> None:
    run = rows.new_run(admin.org_id)
    row = await approved(committer, run)
    with pytest.raises(ApprovalInvalid):
        await committer.submit(using(row, run, **{field: "another"}))
    assert owner.execute("select consumed_at from approvals").fetchall() == [(None,)]
    assert owner.execute("select from effects").fetchall() == []


@pytest.mark.parametrize("change", ["revoked_at = now(), revoked_by = 'x'", "expires_at = now() - interval '1 second'"])
async def test_revoked_or_expired(
    change: str, committer: Committer, admin: Principal, owner: psycopg.Connection[Any]
) -> None:
    run = rows.new_run(admin.org_id)
    row = await approved(committer, run)
    owner.execute("set session_replication_role = replica")
    owner.execute(f"update approvals set {change}")  # type: ignore[arg-type]
    with pytest.raises(ApprovalInvalid):
        await committer.submit(using(row, run))
    revoked = RevokedApproval(review_id="r1", revoked_by="bob")
    with pytest.raises(Conflict):
        await committer.submit(Commit(admin.org_id, revoked_approvals=[revoked]))
    assert owner.execute("select from effects").fetchall() == []


async def test_of_two_in_one_batch_the_first_has_it(committer: Committer, admin: Principal) -> None:
    run = rows.new_run(admin.org_id)
    row = await approved(committer, run)
    commits = [committer.submit(using(row, run, consumed_by=str(number))) for number in range(20)]
    results = await asyncio.gather(*commits, return_exceptions=True)
    assert Counter(type(one) for one in results) == {type(None): 1, ApprovalInvalid: 19}


async def test_none_without_the_decision_of_its_review(
    committer: Committer, admin: Principal, owner: psycopg.Connection[Any]
) -> None:
    run = rows.new_run(admin.org_id)
    await committer.submit(Commit(admin.org_id, new_runs=[run], new_reviews=[rows.act_review(run, "r1")]))
    granted = rows.approval(run, "r1")
    decided = DecidedReview(review_id="r1", status="approved", decided_by="ada", note="")
    for decisions, grant in (
        ([], granted),
        ([replace(decided, status="rejected")], granted),
        ([replace(decided, decided_by="carol")], granted),
        ([decided], replace(granted, digest="another")),
        ([decided], replace(granted, step="another")),
    ):
        with pytest.raises(ApprovalInvalid):
            await committer.submit(Commit(admin.org_id, decided_reviews=decisions, new_approvals=[grant]))
    assert owner.execute("select from approvals").fetchall() == []
    assert owner.execute("select status from reviews").fetchall() == [("open",)]


# -- races ---------------------------------------------------------------------------------------------------------------

_RACE = """
do $$ declare one record; begin
    for one in select review_id, run_id, step from approvals order by hashtext(step) / 50000, random() loop
        begin
            perform settle_v1(jsonb_build_object('orgs', 'acme',
                'consumed_approvals', jsonb_build_array(jsonb_build_object('review_id', one.review_id, 'org_id', 'acme',
                    'run_id', one.run_id, 'step', one.step, 'digest', 'd', 'consumed_by', 'worker WORKER')),
                'effects', jsonb_build_array(jsonb_build_object('run_id', one.run_id, 'step', one.step, 'org_id', 'acme',
                    'tool', 'pay', 'idempotency_key', one.step, 'status', 'intended', 'attempt', WORKER, 'input', '{}'::jsonb))));
            insert into outcomes values (one.step, WORKER, true);
        exception when sqlstate 'IL007' then
            insert into outcomes values (one.step, WORKER, false);
        end;
        commit;
    end loop;
end $$
"""


@pytest.mark.parametrize("races", [10_000, pytest.param(200_000, marks=pytest.mark.chaos)])
def test_two_workers_race_for_every_approval(
    races: int, owner: psycopg.Connection[Any], database_url: str, workflow: None, tenants: tuple[Tenant, Tenant]
) -> None:
    """Both want each of them, in nearly the same order: one gets it and its effect is written, the other gets neither."""
    owner.execute(
        "insert into runs (run_id, org_id, workflow, version, principal, idempotency_key, input, trace_id, span_id) "
        "values ('run_0', 'acme', 'ask', 'v1', '{}', 'k', '{}', '', '')"
    )
    owner.execute(
        "insert into reviews (review_id, org_id, run_id, step, purpose, title, role, show, status, decided_by, act) "
        "select 'r' || n, 'acme', 'run_0', 's' || n, 'approve_act', '', 'reviewer', '{}', 'approved', 'bob', "
        "jsonb_build_object('step', 's' || n, 'digest', 'd') from generate_series(1, %s) n",
        (races,),
    )
    owner.execute(
        "insert into approvals (review_id, org_id, run_id, step, digest, approver, roles, expires_at, signature) "
        "select review_id, org_id, run_id, step, 'd', 'bob', '{}', now() + interval '1 hour', '' from reviews"
    )
    owner.execute("analyze")  # else the planner takes the tables for empty
    owner.execute("create table outcomes (step text, worker integer, won boolean)")
    owner.execute("grant insert on outcomes to interlock_app")

    def work(number: int) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("set interlock.orgs = 'acme'")
            connection.execute(_RACE.replace("WORKER", str(number)))  # type: ignore[arg-type]

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = owner.execute(
        "select count(*), count(*) filter (where won), count(distinct step) filter (where won) from outcomes"
    ).fetchone()
    assert found == (2 * races, races, races)
    query = (
        "select count(*) from outcomes o join approvals a using (step) join effects e using (step) "
        "where o.won and e.attempt = o.worker and a.consumed_by = 'worker ' || o.worker"
    )
    assert owner.execute(query).fetchone() == (races,)
    shares = owner.execute("select count(*) from outcomes where won group by worker").fetchall()
    assert len(shares) == 2, "both won some"
