"""Limits on runs at once, and priorities: the same as on the PostgreSQL engine, with the queue in PostgreSQL on both."""

from __future__ import annotations

from typing import Any

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import Bank, Model, Observer, until
from engines.temporal.conftest import Histories, TemporalServer
from interlock.admission.quotas import Quota


async def held(model: Model, count: int = 1) -> None:
    """So many calls are under way, or were; or more, for one that was cut off is made again."""
    await until(lambda: model.asked("think") >= count, lambda: f"the model was asked {model.asked('think')} times")


async def passed(desk: Desk, seen: Observer) -> None:
    """The bridge has claimed anew since: a run without a limit went through it, from beginning to end."""
    assert await seen.finished(await desk.start("pay_keyed")) == ["succeeded"]


async def test_no_more_runs_at_once_than_the_quota(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model
) -> None:
    await desk.app.admin.set_quota(desk.admin, Quota("workflow", "only_think", concurrency=2))
    model.hold("think")
    for _ in range(2):
        await open_app(start_worker=True)
    runs = [await desk.start("only_think") for _ in range(5)]
    await held(model, 2)
    await passed(desk, seen)
    # Of runs, not calls: one whose heartbeat was late on a busy machine is made again.
    assert seen.rows("select count(distinct run_id) from claims") == [(2,)]
    places = [seen.queue(run) for run in runs]
    assert [(place["worker"], place["fence"]) for place in places if place["worker"] is None] == [(None, 0)] * 3
    assert {place["worker"] for place in places if place["fence"]} == {"temporal"}
    model.release("think")
    assert await seen.finished(*runs) == ["succeeded"] * 5
    assert seen.rows("select count(*) from queue") == [(0,)]


async def test_a_run_that_waits_for_a_person_leaves_its_place(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    await desk.app.admin.set_quota(desk.admin, Quota("org", concurrency=1))
    await open_app(start_worker=True)
    asking = [await desk.start("ask_pay") for _ in range(2)]
    reviews = [await seen.review(run) for run in asking]
    for run in asking:
        await seen.asleep(run)
    await passed(desk, seen)
    for review in reviews:
        await desk.decide(review, "approve")
    assert await seen.finished(*asking) == ["succeeded"] * 2
    seen.story(*asking)


async def test_what_wakes_by_a_decision_waits_for_a_place_and_what_works_is_told_at_once(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model
) -> None:
    await desk.app.admin.set_quota(desk.admin, Quota("workflow", "ask_beside_think", concurrency=1))
    await open_app(start_worker=True)
    waiting = await desk.start("ask_beside_think")
    review = await seen.review(waiting)
    await until(lambda: "step_succeeded think" in seen.kinds(waiting), lambda: f"{seen.kinds(waiting)}")
    await seen.asleep(waiting)
    model.hold("think")
    working = await desk.start("ask_beside_think")
    await held(model, 2)
    await desk.decide(review, "approve")
    await passed(desk, seen)
    assert seen.rows("select run_id from signals") == [(waiting,)], "it is told when it has a place"
    assert seen.kinds(waiting) == ["run_started", "step_succeeded think"]

    await desk.cancel(working)
    await until(lambda: "cancel_requested" in seen.kinds(working), lambda: f"not told: {seen.kinds(working)}")
    assert seen.rows("select run_id from signals") == [(waiting,)]
    model.release("think")
    assert await seen.finished(working, waiting) == ["cancelled", "succeeded"]
    seen.story(working, waiting)


async def test_a_place_is_free_again_when_nothing_comes_of_what_a_run_was_told(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank
) -> None:
    """A signal that nobody waits for gives no event; it must not leave a run that only waits with a place for ever."""
    await open_app(start_worker=True)
    run = await desk.start("ask_pay")
    await seen.review(run)
    await seen.asleep(run)
    seen.connection.execute(
        "insert into signals (org_id, run_id, event) select org_id, run_id, "
        """'{"type": "timer_fired", "timer": "nobody", "at": 0}' from runs where run_id = %s""",
        (run,),
    )
    seen.connection.execute("update queue set available_at = now() where run_id = %s", (run,))
    await until(lambda: seen.rows("select count(*) from signals") == [(0,)], lambda: "not delivered")
    bound = "select worker, lease_until < now() + interval '1 minute' from queue where run_id = %s"
    assert seen.rows(bound, run) == [("temporal", True)]
    seen.connection.execute("update queue set lease_until = now() where run_id = %s", (run,))
    await seen.asleep(run)


async def test_the_more_urgent_run_is_next(desk: Desk, open_app: OpenApp, seen: Observer, model: Model) -> None:
    await desk.app.admin.set_quota(desk.admin, Quota("workflow", "only_think", concurrency=1))
    model.hold("think")
    await open_app(start_worker=True)
    first = await desk.start("only_think")
    await held(model)
    order = [await urgent(desk, priority) for priority in (-100, 0, 100)]
    model.release("think")
    assert await seen.finished(first, *order) == ["succeeded"] * 4
    started = seen.rows("select run_id from runs order by started_at")
    assert [run for (run,) in started] == [first, *reversed(order)]


@pytest.fixture
def really(temporal: dict[str, Any], real_server: TemporalServer) -> None:
    """This test's runs go to the real server."""
    temporal |= {"address": real_server.address, "cached_runs": 100}


@pytest.mark.usefixtures("really")
async def test_temporal_knows_what_is_urgent_and_not_whose_it_is(
    open_app: OpenApp, desk: Desk, seen: Observer, model: Model, histories: Histories
) -> None:
    """Without a limit all runs are handed over. In what order their steps are done is the server's: it promises to be near."""
    await open_app(start_worker=True)
    first, early, late = [await urgent(desk, priority) for priority in (0, 100, -100)]
    assert set(await seen.finished(first, early, late)) == {"succeeded"}
    described = {run: (await histories.handle(run).describe()).raw_description for run in (first, early, late)}
    priorities = [one.workflow_execution_info.priority for one in described.values()]
    assert [one.priority_key for one in priorities] == [3, 1, 5]
    (key,) = {one.fairness_key for one in priorities}
    assert len(key) == 32
    assert b"acme" not in b"".join(one.SerializeToString() for one in described.values())


async def urgent(desk: Desk, priority: int) -> str:
    run, _ = await desk.app.submission.accept(
        desk.admin, "only_think", {"ticket": "t", "text": "x"}, None, priority=priority
    )
    return run
