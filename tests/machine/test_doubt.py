"""A mutating tool was cut off in the middle: nobody knows whether it did its work, and nobody may guess."""

from __future__ import annotations

import pytest

from interlock.machine import events as ev
from interlock.machine.events import Compensate, Finish, OpenReview, Perform, RunStatus, StartTimer

from .by_hand import Run
from .world import ref

PAY = "- {id: pay, kind: tool, tool: book, retry: {max_attempts: 2}}"


def test_doubt_is_retried_if_it_can_be_and_then_confirmed() -> None:
    run = Run(PAY)
    assert isinstance(run.failed("pay", 1, "transient", doubt=True)[0], StartTimer)
    assert run.fired("retry:pay:1") == [Perform("pay", 2)]
    assert run.failed("pay", 2, "transient", doubt=True) == [OpenReview("pay", "confirm")]
    assert run.state.status is RunStatus.WAITING


def test_confirmed_it_happened() -> None:
    run = Run(PAY)
    run.failed("pay", doubt=True)
    assert run.decided("pay", True, n=3) == [Finish(RunStatus.SUCCEEDED, None)]
    assert run.state.outputs == {"pay": ref("pay?")}
    assert run.state.steps["pay"].facts == {"n": 3}


def test_confirmed_it_did_not_happen_so_it_is_done() -> None:
    run = Run(PAY)
    run.failed("pay", doubt=True)
    assert run.decided("pay", False) == [Perform("pay", 2)]
    assert run.failed("pay", 2) == [Finish(RunStatus.FAILED, 'step "pay": it broke')]


def test_an_old_no_does_not_answer_a_new_question() -> None:
    """Otherwise one person's one "no" could pay twice."""
    run = Run(PAY)
    run.failed("pay", doubt=True)
    run.decided("pay", False)
    old_no = ev.ReviewDecided("pay", run.now, False, ref("pay?"))
    run.failed("pay", 2, doubt=True)
    assert run.tell(old_no) == []
    assert run.decided("pay", False) == [Perform("pay", 3)]
    run.failed("pay", 3, doubt=True)
    assert run.tell(old_no) == []


def test_a_later_attempt_may_settle_the_doubt() -> None:
    """The kernel looks at the ledger first and asks the tool; a clean failure is its word that nothing happened at all."""
    run = Run(PAY)
    run.failed("pay", 1, "transient", doubt=True)
    run.fired("retry:pay:1")
    assert run.failed("pay", 2) == [Finish(RunStatus.FAILED, 'step "pay": it broke')]


def test_doubt_ends_with_success() -> None:
    run = Run(PAY)
    run.failed("pay", 1, "transient", doubt=True)
    run.fired("retry:pay:1")
    assert run.done("pay", 2) == [Finish(RunStatus.SUCCEEDED, None)]


def test_doubt_about_a_used_up_budget() -> None:
    run = Run(PAY)
    assert run.failed("pay", 1, "budget", doubt=True) == [OpenReview("pay", "confirm")]


@pytest.mark.parametrize(
    ("happened", "then"),
    [(True, [Compensate("pay", 1)]), (False, [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")])],
)
def test_cancelled_in_doubt(happened: bool, then: list[ev.Command]) -> None:
    run = Run(PAY)
    run.failed("pay", 1, "transient", doubt=True)
    assert run.cancel() == [OpenReview("pay", "confirm")], "not retried any more, and neither forgotten"
    assert run.state.timers == {}
    assert run.decided("pay", happened) == then
