"""The database refuses a move that the machine's tables do not have, whoever asks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, get_args

import asyncpg
import psycopg
import pytest

from interlock.machine.events import RUN_MOVES, TERMINAL, RunStatus
from interlock.store.commit import Commit, Committer
from interlock.store.rows import EffectStatus

from .rows import contents, effect, entry, journal, new_run, populate, run_update

if TYPE_CHECKING:
    from conftest import Tenant

EFFECT_STATES = get_args(EffectStatus)

# Said again, apart from the migration: what a person may rely on when they read the ledger.
EFFECT_MOVES = {
    ("intended", "executing"),
    ("intended", "failed"),  # refused before it began
    ("executing", "succeeded"),
    ("executing", "failed"),
    ("executing", "unknown"),
    ("unknown", "executing"),  # the same key again
    ("unknown", "succeeded"),  # a probe or a person says so
    ("unknown", "failed"),
    ("failed", "intended"),
    ("failed", "executing"),
    ("succeeded", "compensated"),
}


@pytest.fixture
def run_id(owner: psycopg.Connection[Any], workflow: None, tenants: tuple[Tenant, Tenant]) -> str:
    populate(owner, tenants[0].org_id)
    return f"run_{tenants[0].org_id}"


def test_both_tables_of_run_moves_say_the_same(owner: psycopg.Connection[Any]) -> None:
    in_database = set(owner.execute("select old, new from run_moves").fetchall())
    assert in_database == {(old.value, new.value) for old, moves in RUN_MOVES.items() for new in moves}
    assert set(RUN_MOVES) == set(RunStatus)
    assert not [old for old, _ in in_database if RunStatus(old) in TERMINAL - {RunStatus.DEAD}]


def refused(owner: psycopg.Connection[Any], table: str, run_id: str, old: str, new: str) -> bool:
    with owner.transaction(force_rollback=True):
        owner.execute("set local session_replication_role = replica")  # the owner may: no triggers while we prepare
        owner.execute(f"update {table} set status = %s where run_id = %s", (old, run_id))
        owner.execute("set local session_replication_role = origin")
        try:
            with owner.transaction():
                owner.execute(f"update {table} set status = %s where run_id = %s", (new, run_id))
        except psycopg.Error as error:
            if error.sqlstate != "IL004":
                raise
            return True
        return False


def test_every_run_move_is_allowed_or_refused_as_the_table_says(owner: psycopg.Connection[Any], run_id: str) -> None:
    for old, new in itertools.product(RunStatus, RunStatus):
        allowed = new == old or new in RUN_MOVES[old]
        assert refused(owner, "runs", run_id, old.value, new.value) is not allowed, (old, new)
    assert refused(owner, "runs", run_id, "running", "asleep")


def test_every_effect_move_is_allowed_or_refused(owner: psycopg.Connection[Any], run_id: str) -> None:
    assert set(owner.execute("select old, new from effect_moves").fetchall()) == EFFECT_MOVES
    for old, new in itertools.product(EFFECT_STATES, EFFECT_STATES):
        allowed = new == old or (old, new) in EFFECT_MOVES
        assert refused(owner, "effects", run_id, old, new) is not allowed, (old, new)
    assert refused(owner, "effects", run_id, "executing", "done")


async def test_a_commit_with_an_illegal_move_writes_nothing(
    committer: Committer, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> None:
    org = tenants[0].org_id
    run = new_run(org)
    await committer.submit(Commit(org, new_runs=[run], effects=[effect(run, "intended")]))
    await committer.submit(Commit(org, runs=[run_update(run.run_id, "succeeded", finished=True)]))
    before = contents(owner)
    for commit in (
        Commit(org, journal=[journal(run, 1)], runs=[run_update(run.run_id)], audit=[entry(org)]),
        Commit(org, journal=[journal(run, 1)], effects=[effect(run, "succeeded")], audit=[entry(org)]),
    ):
        with pytest.raises(asyncpg.PostgresError) as error:
            await committer.submit(commit)
        assert error.value.sqlstate == "IL004"
    assert contents(owner) == before
