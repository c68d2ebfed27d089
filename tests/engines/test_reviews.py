"""Reviews: a decision counts once, whenever it comes, and waiting costs nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from engines.conftest import Desk, OpenApp, faults
from engines.harness import Bank, Model, Observer, until
from interlock.api.server import create_api
from interlock.app import App
from interlock.base.errors import Conflict
from interlock.store.commit import Commit


async def test_a_review_waits_over_a_restart(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    first = await open_app(start_worker=True)
    run = await desk.start("ask_pay", ticket="a")
    review = await seen.review(run)
    await seen.asleep(run)
    await first.__aexit__(None, None, None)

    await open_app(start_worker=True)
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1}
    assert await desk.app.runs.result(desk.admin, run) == {"approved": True}


async def test_a_decision_without_any_worker_is_kept(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    first = await open_app(start_worker=True)
    run = await desk.start("ask_pay", ticket="a")
    review = await seen.review(run)
    await seen.asleep(run)
    await first.__aexit__(None, None, None)
    await desk.decide(review, "approve")
    assert seen.kinds(run) == ["run_started"]

    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1}


async def test_a_decision_while_the_run_is_driven(desk: Desk, open_app: OpenApp, seen: Observer, model: Model) -> None:
    """Beside the review a model thinks, so a worker holds the run when the decision comes."""
    model.hold("think")
    await open_app(start_worker=True)
    run = await desk.start("ask_beside_think")
    review = await seen.review(run)
    await until(lambda: model.asked("think") == 1, lambda: "the model is not asked")
    await desk.decide(review, "approve")
    await until(lambda: "review_decided ask" in seen.kinds(run), lambda: f"not heard: {seen.kinds(run)}")
    assert seen.status(run) == "running"
    model.release("think")
    assert await seen.finished(run) == ["succeeded"]
    assert seen.kinds(run) == ["run_started", "review_decided ask", "step_succeeded think"]
    assert seen.rows("select count(*) from signals") == [(0,)]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_decision_while_the_run_is_put_to_sleep(
    moment: str, desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lands just before or just after the transaction that gives the run back until something happens."""
    app = await open_app(start_worker=True)
    original = app.committer.submit
    decided: list[str] = []

    async def decide() -> None:
        if not decided:
            decided.append(await seen.review(run))
            await desk.decide(decided[0], "approve")

    async def submit(commit: Commit) -> None:
        released = any(row.run_id == run for row in commit.released)
        if released and moment == "before":
            await decide()
        await original(commit)
        if released and moment == "after":
            await decide()

    run = ""
    monkeypatch.setattr(app.committer, "submit", submit)
    run = await desk.start("ask_pay")
    assert await seen.finished(run) == ["succeeded"]
    assert decided
    seen.story(run)


async def test_decisions_as_fast_as_reviews_open(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """Twenty runs, each decided the moment its review can be seen: some while leased, some while being released."""
    runs = [await desk.start("ask_pay", ticket=f"r{number}") for number in range(20)]
    await open_app(start_worker=True)
    decided: dict[str, str] = {}

    async def all_decided() -> bool:
        for review_id, run_id in seen.rows("select review_id, run_id from reviews where status = 'open'"):
            decided[run_id] = "approve" if len(decided) % 2 else "reject"
            await desk.decide(review_id, decided[run_id])
        return len(decided) == len(runs)

    await until(all_decided, lambda: f"decided {len(decided)}")
    assert set(await seen.finished(*runs)) == {"succeeded"}
    approved = {f"r{number}": 1 for number, run in enumerate(runs) if decided[run] == "approve"}
    assert len(approved) == 10
    assert seen.rows("select count(*) from effects") == [(20,)]  # on_reject: continue, so all go on to pay
    assert bank.refunds == {f"r{number}": 1 for number in range(20)}
    for run in runs:
        result = await desk.app.runs.result(desk.admin, run)
        assert result == {"approved": decided[run] == "approve"}
    seen.story(*runs)


@faults("bank", "--delay", "0.5")
async def test_only_the_first_decision_counts(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """Ten people decide at once, in both ways, from two processes."""
    other = Desk(await open_app(), desk.admin)
    await open_app(start_worker=True)
    run = await desk.start("ask_pay", ticket="a")
    review = await seen.review(run)
    desks, decisions = (desk, other), ("approve", "reject")
    answers = await asyncio.gather(
        *(desks[n % 2].decide(review, decisions[n // 2 % 2]) for n in range(10)), return_exceptions=True
    )
    refused = [answer for answer in answers if answer is not None]
    # Those that say the same as the first are answered like it if they come after it, as a repeated request is.
    assert 4 <= len(refused) <= 9
    assert {type(answer) for answer in refused} == {Conflict}
    assert await seen.finished(run) == ["succeeded"]
    assert seen.kinds(run).count("review_decided ask") == 1
    assert (bank.requests, bank.refunds) == (1, {"a": 1})
    assert [entry["event_type"] for entry in seen.audit(run)].count("review.decided") == 1
    await desk.decide(review, "approve")  # the same once more changes nothing
    with pytest.raises(Conflict):
        await desk.decide(review, "reject")
    assert (bank.requests, bank.refunds) == (1, {"a": 1})


async def test_another_decision_is_a_409_and_the_same_is_answered_again(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    app: App = await open_app(start_worker=True)
    key = await app.admin.issue_key(desk.admin, "rita", frozenset({"reviewer", "developer"}))
    transport = httpx.ASGITransport(create_api(app.services, payload_bytes=app.settings.limits.payload_bytes))
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        body: dict[str, Any] = {"workflow": "ask_pay", "input": {"ticket": "a"}}
        run = (await client.post("/v1/runs", json=body)).json()["run_id"]
        review = await seen.review(run)
        url = f"/v1/reviews/{review}/decision"
        assert (await client.post(url, json={"decision": "approve"})).status_code == 200
        assert (await client.post(url, json={"decision": "approve"})).status_code == 200
        second = await client.post(url, json={"decision": "reject"})
        assert (second.status_code, second.json()["error"]["code"]) == (409, "conflict")
        assert await seen.finished(run) == ["succeeded"]
        third = await client.post(url, json={"decision": "reject"})
        assert third.status_code == 409
    assert (bank.requests, bank.refunds) == (1, {"a": 1})


async def test_a_decision_is_about_the_same_people(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """What a person said about a customer's case is erased with the customer."""
    await open_app(start_worker=True)
    run = await desk.start("ask_pay", customer="cus-001")
    await desk.decide(await seen.review(run), "approve")
    await seen.finished(run)
    decision = next(event for event in seen.journal(run) if event["type"] == "review_decided")["output"]["labels"]
    asked = seen.rows("select input from runs where run_id = %s", run)[0][0]["labels"]
    assert decision["subjects"] == asked["subjects"] != []
    assert decision["trust"] == "user"
