"""A worker is killed at every boundary of the effect ledger; another one takes over; the bank counts.

Each kill strikes three runs at the same place. They differ in what their tool promises: to honour the idempotency key, to
answer a probe, or nothing. Only the first one's bank looks at keys; the other bank pays every time it is asked.
"""

from __future__ import annotations

import signal

import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import Bank, Observer
from interlock.identity.principal import Principal

KINDS = ("pay_keyed", "pay_probed", "pay_blind")

# Boundary → what the ledger says at the moment of death, and whether the bank had paid by then.
BOUNDARIES = {
    "before intend": (None, False),
    "after intend": ("intended", False),
    "after executing": ("executing", False),
    "after call": ("executing", True),
    "after settle": ("succeeded", True),
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_killed_worker_leaves_one_refund(
    boundary: str,
    desk: Desk,
    spawn: Spawn,
    open_app: OpenApp,
    seen: Observer,
    bank: Bank,
    strict: Bank,
    admin: Principal,
) -> None:
    ledger, paid = BOUNDARIES[boundary]
    worker = await spawn(crash=(boundary, len(KINDS))).ready()
    runs = {kind: await desk.start(kind, ticket=kind) for kind in KINDS}

    assert await worker.ended() == -signal.SIGKILL
    assert {seen.effect(run) for run in runs.values()} == {ledger}
    assert bank.refunds + strict.refunds == (dict.fromkeys(KINDS, 1) if paid else {})

    await open_app(start_worker=True)
    if ledger == "executing":
        # Nobody can know, and the tool promises nothing: a person is asked, and until then nothing is done.
        review = await seen.review(runs["pay_blind"], "confirm")
        assert seen.effect(runs["pay_blind"]) == "unknown"
        assert seen.status(runs["pay_blind"]) == "waiting"
        assert strict.refunds["pay_blind"] == int(paid)
        await desk.decide(
            review, "approve" if paid else "reject", {"refund_id": "ref-1", "amount": 5, "currency": "EUR"}
        )
    assert set(await seen.finished(*runs.values())) == {"succeeded"}

    assert bank.refunds + strict.refunds == dict.fromkeys(KINDS, 1)
    assert {seen.effect(run) for run in runs.values()} == {"succeeded"}
    seen.story(*runs.values())
    assert (await desk.app.audit.verify(admin.org_id)).ok


async def test_the_bank_would_show_a_doubled_refund(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, strict: Bank
) -> None:
    """The control: a tool that claims to honour keys before a bank that does not."""
    worker = await spawn(crash=("after call", 1)).ready()
    run = await desk.start("pay_liar", ticket="doubled")
    assert await worker.ended() == -signal.SIGKILL

    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    assert strict.refunds == {"doubled": 2}


@pytest.mark.parametrize("boundary", ["after compensation", "after compensation settle"])
async def test_killed_while_undoing(
    boundary: str, desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    worker = await spawn(crash=(boundary, 1)).ready()
    run = await desk.start("pay_twice_boom")
    assert await worker.ended() == -signal.SIGKILL
    assert seen.status(run) == "compensating"
    assert bank.reversed_tickets == ["second"]

    await open_app(start_worker=True)
    assert await seen.finished(run) == ["failed"]
    assert bank.refunds == {"first": 1, "second": 1}
    assert bank.reversed_tickets == ["second", "first"]
    assert seen.effect(run, "pay_a") == seen.effect(run, "pay_b") == "compensated"
    seen.story(run)
