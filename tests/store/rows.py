"""Rows as the engine writes them, in the smallest form that the database takes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from interlock.base.refs import RefJson
from interlock.machine.events import RunStatus
from interlock.store.entries import Entry
from interlock.store.people_rows import ConsumedApproval, NewApproval, NewDeadLetter, NewReview
from interlock.store.rows import (
    ArtifactRow,
    EffectRow,
    EffectStatus,
    JournalRow,
    NewClaim,
    NewRun,
    NewSignal,
    OutboxRow,
    RunUpdate,
)

REF: RefJson = {
    "digest": "0" * 64,
    "size": 2,
    "labels": {"trust": "system", "sensitivity": "public", "subjects": [], "origins": [], "as_of": None},
}
_numbers = itertools.count()


def new_run(org_id: str, run_id: str | None = None) -> NewRun:
    """For `Commit.new_runs`; the workflow is the one that the fixture `workflow` deploys."""
    run_id = run_id or f"run_{next(_numbers):06}"
    return NewRun(
        run_id=run_id,
        org_id=org_id,
        workflow="ask",
        version="v1",
        principal={"user_id": "ada", "org_id": org_id, "roles": ["admin"]},
        idempotency_key=run_id,
        input=REF,
        vault=None,
        flags=[],
        trace_id="0" * 32,
        span_id="0" * 16,
        engine="postgres",
        priority=0,
        machine=1,
    )


def run_update(run_id: str, status: str = "running", *, finished: bool = False) -> RunUpdate:
    """For `Commit.runs`."""
    return RunUpdate(
        run_id=run_id,
        status=RunStatus(status),
        reason=None,
        output=None,
        input_tokens=0,
        output_tokens=0,
        nano_usd=0,
        unpriced=0,
        steps=0,
        finished=finished,
        flags=None,
    )


def journal(run: NewRun, seq: int, **event: Any) -> JournalRow:
    return JournalRow(run_id=run.run_id, seq=seq, org_id=run.org_id, event={"type": "test", **event})


def effect(run: NewRun, status: EffectStatus, step: str = "pay") -> EffectRow:
    return EffectRow(
        run_id=run.run_id,
        step=step,
        org_id=run.org_id,
        tool="pay",
        idempotency_key=f"{run.run_id}/{step}",
        status=status,
        attempt=1,
        input=REF,
        output=None,
    )


def claim(run: NewRun, fence: int, command: str = "perform:pay:1") -> NewClaim:
    """For `Commit.new_claims`."""
    return NewClaim(run_id=run.run_id, org_id=run.org_id, command=command, fence=fence)


def review(run: NewRun, review_id: str, step: str = "approve") -> NewReview:
    return NewReview(
        review_id=review_id,
        org_id=run.org_id,
        run_id=run.run_id,
        step=step,
        purpose="approve",
        title="Send it?",
        role="reviewer",
        show=REF,
        act=None,
    )


def act_review(run: NewRun, review_id: str) -> NewReview:
    """A review about one call of a tool, at the step `pay`."""
    act = {"step": "pay", "digest": "d"}
    return replace(review(run, review_id, "pay"), purpose="approve_act", act=act)


def approval(run: NewRun, review_id: str) -> NewApproval:
    """What `act_review` leads to, if ada approves."""
    return NewApproval(
        review_id=review_id,
        org_id=run.org_id,
        run_id=run.run_id,
        step="pay",
        digest="d",
        approver="ada",
        roles=["reviewer"],
        expires=4_000_000_000,
        signature="s",
    )


def consumption(run: NewRun, review_id: str, key: str = "key") -> ConsumedApproval:
    """Uses `approval` up."""
    return ConsumedApproval(
        review_id=review_id, org_id=run.org_id, run_id=run.run_id, step="pay", digest="d", consumed_by=key
    )


def dead_letter(run: NewRun, dead_letter_id: str, step: str) -> NewDeadLetter:
    return NewDeadLetter(
        dead_letter_id=dead_letter_id,
        org_id=run.org_id,
        run_id=run.run_id,
        step=step,
        purpose="step",
        code="failed",
        reason="it failed",
    )


def signal(run: NewRun, **event: Any) -> NewSignal:
    return NewSignal(org_id=run.org_id, run_id=run.run_id, event={"type": "test", **event})


def artifact(org_id: str, digest: str) -> ArtifactRow:
    return ArtifactRow(org_id=org_id, digest=digest, size=1, subjects=[], ciphertext="AAAA")


def outbox(org_id: str, **payload: Any) -> OutboxRow:
    return OutboxRow(org_id=org_id, topic="test", payload=payload)


def entry(org_id: str, run_id: str | None = None, **detail: Any) -> Entry:
    return Entry(org_id, "tool.call", "user:ada", "call_tool", "tool:pay", 1_000_000.5, run_id=run_id, detail=detail)


def deploy(owner: psycopg.Connection[Any], org_id: str) -> None:
    """The workflow version that every run here belongs to."""
    owner.execute(
        "insert into workflow_versions (org_id, name, version, definition, created_by) values (%s, 'ask', 'v1', %s, 'ada')",
        (org_id, Jsonb({})),
    )


def tables_with_org(owner: psycopg.Connection[Any]) -> list[str]:
    """Every table that has an organisation, as the catalogue knows them."""
    rows = owner.execute(
        "select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'org_id' "
        "where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') order by 1"
    ).fetchall()
    return [row[0] for row in rows]


def contents(owner: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """Everything in every table that has an organisation, comparable."""
    return {
        table: [row[0] for row in owner.execute(f"select t::text from {table} t order by 1").fetchall()]
        for table in tables_with_org(owner)
    }


def populate(owner: psycopg.Connection[Any], org_id: str) -> None:
    """One row of the organisation in every table; the organisation, its audit head and its workflow are there."""
    run, extra = f"run_{org_id}", {"org": org_id, "ref": Jsonb(REF), "empty": Jsonb({})}
    values = {"run": run, **extra}
    for statement in (
        "insert into api_keys values (%(run)s, %(org)s, '\\x00', 'ada', '{admin}')",
        "insert into subject_keys (org_id, subject, wrapped) values (%(org)s, '', '\\x00')",
        "insert into artifacts (org_id, digest, size, subjects, ciphertext) values (%(org)s, 'd', 1, '{}', '\\x00')",
        "insert into pending_objects (name, org_id) values (%(run)s, %(org)s)",
        "insert into workflow_heads (org_id, name, version) values (%(org)s, 'ask', 'v1')",
        "insert into policy_sets (org_id, version, text, created_by) values (%(org)s, 'p1', '', 'ada')",
        "insert into active_policies (org_id, version, activated_by) values (%(org)s, 'p1', 'ada')",
        "insert into runs (run_id, org_id, workflow, version, principal, idempotency_key, input, trace_id, span_id) "
        "values (%(run)s, %(org)s, 'ask', 'v1', %(empty)s, 'k', %(ref)s, 't', 's')",
        "insert into queue (run_id, org_id) values (%(run)s, %(org)s)",
        "insert into journal values (%(run)s, 1, %(org)s, %(empty)s)",
        "insert into signals (org_id, run_id, event) values (%(org)s, %(run)s, %(empty)s)",
        "insert into signal_ids (run_id, signal_id, org_id, name) values (%(run)s, 'sig', %(org)s, 'go')",
        "insert into followed_runs (run_id, org_id, until) values (%(run)s, %(org)s, now())",
        "insert into effects (run_id, step, org_id, tool, idempotency_key, status, attempt, input) "
        "values (%(run)s, 'pay', %(org)s, 'pay', 'k', 'intended', 1, %(ref)s)",
        "insert into claims (run_id, command, org_id, fence) values (%(run)s, 'perform:pay:1', %(org)s, 1)",
        "insert into reviews (review_id, org_id, run_id, step, purpose, title, role, show, status, decided_by, act) "
        "values (%(run)s, %(org)s, %(run)s, 'approve', 'approve', 't', 'reviewer', %(ref)s, 'approved', 'ada', "
        """'{"step": "pay", "digest": "d"}')""",
        "insert into approvals (review_id, org_id, run_id, step, digest, approver, roles, expires_at, signature) "
        "values (%(run)s, %(org)s, %(run)s, 'pay', 'd', 'ada', '{reviewer}', now() + interval '1 day', 's')",
        "insert into audit values (%(org)s, 1, 'e', %(empty)s, '', 'h', 'k', 's', '0/1:')",
        "insert into outbox (org_id, topic, payload) values (%(org)s, 't', %(empty)s)",
        "insert into event_sinks (sink) values ('log') on conflict do nothing",
        "insert into deliveries (sink, event_id, org_id, lane, topic, payload, created_at) "
        "values ('log', hashtext(%(org)s), %(org)s, '', 't', %(empty)s, now())",
        "insert into breakers (org_id, target) values (%(org)s, 'tool:pay')",
        "insert into tool_health (org_id, tool, bundle, contract) values (%(org)s, 'pay', 'b', %(empty)s)",
        "insert into quotas (org_id, scope, name, rate) values (%(org)s, 'tool', 'pay', 1)",
        "insert into quota_uses (org_id, scope, name, holder, at) values (%(org)s, 'tool', 'pay', %(run)s, now())",
        "insert into dead_letters (dead_letter_id, org_id, run_id, step, purpose, code, reason) "
        "values (%(run)s, %(org)s, %(run)s, 'pay', 'step', 'c', 'r')",
        "insert into results (org_id, key, output) values (%(org)s, 'k', %(ref)s)",
        "insert into batches (batch_id, org_id, pin) values (%(run)s, %(org)s, 'openai:m')",
        "insert into batched_calls (call_id, org_id, run_id, step, attempt, pin, request, tokens) "
        "values (%(run)s, %(org)s, %(run)s, 'think', 1, 'openai:m', %(ref)s, 1)",
        "insert into reservations (scope, holder, fence, org_id, tokens, nano_usd) "
        "values ('run:' || %(run)s, 'perform:think:1', 1, %(org)s, 1, 1)",
        "insert into run_vaults (org_id, run_id, vault) values (%(org)s, %(run)s, %(ref)s)",
        "insert into run_vaults (org_id, run_id, vault) values (%(org)s, %(run)s, %(ref)s)",
        "insert into spans values (%(run)s, 's', %(org)s, null, 'n', 1, 2, true, %(empty)s)",
    ):
        owner.execute(statement, values)
