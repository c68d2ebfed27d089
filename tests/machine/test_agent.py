"""Agents: a model that calls tools, turn by turn, until it answers."""

from __future__ import annotations

import pytest

from interlock.machine import events as ev
from interlock.machine.events import Compensate, Finish, OpenReview, Perform, RunStatus, StartTimer
from interlock.machine.state import StepStatus

from .by_hand import Run
from .world import ref

ASSIST = "- {id: assist, kind: agent, prompt: p, output: {}, tools: [look, send, book], max_turns: 3, max_calls: 4%s}"
AGENT = ASSIST % ""
THEN = "\n- {id: then, kind: tool, tool: look}"


def call(number: int, turn: int = 1, attempt: int = 1) -> Perform:
    return Perform(f"assist#{turn}/call#{number}", attempt)


def test_an_answer_at_once() -> None:
    run = Run(AGENT)
    assert run.started == [Perform("assist#1/turn", 1)]
    assert run.done("assist#1/turn", n=3) == [Finish(RunStatus.SUCCEEDED, None)]
    facts = run.state.steps["assist"].facts
    assert {name: count for name, count in facts.items() if count} == {"n": 3}
    assert run.state.steps["assist"].output == ref("assist#1/turn/1")


def test_calls_that_only_look_run_at_once_and_then_the_model_is_asked_again() -> None:
    run = Run(AGENT)
    assert run.asks("assist#1/turn", "look", "look") == [call(1), call(2)]
    assert run.done("assist#1/call#2") == []
    assert run.done("assist#1/call#1") == [Perform("assist#2/turn", 1)]
    assert run.done("assist#2/turn") == [Finish(RunStatus.SUCCEEDED, None)]


def test_a_mutating_call_waits_for_those_before_it_and_those_after_wait_for_it() -> None:
    run = Run(AGENT)
    assert run.asks("assist#1/turn", "look", "send", "look", "book") == [call(1)]
    assert run.done("assist#1/call#1") == [call(2)]
    assert run.done("assist#1/call#2") == [call(3)]
    assert run.done("assist#1/call#3") == [call(4)]
    assert run.done("assist#1/call#4") == [Perform("assist#2/turn", 1)]


def test_facts_count_the_calls_by_tool_and_outcome() -> None:
    """A condition can read whether the effect happened, independently of the model's answer."""
    cases = "[{when: assist.succeeded_send > 0, steps: [{id: x, kind: tool, tool: look}]}]"
    run = Run(AGENT + f"\n- {{id: paid, kind: branch, cases: {cases}}}")
    run.asks("assist#1/turn", "look", "send", "look")
    run.failed("assist#1/call#1", kind="permanent")
    run.failed("assist#1/call#2", kind="denied")
    run.done("assist#1/call#3")
    run.asks("assist#2/turn", "look")
    run.done("assist#2/call#1")
    assert run.done("assist#3/turn", n=3) == [Finish(RunStatus.SUCCEEDED, None)], "send did not succeed"
    facts = run.state.steps["assist"].facts
    assert {name: count for name, count in facts.items() if count} == {
        "n": 3, "calls": 4, "failed_calls": 1, "denied_calls": 1, "succeeded_look": 2, "failed_look": 1, "denied_send": 1,
    }  # fmt: skip
    assert (facts["succeeded_send"], facts["failed_book"]) == (0, 0), "a tool that was not called has facts as well"


def test_a_run_of_the_first_machine_version_has_no_such_facts() -> None:
    run = Run(AGENT, machine=1)
    run.done("assist#1/turn", n=3)
    assert run.state.steps["assist"].facts == {"n": 3}


def test_a_failed_call_is_told_to_the_model() -> None:
    run = Run(AGENT)
    run.asks("assist#1/turn", "send")
    assert run.failed("assist#1/call#1", kind="denied") == [Perform("assist#2/turn", 1)]
    assert run.status("assist#1/call#1") is StepStatus.FAILED


def test_a_call_is_retried_and_its_doubt_confirmed_like_any_step() -> None:
    run = Run(AGENT)
    run.asks("assist#1/turn", "book")
    (timer,) = run.failed("assist#1/call#1", kind="transient")
    assert isinstance(timer, StartTimer)
    assert run.fired("retry:assist#1/call#1:1") == [call(1, attempt=2)]
    assert run.failed("assist#1/call#1", 2, doubt=True) == [OpenReview("assist#1/call#1", "confirm")]
    assert run.decided("assist#1/call#1", True) == [Perform("assist#2/turn", 1)]
    assert list(run.state.completed) == ["assist#1/call#1"]


def test_no_answer_after_all_turns() -> None:
    run = Run(AGENT)
    for turn in (1, 2):
        run.asks(f"assist#{turn}/turn", "look")
        run.done(f"assist#{turn}/call#1")
    run.asks("assist#3/turn", "look")
    assert run.done("assist#3/call#1") == [Finish(RunStatus.FAILED, 'step "assist": no answer after 3 turns')]


@pytest.mark.parametrize("calls", [("unheard_of",), ("look",) * 5])
def test_a_turn_that_asks_for_what_it_may_not_have_has_failed(calls: tuple[str, ...]) -> None:
    run = Run(AGENT)
    assert [type(one) for one in run.asks("assist#1/turn", *calls)] == [Finish]


def test_what_its_calls_did_is_undone_with_the_run() -> None:
    run = Run(AGENT + THEN)
    run.asks("assist#1/turn", "book", "book")
    run.done("assist#1/call#1")
    run.done("assist#1/call#2")
    run.done("assist#2/turn")
    assert run.failed("then") == [Compensate("assist#1/call#2", 1)]
    assert run.undone("assist#1/call#2") == [Compensate("assist#1/call#1", 1)]


def test_a_deadline_awaits_the_call_under_way() -> None:
    run = Run(ASSIST % ", deadline: 60")
    assert run.started == [StartTimer("limit:assist", 1060.0), Perform("assist#1/turn", 1)]
    run.asks("assist#1/turn", "book")
    assert run.fired("limit:assist") == []
    assert run.done("assist#1/call#1") == [Compensate("assist#1/call#1", 1)]
    reason = 'step "assist": its deadline of 60 s passed'
    assert run.undone("assist#1/call#1") == [Finish(RunStatus.FAILED, reason)]


def test_the_run_goes_on_without_it() -> None:
    """The agent fails as a whole, not the turn that it was in."""
    run = Run(ASSIST % ", on_failure: continue" + THEN)
    run.asks("assist#1/turn", "book")
    run.done("assist#1/call#1")
    assert run.failed("assist#2/turn") == [Compensate("assist#1/call#1", 1)]
    assert run.undone("assist#1/call#1") == [Perform("then", 1)]
    assert run.status("assist") is StepStatus.FAILED
    assert run.done("then") == [Finish(RunStatus.PARTIAL, 'step "assist": it broke')]


def test_a_used_up_budget_ends_the_run_and_not_just_the_call() -> None:
    run = Run(AGENT)
    run.asks("assist#1/turn", "look")
    assert run.failed("assist#1/call#1", kind="budget") == [Finish(RunStatus.PARTIAL, "it broke")]


def test_a_late_outcome_of_an_earlier_turn_changes_nothing() -> None:
    run = Run(AGENT)
    run.asks("assist#1/turn", "look")
    old = ev.StepSucceeded("assist#1/turn", 1, run.now, run.now, ref("x"), {}, calls=("book",))
    assert run.tell(old) == []
    run.done("assist#1/call#1")
    assert run.tell(old) == []
