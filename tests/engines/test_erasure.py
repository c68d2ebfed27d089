"""A person is erased: what is stored about them is unreadable everywhere at once, and their runs still come to an end."""

from __future__ import annotations

import signal

import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import Bank, Model, Observer
from interlock.base.errors import Erased


async def erase(desk: Desk, customer: str) -> None:
    keys = desk.app.keys
    assert await keys.destroy(desk.admin.org_id, keys.pseudonym(desk.admin.org_id, customer))


async def test_erased_in_every_process(desk: Desk, open_app: OpenApp, seen: Observer) -> None:
    """Also where the key was in use a moment ago."""
    app = await open_app(start_worker=True)
    run = await desk.start("only_think", customer="cus-001")
    other = await desk.start("only_think", customer="cus-002")
    await seen.finished(run, other)
    for one in (app, desk.app):
        assert await one.runs.result(desk.admin, run) == {"words": "well"}
    await erase(desk, "cus-001")
    for one in (app, desk.app):
        with pytest.raises(Erased):
            await one.runs.result(desk.admin, run)
        with pytest.raises(Erased):
            await one.runs.values(desk.admin, run)
        assert await one.runs.result(desk.admin, other) == {"words": "well"}
    # That something happened stays on record.
    assert (await desk.app.runs.get(desk.admin, run)).status == "succeeded"
    assert (await desk.app.audit.verify(desk.admin.org_id)).ok


async def test_nothing_more_is_stored_about_an_erased_person(desk: Desk, seen: Observer) -> None:
    await desk.start("only_think", customer="cus-001")
    await erase(desk, "cus-001")
    with pytest.raises(Erased):
        await desk.start("only_think", customer="cus-001")
    assert seen.rows("select count(*) from runs") == [(1,)]


async def test_erased_before_the_run_began(desk: Desk, open_app: OpenApp, seen: Observer, model: Model) -> None:
    run = await desk.start("only_think", customer="cus-001")
    await erase(desk, "cus-001")
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["failed"]
    assert "erased" in seen.run(run)["reason"]
    assert model.count == 0


async def test_erased_while_a_review_is_open(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """The question can still be listed and answered; the run then ends, without paying anybody."""
    await open_app(start_worker=True)
    run = await desk.start("ask_pay", customer="cus-001")
    review = await seen.review(run)
    await seen.asleep(run)
    await erase(desk, "cus-001")
    listed = await desk.app.reviews.page(desk.admin)
    assert [(one.review_id, one.show) for one in listed] == [(review, {})]
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["failed"]
    assert bank.requests == 0


async def test_erased_in_doubt(desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, strict: Bank) -> None:
    """A worker dies in the middle of a refund and the customer is erased: a person is asked, nothing is guessed."""
    worker = await spawn(crash=("after call", 1)).ready()
    run = await desk.start("pay_probed", customer="cus-001", ticket="a")
    assert await worker.ended() == -signal.SIGKILL
    await erase(desk, "cus-001")
    await open_app(start_worker=True)
    review = await seen.review(run, "confirm")
    assert seen.effect(run) == "unknown"
    await desk.decide(review, "approve", {"refund_id": "ref-000001", "amount": 5, "currency": "EUR"})
    assert await seen.finished(run) == ["succeeded"]
    assert (strict.requests, strict.refunds, seen.effect(run)) == (1, {"a": 1}, "succeeded")
