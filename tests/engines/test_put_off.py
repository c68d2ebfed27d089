"""Calls that were cut off and then had to wait for their turn: what was in doubt before the waiting is so after it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import Bank, Observer, pay, until, workflow, write
from interlock.admission.quotas import Quota
from interlock.services.views.runs import QuotaWait


@pytest.mark.parametrize(("kind", "tool"), [("pay_blind", "refund_blind"), ("pay_keyed", "refund_keyed")])
async def test_cut_off_and_then_put_off_it_stays_in_doubt(
    kind: str, tool: str, desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank, strict: Bank
) -> None:
    """The dead worker's slot is taken still, so whoever takes over has to wait; a cancellation meanwhile asks a person."""
    await desk.app.admin.set_quota(desk.admin, Quota("tool", tool, concurrency=1))
    worker = await spawn(crash=("after call", 1)).ready()
    run = await desk.start(kind, ticket="a")
    assert await worker.ended() == -signal.SIGKILL
    assert bank.refunds + strict.refunds == {"a": 1}
    await open_app(start_worker=True)
    await until(lambda: "step_deferred pay" in seen.kinds(run), lambda: str(seen.kinds(run)))
    waits: list[QuotaWait] = []
    while not waits:  # between two attempts
        waits = [one for one in (await desk.app.runs.get(desk.admin, run)).waits_for if isinstance(one, QuotaWait)]
    assert [one.quota for one in waits] == [f"tool {tool}: 1 at once"]
    await desk.cancel(run)
    review = await seen.review(run, "confirm")
    assert seen.effect(run) == "unknown"
    seen.connection.execute("update quota_uses set lease_until = now() - interval '1 second'")  # for the undoing
    await desk.decide(review, "approve", {"refund_id": "ref-000001", "amount": 5, "currency": "EUR"})
    assert await seen.finished(run) == ["cancelled"]
    assert bank.refunds + strict.refunds == {"a": 1}
    assert bank.reversed_tickets + strict.reversed_tickets == ["a"]
    assert seen.effect(run) == "compensated"


async def test_cut_off_and_then_put_off_no_fallback_pays_again(
    project: Path, desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank, strict: Bank
) -> None:
    """Its deadline passes while it waits for the slot: that is a question to a person, not a failure."""
    given = "{ticket_id: $input.ticket, customer_id: cus-001, amount: 5, currency: EUR, reason: asked for, bank_url: 'http://${bank}'}"
    step = (
        pay("pay", "refund_blind", "strict") + f"  deadline: 4\n  fallback: [{{tool: refund_keyed, input: {given}}}]\n"
    )
    write(project, workflow("w", step, allow="refund_blind, refund_keyed"))
    await desk.app.admin.deploy(desk.admin, desk.app.read_project())
    await desk.app.admin.set_quota(desk.admin, Quota("tool", "refund_blind", concurrency=1))
    worker = await spawn(crash=("after call", 1)).ready()
    run = await desk.start("w", ticket="a")
    assert await worker.ended() == -signal.SIGKILL
    await open_app(start_worker=True)
    review = await seen.review(run, "confirm")
    await desk.decide(review, "approve", {"refund_id": "ref-000001", "amount": 5, "currency": "EUR"})
    assert await seen.finished(run) == ["succeeded"]
    assert (strict.refunds, bank.refunds) == ({"a": 1}, {})
