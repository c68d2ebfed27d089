"""What a run needs of its engine, and what only this one has: timers, cancellations and signals of Temporal's own."""

from __future__ import annotations

from pathlib import Path

from temporalio.api.enums.v1 import EventType

from engines.conftest import Desk, OpenApp
from engines.harness import PERMIT_ALL, Bank, Model, Observer, pay, until, workflow, write
from engines.temporal.conftest import Histories
from interlock.engines.temporal.tasks import SIGNAL_TYPE
from interlock.identity.principal import Principal
from interlock.policy.cedar import DEFAULT_POLICY
from interlock.testing import rate_limited

TIMER_FIRED = EventType.EVENT_TYPE_TIMER_FIRED
TIMER_CANCELED = EventType.EVENT_TYPE_TIMER_CANCELED
SIGNALED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED


async def test_steps_in_a_row(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model, admin: Principal
) -> None:
    await open_app(start_worker=True)
    runs = [await desk.start("think_pay", ticket=f"t{number}") for number in range(3)]
    assert await seen.finished(*runs) == ["succeeded"] * 3
    assert bank.refunds == {"t0": 1, "t1": 1, "t2": 1}
    assert model.asked("think") == 3
    for run in runs:
        assert seen.kinds(run) == ["run_started", "step_succeeded think", "step_succeeded pay"]
        assert seen.effect(run) == "succeeded"
    assert seen.run(runs[0])["input_tokens"] > 0
    assert seen.rows("select distinct engine from runs") == [("temporal",)]
    assert seen.rows("select count(*) from queue") == [(0,)]
    assert seen.rows("select count(*) from claims") == [(0,)]
    assert {one["event_type"] for one in seen.audit(runs[0])} == {
        "run.created",
        "model.call",
        "tool.call",
        "run.finished",
    }
    seen.story(*runs)
    assert (await desk.app.audit.verify(admin.org_id)).ok


async def test_a_run_of_the_other_engine_is_left_alone(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model
) -> None:
    """A run ends on the engine it began on, whatever new runs get."""
    other = await open_app(engine="postgres")
    old = (await other.submission.accept(desk.admin, "pay_keyed", {"ticket": "old"}, None))[0]
    await open_app(start_worker=True)
    new = await desk.start("pay_keyed", ticket="new")
    assert await seen.finished(new) == ["succeeded"]
    assert seen.kinds(old) == []
    await other.start_worker()
    assert await seen.finished(old) == ["succeeded"]
    assert bank.refunds == {"old": 1, "new": 1}


async def test_a_backoff_is_a_timer_and_outlives_its_worker(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model, histories: Histories
) -> None:
    model.script(rate_limited(retry_after=1.5))
    first = await open_app(start_worker=True)
    run = await desk.start("only_think")
    await until(lambda: "step_failed think" in seen.kinds(run), lambda: f"no failure: {seen.kinds(run)}")
    await first.__aexit__(None, None, None)
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    assert seen.kinds(run)[1:4] == ["step_failed think", "timer_fired retry:think:1", "step_succeeded think"]
    failed, fired = (next(e for e in seen.journal(run) if e["type"] == kind) for kind in ("step_failed", "timer_fired"))
    assert fired["at"] - failed["at"] >= 1.5
    assert await histories.count(run, TIMER_FIRED) == 1


async def test_a_cancelled_run_cancels_its_timer(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model, histories: Histories
) -> None:
    model.script(rate_limited(retry_after=3600))
    await open_app(start_worker=True)
    run = await desk.start("only_think")
    await until(lambda: seen.status(run) == "waiting", lambda: f"not waiting: {seen.kinds(run)}")
    await desk.cancel(run)
    assert await seen.finished(run) == ["cancelled"]
    assert await histories.handle(run).result() == "cancelled"
    assert await histories.count(run, TIMER_CANCELED) == 1
    assert await histories.count(run, TIMER_FIRED) == 0


async def test_parallel_branches_are_activities_at_once(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model, project: object
) -> None:
    """One branch waits for a person while the other one works; neither holds the other up."""
    model.hold("think")
    await open_app(start_worker=True)
    run = await desk.start("ask_beside_think")
    review = await seen.review(run)
    await until(lambda: model.asked("think") == 1, lambda: "the model is not asked")
    model.release("think")
    await until(lambda: "step_succeeded think" in seen.kinds(run), lambda: f"not on record: {seen.kinds(run)}")
    assert seen.status(run) == "waiting"
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    seen.story(run)


