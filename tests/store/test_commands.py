"""Claims on single commands: the newest attempt has it, nobody does it twice, and late writers are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from interlock.base.errors import LeaseLost
from interlock.store.commit import Commit, Committer
from interlock.store.rows import DoneClaim, FinishedRun, NewRun

from .rows import artifact, claim, contents, effect, entry, journal, new_run, run_update

if TYPE_CHECKING:
    from conftest import Tenant

NAME = "perform:pay:1"


@pytest.fixture
async def run(committer: Committer, tenants: tuple[Tenant, Tenant]) -> NewRun:
    run = new_run(tenants[0].org_id)
    await committer.submit(Commit(run.org_id, new_runs=[run]))
    return run


def writes(run: NewRun, fence: int) -> Commit:
    """What the holder of a claim writes when its command is done."""
    return Commit(
        run.org_id,
        claim=(run.run_id, NAME, fence),
        artifacts=[artifact(run.org_id, "x")],
        effects=[effect(run, "intended")],
        done_claims=[DoneClaim(run_id=run.run_id, command=NAME, event={"type": "test"})],
        audit=[entry(run.org_id)],
    )


async def test_only_the_newest_attempt_may_write(
    committer: Committer, owner: psycopg.Connection[Any], run: NewRun
) -> None:
    org = run.org_id
    await committer.submit(Commit(org, new_claims=[claim(run, 1)]))
    await committer.submit(Commit(org, new_claims=[claim(run, 2)]))
    before = contents(owner)
    for late in (writes(run, 1), writes(run, 3), Commit(org, new_claims=[claim(run, 1)], audit=[entry(org)])):
        with pytest.raises(LeaseLost):
            await committer.submit(late)
        assert contents(owner) == before
    await committer.submit(writes(run, 2))
    assert contents(owner)["effects"] != before["effects"]


async def test_what_is_done_is_done(committer: Committer, owner: psycopg.Connection[Any], run: NewRun) -> None:
    await committer.submit(Commit(run.org_id, new_claims=[claim(run, 1)]))
    await committer.submit(writes(run, 1))
    before = contents(owner)
    for late in (Commit(run.org_id, new_claims=[claim(run, 9)]), writes(run, 1)):
        with pytest.raises(LeaseLost):
            await committer.submit(late)
        assert contents(owner) == before


async def test_claims_end_with_their_run(committer: Committer, owner: psycopg.Connection[Any], run: NewRun) -> None:
    org = run.org_id
    await committer.submit(Commit(org, new_claims=[claim(run, 1)]))
    ended = [run_update(run.run_id, "failed", finished=True)]
    await committer.submit(Commit(org, runs=ended, finished=[FinishedRun(run_id=run.run_id)]))
    assert contents(owner)["claims"] == []
    for late in (Commit(org, new_claims=[claim(run, 2)]), writes(run, 1)):
        with pytest.raises(LeaseLost):
            await committer.submit(late)


async def test_whoever_records_an_event_first_has_it(
    committer: Committer, owner: psycopg.Connection[Any], run: NewRun
) -> None:
    org = run.org_id
    await committer.submit(Commit(org, recorded=[journal(run, 1, by="first")]))
    before = contents(owner)
    with pytest.raises(asyncpg.UniqueViolationError):
        await committer.submit(
            Commit(org, recorded=[journal(run, 1, by="second"), journal(run, 2)], new_claims=[claim(run, 1)])
        )
    assert contents(owner) == before
