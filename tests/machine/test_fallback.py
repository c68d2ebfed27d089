"""Fallbacks, deadlines of steps and deferrals: what happens before a step has failed for good."""

from __future__ import annotations

import pytest

from interlock.machine.events import CloseReview, Compensate, Finish, OpenReview, Perform, RunStatus, StartTimer
from interlock.machine.retry import jitter

from .by_hand import SEED, Run

PAY = """
- id: pay
  kind: tool
  tool: send
  retry: {max_attempts: 2, backoff: 1}
  deadline: 60
  fallback: [{tool: book}, {value: {}}]
- {id: then, kind: tool, tool: look}
"""
LATE = 'step "pay": its deadline of 60 s passed'


def test_the_first_fallback_then_the_second_then_failure() -> None:
    run = Run(PAY)
    assert run.started == [Perform("pay", 1), StartTimer("limit:pay", 1060.0)]
    assert run.failed("pay", 1) == [Perform("pay", 2)]
    assert run.state.steps["pay"].variant == 1
    assert run.failed("pay", 2, kind="invalid") == [Perform("pay", 3)]
    assert run.failed("pay", 3) == [Finish(RunStatus.FAILED, 'step "pay": it broke')]


def test_tries_begin_anew_with_every_fallback() -> None:
    run = Run(PAY)
    run.failed("pay", 1, "transient")
    run.fired("retry:pay:1")
    assert run.failed("pay", 2, "transient") == [Perform("pay", 3)]
    due = run.now + jitter(SEED, "pay~1", 1)
    assert run.failed("pay", 3, "transient") == [StartTimer("retry:pay:3", due)]
    assert run.fired("retry:pay:3") == [Perform("pay", 4)]
    assert run.failed("pay", 4, "transient") == [Perform("pay", 5)]


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [("denied", RunStatus.FAILED, 'step "pay": it broke'), ("budget", RunStatus.PARTIAL, "it broke")],
)
def test_nothing_is_tried_in_the_place_of_a_refusal(kind: str, status: RunStatus, reason: str) -> None:
    run = Run(PAY)
    assert run.failed("pay", kind=kind) == [Finish(status, reason)]


def test_what_is_undone_is_what_was_done() -> None:
    """`send` cannot be undone, its fallback `book` can."""
    run = Run(PAY)
    run.failed("pay", 1)
    assert run.done("pay", 2) == [Perform("then", 1)]
    assert run.failed("then") == [Compensate("pay", 1)]
    run = Run(PAY)
    run.done("pay", 1)
    assert [type(one) for one in run.failed("then")] == [Finish]


def test_a_doubt_is_settled_before_a_fallback() -> None:
    run = Run(PAY)
    run.failed("pay", 1, doubt=True)
    assert run.decided("pay", False) == [Perform("pay", 2)], "again, not another way"
    assert run.state.steps["pay"].variant == 0


# -- deadlines -------------------------------------------------------------------------------------------------------


def test_an_attempt_under_way_is_awaited_and_counts() -> None:
    run = Run(PAY)
    assert run.fired("limit:pay") == []
    assert run.done("pay") == [Perform("then", 1)]


def test_after_the_deadline_nothing_is_retried() -> None:
    run = Run(PAY)
    run.fired("limit:pay")
    assert run.failed("pay", 1, "transient") == [Perform("pay", 2)]
    assert run.state.steps["pay"].variant == 1
    assert run.state.timers == {}, "a fallback has no deadline"


def test_a_deadline_cuts_a_backoff_short() -> None:
    run = Run(PAY)
    run.failed("pay", 1, "rate_limited", retry_after=600.0)
    assert run.fired("limit:pay") == [Perform("pay", 2)]
    assert run.state.timers == {}


def test_a_deadline_with_a_doubt_asks_and_does_not_try_again() -> None:
    """Once a person says that nothing happened, the time is over all the same."""
    run = Run(PAY)
    run.failed("pay", 1, "transient", doubt=True)
    assert run.fired("limit:pay") == [OpenReview("pay", "confirm")]
    assert run.decided("pay", False) == [Perform("pay", 2)]
    assert run.state.steps["pay"].variant == 1


def test_a_deadline_that_passes_while_a_person_is_asked() -> None:
    run = Run(PAY.replace("fallback: [{tool: book}, {value: {}}]", ""))
    run.failed("pay", 1, doubt=True)
    assert run.fired("limit:pay") == []
    assert run.decided("pay", False) == [Finish(RunStatus.FAILED, LATE)]


def test_a_review_has_a_deadline() -> None:
    run = Run("- {id: ok, kind: review, title: Ok?, deadline: 60}")
    assert run.started == [OpenReview("ok", "approve"), StartTimer("limit:ok", 1060.0)]
    reason = 'step "ok": its deadline of 60 s passed'
    assert run.fired("limit:ok") == [CloseReview("ok"), Finish(RunStatus.FAILED, reason)]


def test_a_used_up_budget_drops_the_deadline() -> None:
    run = Run(
        "- {id: p, kind: parallel, branches: {a: [{id: x, kind: tool, tool: look, deadline: 60}],"
        " b: [{id: y, kind: tool, tool: look}]}}"
    )
    assert run.failed("x", kind="budget") == []
    assert run.state.timers == {}


# -- deferrals -------------------------------------------------------------------------------------------------------


def test_an_attempt_put_off_is_the_same_attempt_and_no_retry() -> None:
    run = Run(PAY)
    assert run.deferred("pay") == [StartTimer("defer:pay:1:1", 1005.0)]
    assert run.fired("defer:pay:1:1") == [Perform("pay", 1)]
    assert run.deferred("pay") == [StartTimer("defer:pay:1:2", 1010.0)]
    assert run.fired("defer:pay:1:2") == [Perform("pay", 1)]
    assert run.state.retries == 0


def test_putting_off_does_not_outlast_the_deadline() -> None:
    run = Run(PAY)
    run.fired("limit:pay")
    assert run.deferred("pay") == [Perform("pay", 2)], "its fallback"


def test_a_doubt_outlives_a_deferral() -> None:
    """The second attempt did nothing, but the first may have: nobody may guess, also not while the run is ending."""
    run = Run(PAY)
    run.failed("pay", 1, "transient", doubt=True)
    run.fired("retry:pay:1")
    assert run.cancel() == []
    assert run.deferred("pay", 2) == [OpenReview("pay", "confirm")]
    assert run.decided("pay", False) == [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]


def test_a_doubt_that_was_settled_is_not_asked_about_again() -> None:
    run = Run(PAY)
    run.failed("pay", 1, doubt=True)
    run.decided("pay", False)
    run.deferred("pay", 2)
    assert run.cancel() == [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]