async def test_cancelled_by_temporals_own_means(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model, histories: Histories
) -> None:
    """An operator cancels the workflow: the step under way is finished, and what it did is undone."""
    model.hold("think")
    await open_app(start_worker=True)
    run = await desk.start("pay_think", ticket="a")
    await until(lambda: model.asked("think") == 1, lambda: "the model is not asked")
    await histories.handle(run).cancel()
    await until(lambda: "cancel_requested" in seen.kinds(run), lambda: f"not heard: {seen.kinds(run)}")
    model.release("think")
    assert await seen.finished(run) == ["cancelled"]
    assert seen.run(run)["reason"] == "cancelled: cancelled in Temporal"
    assert (bank.refunds, bank.reversed_tickets) == ({"a": 1}, ["a"])
    assert seen.effect(run) == "compensated"
    seen.story(run)


async def test_a_signal_delivered_again_counts_once(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, histories: Histories
) -> None:
    """As after a crash between delivering a signal and deleting its row."""
    app = await open_app(start_worker=True)
    delivered: list[list[dict[str, object]]] = []
    bridge = app.engine._bridge
    original = bridge._signal

    async def twice(run_id: str, signals: list[dict[str, object]]) -> bool:
        delivered.append(signals)
        await original(run_id, signals)
        return bool(await original(run_id, list(reversed(signals))))

    bridge._signal = twice
    run = await desk.start("ask_pay", ticket="a")
    await desk.decide(await seen.review(run), "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert len(delivered) == 1
    assert await histories.count(run, SIGNALED) == 2
    assert seen.kinds(run) == ["run_started", "review_decided ask", "step_succeeded pay"]
    assert SIGNAL_TYPE == "deliver", "its name stands in histories: it may not change"


async def test_a_run_that_temporal_lost_goes_on_from_its_journal(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, histories: Histories
) -> None:
    await open_app(start_worker=True)
    run = await desk.start("ask_pay", ticket="a")
    review = await seen.review(run)
    await histories.handle(run).terminate()
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1}
    assert seen.kinds(run) == ["run_started", "review_decided ask", "step_succeeded pay"]
    seen.story(run)


async def test_a_call_waits_for_its_approval(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, project: Path
) -> None:
    """A review is answered under another worker than the one that opened it, and closed at its deadline."""
    late = pay("pay", "refund_keyed", "bank").replace("kind: tool", "kind: tool\n  deadline: 0.5")
    (project / "workflows/ask_pay.yaml").unlink()  # whose review does not show what it approves
    write(project, {"policies/main.cedar": DEFAULT_POLICY, **workflow("late", late, allow="refund_keyed")})
    await desk.app.admin.deploy(desk.admin, desk.app.read_project())
    first = await open_app(start_worker=True)
    run, slow = await desk.start("pay_keyed", ticket="t-1"), await desk.start("late", ticket="t-2")
    review = await seen.review(run, "approve_act")
    assert await seen.finished(slow) == ["failed"]
    assert seen.rows("select status from reviews where run_id = %s", slow) == [("closed",)]
    await first.__aexit__(None, None, None)
    await open_app(start_worker=True)
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"t-1": 1}
    assert seen.rows("select consumed_at is not null from approvals") == [(True,)]
    seen.story(run, slow)


async def test_an_activation_applies_to_the_next_call_of_a_run_in_flight(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, model: Model
) -> None:
    """The process that activates drives no runs; the worker gets the policy set by a notification."""
    worker, names = await open_app(start_worker=True), desk.app.read_project().names
    model.hold("think")
    run = await desk.start("think_pay")
    await until(lambda: model.asked("think") == 1, lambda: "the model is not asked")
    strict = PERMIT_ALL + 'forbid(principal, action, resource == Tool::"refund_keyed");'
    version = (await desk.app.services.policies.activate_text(desk.admin, strict, names)).version
    await until(lambda: worker.policies.of(desk.admin.org_id).version == version, lambda: "not read")
    model.release("think")
    assert await seen.finished(run) == ["failed"]
    calls = [one for one in seen.audit(run) if one["event_type"] == "tool.call"]
    assert [(one["decision"], one["policy_version"]) for one in calls] == [("deny", version)]
    assert bank.requests == 0
