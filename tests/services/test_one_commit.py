"""Every act is one commit with its audit entry: the database's own transaction ids say so, and an audit log that refuses.

The acts are listed by hand; a use case that is neither among them nor in the table of `test_authorisation` as one that writes
nothing fails here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from engines.harness import ASK, Bank, Observer, pay, workflow
from execution.approving import Scene
from identity.test_authorisation import UNGUARDED, USE_CASES
from interlock.admission.quotas import Quota
from interlock.app import App
from interlock.base.errors import InterlockError
from interlock.identity.auth import key_id_of
from interlock.identity.principal import ROLES, Principal
from interlock.policy.schema import Names
from interlock.services.use_cases import Services

from .conftest import Deploy
from .test_dead_letters import PICKY, TRY, dead_letter_of

# Notes the transaction of every row that is written, before anything of it is visible.
WATCH = """
create table touched (named text, at bigint);
create function touch() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$ begin
    insert into touched values (tg_table_name, txid_current());
    return null;
end $$;
do $$ declare one text; begin
    for one in select tablename from pg_tables where schemaname = 'public'
            and tablename not in ('touched', 'spans', 'workers', 'schedule', 'event_sinks') loop
        execute format('create trigger zz_touch after insert or update or delete on %I for each row execute function touch()', one);
    end loop;
end $$;
create function full_disk() returns trigger language plpgsql as $$ begin raise exception 'no entry can be written'; end $$;
"""
FAULT = "create trigger fault before insert on audit for each row execute function full_disk()"
MENDED = "drop trigger fault on audit"
REFUSED_EVENT = """
insert into event_sinks (sink) values ('elsewhere');
insert into deliveries (sink, event_id, org_id, lane, topic, payload, created_at, status)
    values ('elsewhere', 77, 'acme', '', 'test', '{}', now(), 'refused');
