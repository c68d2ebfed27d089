"""Acts that a person has to approve: what each status, clock and second delivery makes of the question."""

from __future__ import annotations

import pytest

from interlock.machine import events as ev
from interlock.machine.events import CloseReview, Finish, OpenReview, Perform, RunStatus, StartTimer
from interlock.machine.state import StepStatus

from .by_hand import Run
from .world import ref

PAY = "- {id: pay, kind: tool, tool: book}\n"
NEXT = "- {id: next, kind: tool, tool: look}\n"
ASK_PAY = OpenReview("pay", "approve_act")


def test_approved_then_performed_once_more() -> None:
    run = Run(PAY + NEXT)
    assert run.unapproved("pay") == [ASK_PAY]
    assert (run.status("pay"), run.state.status) == (StepStatus.APPROVING, RunStatus.WAITING)
    assert run.decided("pay", True) == [Perform("pay", 2)]
    assert run.done("pay", 2) == [Perform("next", 1)]
    assert run.state.steps["pay"].tries == 1  # the question was no try


def test_refused_without_a_fallback() -> None:
    run = Run("- {id: pay, kind: tool, tool: book, fallback: [{tool: send}]}\n")
    run.unapproved("pay")
    assert run.decided("pay", False) == [
        Finish(RunStatus.FAILED, 'step "pay": a person refused the call of tool "book"')
    ]
    failure = run.state.steps["pay"].failure
    assert failure is not None
    assert (failure.kind, failure.code) == ("denied", "approval_rejected")


def test_a_second_question_and_no_third() -> None:
    run = Run(PAY)
    run.unapproved("pay", act="one")
    run.decided("pay", True)
    assert run.unapproved("pay", 2, act="another") == [ASK_PAY]
    run.decided("pay", True)
    run.unapproved("pay", 3, act="yet another")
    failure = run.state.steps["pay"].failure
    assert failure is not None
    assert failure.code == "approval_mismatch"
    assert run.state.status is RunStatus.FAILED


@pytest.mark.parametrize("digest", ["", "one", "another still"])
def test_a_decision_about_another_act(digest: str) -> None:
    """The first question was decided; its decision, or one about no such act, is no answer to the second."""
    run = Run(PAY)
    run.unapproved("pay", act="one")
    run.decided("pay", True)
    run.unapproved("pay", 2, act="two")
    assert run.tell(ev.ReviewDecided("pay", run.now + 1, True, ref("x"), digest=digest)) == []
    assert run.status("pay") is StepStatus.APPROVING


def test_a_second_delivery_is_no_answer_to_a_doubt() -> None:
    """Approved, performed, cut off: the approval delivered again does not say that the effect happened."""
    run = Run(PAY.replace("book}", "book, retry: {max_attempts: 1}}"))
    run.unapproved("pay")
    run.decided("pay", True)
    approval = ev.ReviewDecided("pay", run.now, True, ref("pay?"), digest="act")
    assert run.failed("pay", 2, doubt=True) == [OpenReview("pay", "confirm")]
    assert run.tell(approval) == []
    assert run.status("pay") is StepStatus.CONFIRMING


def test_the_deadline_closes_the_question_and_the_fallback_needs_its_own() -> None:
    run = Run("- {id: pay, kind: tool, tool: book, deadline: 5, fallback: [{tool: send}]}\n")
    run.unapproved("pay")
    assert run.fired("limit:pay") == [CloseReview("pay"), Perform("pay", 2)]
    assert run.unapproved("pay", 2, act="another") == [ASK_PAY]
    assert run.state.steps["pay"].asked == 1


def test_a_deadline_that_passed_while_it_was_judged() -> None:
    run = Run("- {id: pay, kind: tool, tool: book, deadline: 5}\n")
    run.fired("limit:pay")
    assert run.unapproved("pay") == [Finish(RunStatus.FAILED, 'step "pay": its deadline of 5 s passed')]


def test_cancelled() -> None:
    run = Run(PAY)
    run.unapproved("pay")
    assert run.cancel() == [CloseReview("pay"), Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]
    assert run.decided("pay", True) == []


def test_cancelled_while_it_was_judged() -> None:
    run = Run(PAY)
    run.cancel()
    assert run.unapproved("pay") == [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]


def test_paused() -> None:
    run = Run(PAY)
    run.unapproved("pay")
    run.pause()
    assert run.decided("pay", True) == []
    assert run.status("pay") is StepStatus.PAUSED
    assert run.resume() == [Perform("pay", 2)]


def test_an_agent_is_told_of_a_refusal() -> None:
    run = Run("- {id: a, kind: agent, prompt: p, output: {type: object}, tools: [look, book]}\n")
    run.asks("a#1/turn", "book")
    assert run.unapproved("a#1/call#1") == [OpenReview("a#1/call#1", "approve_act")]
    assert run.decided("a#1/call#1", False) == [Perform("a#2/turn", 1)]


def test_an_item_that_is_refused_fails_alone() -> None:
    run = Run(
        "- {id: each, kind: map, items: $input.x, on_item_failure: continue, steps: [{id: pay, kind: tool, tool: book}]}\n"
    )
    run.done("each", count=2)
    run.unapproved("each#1/pay", act="one")
    run.unapproved("each#2/pay", act="two")
    run.decided("each#1/pay", False)
    assert run.decided("each#2/pay", True) == [Perform("each#2/pay", 2)]
    assert run.done("each#2/pay", 2) == [
        Finish(RunStatus.PARTIAL, 'step "each#1": a person refused the call of tool "book"')
    ]


def test_held_and_tried_again_it_may_ask_anew() -> None:
    run = Run(PAY, on_failure="hold")
    for attempt, act in enumerate(("one", "two", "three"), start=1):
        run.unapproved("pay", attempt, act=act)
        run.decided("pay", True) if attempt < 3 else None
    assert run.status("pay") is StepStatus.HELD
    run.requeued("pay", "edited")
    assert run.unapproved("pay", 4, act="four") == [ASK_PAY]


def test_a_retry_after_a_failure_is_of_the_same_act() -> None:
    run = Run("- {id: pay, kind: tool, tool: book, retry: {max_attempts: 2, backoff: 1}}\n")
    run.unapproved("pay")
    run.decided("pay", True)
    (timer,) = run.failed("pay", 2, "transient")
    assert isinstance(timer, StartTimer)
    assert run.fired("retry:pay:2") == [Perform("pay", 3)]


def test_only_a_tool_needs_an_approval() -> None:
    run = Run("- {id: think, kind: model, prompt: p, output: {type: object}}\n")
    before = run.state
    assert run.unapproved("think") == []
    assert run.state is before
