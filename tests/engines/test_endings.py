"""Runs that do not end well: cancelled, undone in reverse order, or dead because they could not be undone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.conftest import Desk, OpenApp, faults
from engines.harness import BOOM, Bank, Model, Observer, pay, refund_tool, until, workflow, write
from interlock.base.errors import Conflict


async def test_cancelled_while_waiting_for_a_review(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    await open_app(start_worker=True)
    run = await desk.start("ask_pay")
    review = await seen.review(run)
    await seen.asleep(run)
    await desk.cancel(run)
    assert await seen.finished(run) == ["cancelled"]
    assert seen.run(run)["reason"] == "cancelled: no longer needed"
    with pytest.raises(Conflict):
        await desk.decide(review, "approve")
    with pytest.raises(Conflict):
        await desk.cancel(run)
    assert bank.requests == 0
    assert seen.rows("select status from reviews") == [("closed",)]
    seen.story(run)


async def test_cancelled_before_any_worker_saw_it(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    run = await desk.start("pay_keyed")
    await desk.cancel(run)
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["cancelled"]
    assert bank.requests == 0


async def test_cancelled_while_a_step_works(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model
) -> None:
    """The step is awaited, nothing new begins, and what was paid is taken back."""
    model.hold("think")
    await open_app(start_worker=True)
    run, fresh = await desk.start("pay_think", ticket="a"), await desk.start("think_pay", ticket="b")
    await until(lambda: model.asked("think") == 2, lambda: "the model is not asked")
    await desk.cancel(run)
    await desk.cancel(fresh)
    for one in (run, fresh):
        await until(lambda one=one: "cancel_requested" in seen.kinds(one), lambda: "not heard")  # type: ignore[misc]
    assert {seen.status(run), seen.status(fresh)} == {"running"}
    model.release("think")
    assert await seen.finished(run, fresh) == ["cancelled", "cancelled"]
    assert seen.kinds(run)[-2:] == ["step_succeeded think", "compensation_succeeded pay"]
    assert bank.refunds == {"a": 1}
    assert bank.reversed_tickets == ["a"]
    assert (seen.effect(run), seen.effect(fresh)) == ("compensated", None)
    seen.story(run, fresh)


async def test_undone_in_reverse_order(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    await open_app(start_worker=True)
    run = await desk.start("pay_twice_boom")
    assert await seen.finished(run) == ["failed"]
    assert bank.refunds == {"first": 1, "second": 1}
    assert bank.reversed_tickets == ["second", "first"]
    assert seen.kinds(run)[-3:] == [
        "step_failed boom",
        "compensation_succeeded pay_b",
        "compensation_succeeded pay_a",
    ]
    assert "boom" in seen.run(run)["reason"]
    undone = [entry for entry in seen.audit(run) if entry["event_type"] == "tool.compensation"]
    assert [entry["detail"]["step"] for entry in undone] == ["pay_b", "pay_a"]
    # The bank knows an undo by a key of its own, so a repetition would be recognisable.
    keys = [row["key"] for row in bank.rows("reversals")]
    assert len({*keys, *(row["key"] for row in bank.rows("refunds"))}) == 4


async def test_cancelled_while_undoing(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """It is ending already: the undoing goes on and the first reason stays."""
    bank.hold(after=2)  # the payments
    await open_app(start_worker=True)
    run = await desk.start("pay_twice_boom")
    await until(lambda: bank.reversed_tickets == ["second"], lambda: f"not undoing: {seen.kinds(run)}")
    assert seen.status(run) == "compensating"
    await desk.cancel(run)
    bank.release()
    assert await seen.finished(run) == ["failed"]
    assert bank.reversed_tickets == ["second", "first"]
    assert seen.rows("select count(*) from signals") == [(0,)]
    seen.story(run)


@faults("bank", "--fail-every", "3")
async def test_undoing_is_tried_again(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """Requests 1 and 2 pay, 3 is the first undo and fails, 4 undoes it, 5 the other."""
    await open_app(start_worker=True)
    run = await desk.start("pay_twice_boom")
    assert await seen.finished(run) == ["failed"]
    assert bank.reversed_tickets == ["second", "first"]
    assert bank.requests == 5
    assert seen.kinds(run).count("compensation_failed pay_b") == 1


async def test_what_cannot_be_undone_is_dead(
    project: Path, open_app: OpenApp, seen: Observer, bank: Bank, desk: Desk
) -> None:
    broken = '\n\ndef compensate(input, output, context):\n    raise RuntimeError("the bank is closed")\n'
    write(
        project,
        {
            **refund_tool("refund_final", "bank", "honours_idempotency", "compensate", code=broken),
            **workflow(
                "pay_final_boom",
                pay("pay_a", "refund_keyed", "bank", ticket="first"),
                pay("pay_b", "refund_final", "bank", ticket="second"),
                BOOM,
                allow="refund_keyed, refund_final, boom",
            ),
        },
    )
    await open_app(start_worker=True, deploy=True)
    run = await desk.start("pay_final_boom")
    assert await seen.finished(run) == ["dead"]
    assert "could not undo pay_b" in seen.run(run)["reason"]
    # The one that can be undone is undone all the same.
    assert bank.reversed_tickets == ["first"]
    assert (seen.effect(run, "pay_a"), seen.effect(run, "pay_b")) == ("compensated", "succeeded")
    seen.story(run)


async def test_a_process_that_ends_writes_down_how_far_the_audit_log_had_come(
    desk: Desk, open_app: OpenApp, seen: Observer, data_dir: Path
) -> None:
    app = await open_app(start_worker=True)
    run = await desk.start("only_think")
    assert await seen.finished(run) == ["succeeded"]
    await app.__aexit__(None, None, None)
    (head,) = seen.rows("select seq, hash from audit_heads where org_id = %s", desk.admin.org_id)
    kept = json.loads((data_dir / "audit-heads.json").read_text())["heads"]
    assert kept[desk.admin.org_id] == list(head)