"""
NO_NAMES = Names(frozenset(), frozenset(), ROLES)
POLICY = "permit (principal, action, resource); // {}\n"
LISTEN = "- {id: hear, kind: wait, signal: go, payload: {type: object, properties: {n: {type: integer}}}}\n"
WRITE_NOTHING = {("policies", "committed"), ("followers", "close"), ("followers", "wake"), ("health", "ready"),
                 ("health", "database"), ("administration", "webhook_key"),
                 ("administration", "workers"), ("administration", "refused_events"), ("access", "authenticate"),
                 ("submission", "propose_again"), ("refusals", "start"), ("refusals", "close"),
                 ("refusals", "note_denied"), ("refusals", "note_unauthenticated")}  # fmt: skip


@dataclass
class Stage:
    """What the acts are about."""

    services: Services
    admin: Principal
    bob: Principal
    ids: dict[str, str]
    app: App


async def refused(stage: Stage) -> None:
    stage.services.refusals.note_denied(stage.bob, "POST /v1/keys")
    await stage.services.refusals.flush()


Act = Callable[[Stage], Awaitable[Any]]
ACTS: dict[tuple[str, str], Act] = {
    ("submission", "accept"): lambda s: s.services.submission.accept(s.admin, "asks", {"ticket": "t", "text": "x"}, None),
    ("runs", "result"): lambda s: s.services.runs.result(s.admin, s.ids["done"], revealed=True),
    ("signals", "signal"): lambda s: s.services.signals.signal(s.admin, s.ids["listening"], "go", {"n": 1}),
    ("signals", "pause"): lambda s: s.services.signals.pause(s.admin, s.ids["listening"]),
    ("signals", "resume"): lambda s: s.services.signals.resume(s.admin, s.ids["paused"]),
    ("signals", "cancel"): lambda s: s.services.signals.cancel(s.admin, s.ids["listening"]),
    ("reviews", "decide"): lambda s: s.services.reviews.decide(s.bob, s.ids["review"], "approve", "a note"),
    ("reviews", "revoke"): lambda s: s.services.reviews.revoke(s.bob, s.ids["approved"]),
    ("dead_letters", "requeue"): lambda s: s.services.dead_letters.requeue(s.admin, s.ids["letter"], "again"),
    ("dead_letters", "discard"): lambda s: s.services.dead_letters.discard(s.admin, s.ids["other letter"], "no"),
    ("administration", "deploy"): lambda s: s.services.administration.deploy(s.admin, s.app.read_project()),
    ("administration", "roll_back"): lambda s: s.services.administration.roll_back(s.admin, "asks", s.ids["version"]),
    ("administration", "issue_key"): lambda s: s.services.administration.issue_key(s.admin, "eve", frozenset({"viewer"})),
    ("administration", "revoke_key"): lambda s: s.services.administration.revoke_key(s.admin, s.ids["key"]),
    ("administration", "set_quota"): lambda s: s.services.administration.set_quota(s.admin, Quota("tool", "refund", rate=1)),
    ("administration", "remove_quota"): lambda s: s.services.administration.remove_quota(s.admin, "org", ""),
    ("administration", "ask_to_drain"): lambda s: s.services.administration.ask_to_drain("idle", login="ada@host"),
    ("administration", "requeue_events"): lambda s: s.services.administration.requeue_events(None, login="ada@host"),
    ("administration", "ensure_org"): lambda s: s.services.administration.ensure_org("initech", "Initech"),
    ("administration", "local_principal"): lambda s: s.services.administration.local_principal(),
    ("refusals", "flush"): refused,
    ("policies", "activate"): lambda s: s.services.policies.activate(s.admin, "built-in"),
    ("policies", "activate_text"): lambda s: s.services.policies.activate_text(s.admin, POLICY.format(2), NO_NAMES),
}  # fmt: skip


@pytest.fixture
async def stage(deploy: Deploy, seen: Observer, bank: Bank, admin: Principal) -> Stage:
    """Every act has something to do, and no worker or schedule writes beside it."""
    files = {"policies/main.cedar": POLICY.format(0)}
    desk = await deploy(
        PICKY, files,
        workflow("asks", ASK, output="{approved: $steps.ask.approved}"),
        workflow("listens", LISTEN),
        workflow("held", TRY, allow="picky", extra="on_failure: hold\n"),
        workflow("bare", pay("pay", "refund", "bank"), allow="refund"),
    )  # fmt: skip
    use, bob = desk.app.services, Principal("bob", admin.org_id, frozenset({"reviewer"}))
    ids = {"version": (await use.administration.versions(admin, "asks"))[0].version}
    for name in ("letter", "other letter"):
        ids[name] = await dead_letter_of(seen, await desk.start("held", text="bad"))
    ids["done"] = await desk.start("asks", text="mail eve@example.org")
    await desk.decide(await seen.review(ids["done"]), "approve")
    await seen.finished(ids["done"])
    ids["review"] = await seen.review(await desk.start("asks"))
    for name in ("listening", "paused"):
        ids[name] = await desk.start("listens")
        await seen.asleep(ids[name])
    await use.signals.pause(admin, ids["paused"])
    (desk.app.project / "policies/main.cedar").unlink()
    await use.policies.activate(admin, "built-in")
    _, ids["approved"] = await Scene(desk, seen, bank, bob).approved_while_paused()
    await desk.app.drain_worker()
    (desk.app.project / "policies/main.cedar").write_text(POLICY.format(1))
    asks = desk.app.project / "workflows/asks.yaml"
    asks.write_text(asks.read_text().replace("Shall we?", "May we?"))
    await use.administration.ensure_org("local", "Local")
    ids["key"] = key_id_of(await use.administration.issue_key(admin, "eve", frozenset({"viewer"})))
    await use.administration.set_quota(admin, Quota("org", rate=1000))
    seen.connection.execute(REFUSED_EVENT)
    seen.connection.execute(
        "insert into workers (worker_id, host, pid, engine, version) values ('idle', 'h', 1, 'postgres', '1')"
    )
    seen.connection.execute(WATCH)
    return Stage(use, admin, bob, ids, desk.app)


def written(seen: Observer) -> dict[int, set[str]]:
    """The tables that each transaction since the last call wrote to; the relay's own are left out."""
    found: dict[int, set[str]] = {}
    for name, at in seen.rows("select named, at from touched"):
        found.setdefault(at, set()).add(name)
    seen.connection.execute("truncate touched")
    return {at: tables for at, tables in found.items() if not tables <= {"outbox", "deliveries"}}


async def test_every_act_is_one_transaction_with_its_audit_entry(stage: Stage, seen: Observer) -> None:
    for case, act in ACTS.items():
        seen.connection.execute(FAULT)
        with pytest.raises(asyncpg.PostgresError, match="no entry can be written"):
            await act(stage)
        assert written(seen) == {}, f"{case} leaves something behind although it could not be recorded"
        if case == ("administration", "requeue_events"):
            assert seen.rows("select status from deliveries where event_id = 77") == [("refused",)]
        seen.connection.execute(MENDED)
        await act(stage)
        commits = written(seen)
        assert commits, case
        for tables in commits.values():
            assert {"audit", "audit_heads"} <= tables, f"{case} writes to {tables} without an entry"
        assert len(commits) == 1, (case, commits)
    assert seen.rows("select draining from workers where worker_id = 'idle'") == [(True,)]
    for org_id in ("acme", "initech", "local"):
        entries = seen.rows("select count(*) from audit where org_id = %s", org_id)
        assert entries == seen.rows("select seq from audit_heads where org_id = %s", org_id)


async def test_every_other_use_case_writes_nothing(stage: Stage, seen: Observer) -> None:
    for case, (_, call) in USE_CASES.items():
        if case in ACTS:
            continue
        try:
            await call(stage.services, stage.admin, stage.app)
        except InterlockError:
            continue
        finally:
            assert written(seen) == {}, case


def test_no_use_case_is_left_out() -> None:
    assert (UNGUARDED - WRITE_NOTHING) | {case for case in USE_CASES if case in ACTS} == ACTS.keys()
