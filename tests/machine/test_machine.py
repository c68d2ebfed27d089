"""The important paths of a run, one readable example each. Doubtful effects have their own file."""

from __future__ import annotations

import pytest

from interlock.base.money import NanoUsd
from interlock.base.usage import Usage
from interlock.machine import events as ev
from interlock.machine.events import (
    CloseReview,
    Compensate,
    Finish,
    OpenDeadLetter,
    OpenReview,
    Perform,
    RunStatus,
    StartTimer,
)
from interlock.machine.machine import pending
from interlock.machine.retry import jitter
from interlock.machine.state import RunState, StepStatus
from interlock.workflows.source import parse_yaml, validate
from interlock.workflows.spec import Workflow

from .by_hand import SEED, Run
from .world import ref

TRIP = """
- {id: flight, kind: tool, tool: book, retry: {max_attempts: 2}}
- {id: weather, kind: tool, tool: look}
- {id: hotel, kind: tool, tool: book, retry: {max_attempts: 2}}
- {id: mail, kind: tool, tool: send}
- {id: car, kind: tool, tool: book}
"""


def _trip_fails_at_the_car() -> Run:
    run = Run(TRIP)
    for step in ("flight", "weather", "hotel", "mail"):
        run.done(step)
    return run


def test_steps_run_in_order() -> None:
    run = Run(TRIP)
    assert run.started == [Perform("flight", 1)]
    assert run.done("flight") == [Perform("weather", 1)]
    assert run.done("weather") == [Perform("hotel", 1)]
    assert run.done("hotel") == [Perform("mail", 1)]
    assert run.done("mail") == [Perform("car", 1)]
    assert run.done("car") == [Finish(RunStatus.SUCCEEDED, None)]
    assert run.state.usage == Usage("", "", 50, 25, attempts=5, known_cost=NanoUsd(2_500_000_005))
    assert set(run.state.outputs) == {"flight", "weather", "hotel", "mail", "car"}


def test_saga_undoes_in_reverse_what_can_be_undone() -> None:
    run = _trip_fails_at_the_car()
    assert run.failed("car") == [Compensate("hotel", 1)]
    assert run.state.status is RunStatus.COMPENSATING
    assert run.undone("hotel") == [Compensate("flight", 1)]
    assert run.undone("flight") == [Finish(RunStatus.FAILED, 'step "car": it broke')]
    assert run.status("mail") is StepStatus.SUCCEEDED, "a tool without compensation stays as it is"


def test_saga_retries_an_undo_and_goes_on() -> None:
    run = _trip_fails_at_the_car()
    run.failed("car")
    due = run.now + jitter(SEED, "compensate:hotel", 1)  # backoff's bound is 1 s
    assert run.not_undone("hotel", kind="transient") == [StartTimer("compensate:hotel:1", due)]
    assert run.fired("compensate:hotel:1") == [Compensate("hotel", 2)]
    assert run.undone("hotel", 2) == [Compensate("flight", 1)]


def test_saga_that_cannot_undo_is_dead_and_undoes_the_rest() -> None:
    run = _trip_fails_at_the_car()
    run.failed("car")
    assert run.not_undone("hotel", kind="permanent") == [
        OpenDeadLetter("hotel", "compensation"),
        Compensate("flight", 1),
    ]
    assert run.undone("flight") == [Finish(RunStatus.DEAD, 'step "car": it broke; could not undo hotel')]


def test_undoing_does_not_use_the_retry_budget() -> None:
    run = Run(TRIP, budget={"retries": 0})
    run.done("flight")
    assert run.failed("weather", kind="transient") == [Compensate("flight", 1)]
    assert isinstance(run.not_undone("flight", kind="transient")[0], StartTimer)
    assert run.state.retries == 0


def test_cancelling_undoes() -> None:
    run = Run(TRIP)
    run.done("flight")
    assert run.cancel() == [], "the step under way is awaited: its effect may be happening"
    assert run.state.status is RunStatus.RUNNING
    assert run.done("weather") == [Compensate("flight", 1)]
    assert run.undone("flight") == [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]


def test_cancelling_before_the_start() -> None:
    run = Run(TRIP)
    run.state = RunState()
    assert run.cancel() == [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]
    assert run.tell(ev.RunStarted(1.0, SEED)) == []
    assert run.state.status is RunStatus.CANCELLED


def test_what_finishes_while_cancelling_is_undone_too() -> None:
    run = Run(TRIP)
    run.cancel()
    assert run.done("flight") == [Compensate("flight", 1)]


ONE = "- {id: ask, kind: model, prompt: p, output: {}, retry: {max_attempts: 3, backoff: 2, max_backoff: 3}}"


def test_retry_backs_off() -> None:
    run = Run(ONE)
    assert run.failed("ask", 1, "transient") == [StartTimer("retry:ask:1", 1000.0 + 2 * jitter(SEED, "ask", 1))]
    assert run.state.status is RunStatus.WAITING
    assert run.fired("retry:ask:1") == [Perform("ask", 2)]
    assert run.state.status is RunStatus.RUNNING
    at = run.now
    assert run.failed("ask", 2, "transient") == [StartTimer("retry:ask:2", at + 3 * jitter(SEED, "ask", 2))]
    assert run.fired("retry:ask:2") == [Perform("ask", 3)]
    assert run.failed("ask", 3, "transient") == [Finish(RunStatus.FAILED, 'step "ask": it broke')]


def test_retry_waits_as_long_as_it_was_told_to() -> None:
    run = Run(ONE)
    assert run.failed("ask", 1, "rate_limited", retry_after=120.0) == [StartTimer("retry:ask:1", 1120.0)]


@pytest.mark.parametrize("kind", ["permanent", "invalid", "denied"])
def test_what_would_fail_again_is_not_retried(kind: str) -> None:
    run = Run(ONE)
    assert run.failed("ask", 1, kind) == [Finish(RunStatus.FAILED, 'step "ask": it broke')]


def test_the_runs_retry_budget_bounds_all_steps_together() -> None:
    run = Run(TRIP, budget={"retries": 1})
    assert isinstance(run.failed("flight", kind="transient")[0], StartTimer)
    run.fired("retry:flight:1")
    run.done("flight", 2)
    assert run.failed("weather", kind="transient") == [Compensate("flight", 1)]
    assert run.state.retries == 1


def test_a_timer_delivered_twice_does_not_cut_the_next_wait_short() -> None:
    run = Run(ONE)
    run.failed("ask", 1, "transient")
    run.fired("retry:ask:1")
    first = ev.TimerFired("retry:ask:1", run.now)
    run.failed("ask", 2, "rate_limited", retry_after=600.0)
    assert run.tell(first) == []
    assert run.status("ask") is StepStatus.RETRYING


def test_used_up_budget_ends_partially_and_undoes_nothing() -> None:
    run = Run(TRIP)
    run.done("flight")
    assert run.failed("weather", kind="budget") == [Finish(RunStatus.PARTIAL, "it broke")]
    assert run.status("flight") is StepStatus.SUCCEEDED


def test_deadline_ends_partially_after_what_is_under_way() -> None:
    run = Run(TRIP, deadline=90.0)
    assert run.started == [StartTimer("deadline", 1090.0), Perform("flight", 1)]
    assert run.fired("deadline") == []
    assert run.done("flight") == [Finish(RunStatus.PARTIAL, "the run's deadline of 90 s passed")]


def test_deadline_while_waiting_ends_at_once() -> None:
    run = Run("- {id: ok, kind: review, title: Ok?}", deadline=90.0)
    assert run.fired("deadline") == [CloseReview("ok"), Finish(RunStatus.PARTIAL, "the run's deadline of 90 s passed")]


def test_deadline_is_dropped_with_the_end() -> None:
    run = Run(ONE, deadline=90.0)
    assert run.done("ask") == [Finish(RunStatus.SUCCEEDED, None)]
    assert run.state.timers == {}
    assert run.tell(ev.TimerFired("deadline", 1090.0)) == []


REVIEW = """
- {id: flight, kind: tool, tool: book}
- {id: ok, kind: review, title: Ok?, on_reject: %s}
- id: then
  kind: branch
  cases: [{when: ok.approved, steps: [{id: mail, kind: tool, tool: send}]}]
  otherwise: [{id: weather, kind: tool, tool: look}]
"""


@pytest.mark.parametrize("on_reject", ["fail", "continue"])
def test_approved(on_reject: str) -> None:
    run = Run(REVIEW % on_reject)
    assert run.done("flight") == [OpenReview("ok", "approve")]
    assert run.state.status is RunStatus.WAITING
    assert run.decided("ok", True) == [Perform("mail", 1)]


def test_rejected_fails() -> None:
    run = Run(REVIEW % "fail")
    run.done("flight")
    assert run.decided("ok", False) == [Compensate("flight", 1)]
    assert run.undone("flight") == [Finish(RunStatus.FAILED, 'review "ok" was rejected')]


def test_rejected_continues() -> None:
    run = Run(REVIEW % "continue")
    run.done("flight")
    said = ev.ReviewDecided("ok", run.now, False, ref("ok?"), {"approved": True})
    assert run.tell(said) == [Perform("weather", 1)], "the decision counts, not what else is said"


def test_a_second_decision_changes_nothing() -> None:
    run = Run(REVIEW % "continue")
    run.done("flight")
    run.decided("ok", False)
    assert run.decided("ok", True) == []
    assert run.state.steps["ok"].facts == {"approved": False}


BOTH = """
- id: both
  kind: parallel
  branches:
    left: [{id: flight, kind: tool, tool: book}, {id: hotel, kind: tool, tool: book}]
    right: [{id: ok, kind: review, title: Ok?}, {id: weather, kind: tool, tool: look}]
- {id: mail, kind: tool, tool: send}
"""


def test_parallel_goes_on_when_all_branches_are_done() -> None:
    run = Run(BOTH)
    assert run.started == [Perform("flight", 1), OpenReview("ok", "approve")]
    assert run.state.status is RunStatus.RUNNING
    assert run.decided("ok", True) == [Perform("weather", 1)]
    assert run.done("flight") == [Perform("hotel", 1)]
    assert run.done("hotel") == []
    assert run.done("weather") == [Perform("mail", 1)]


def test_parallel_with_a_failing_branch() -> None:
    run = Run(BOTH)
    run.decided("ok", True)
    assert run.failed("weather") == [], "flight is under way and awaited"
    assert run.done("flight") == [Compensate("flight", 1)], "and undone; hotel never starts"
    assert run.undone("flight") == [Finish(RunStatus.FAILED, 'step "weather": it broke')]
    assert "hotel" not in run.state.steps


def test_parallel_failure_closes_reviews_of_other_branches() -> None:
    run = Run(BOTH)
    assert run.failed("flight") == [CloseReview("ok"), Finish(RunStatus.FAILED, 'step "flight": it broke')]


def test_parallel_undoes_in_reverse_of_completion_not_of_the_file() -> None:
    run = Run(
        "- {id: p, kind: parallel, branches: {a: [{id: x, kind: tool, tool: book}], b: [{id: y, kind: tool, tool: book}]}}\n"
        "- {id: z, kind: tool, tool: look}"
    )
    run.done("y")
    run.done("x")
    assert run.failed("z") == [Compensate("x", 1)]
    assert run.undone("x") == [Compensate("y", 1)]


def test_a_broken_condition_starts_nothing_beside_it() -> None:
    run = Run(
        "- {id: p, kind: parallel, branches: {a: [{id: c, kind: branch, cases: [{when: input.nope, steps: []}]}],"
        " b: [{id: x, kind: tool, tool: book}], d: [{id: r, kind: review, title: Ok?}]}}"
    )
    (finish,) = run.started
    assert isinstance(finish, Finish)
    assert finish.status is RunStatus.FAILED
    assert str(finish.reason).startswith("step \"c\": condition 'input.nope' cannot be evaluated")


CHOICE = """
- id: size
  kind: branch
  cases:
    - {when: input.n >= 10, steps: [{id: large, kind: tool, tool: look}]}
    - {when: input.n >= 5, steps: [{id: medium, kind: tool, tool: look}]}
  otherwise: [{id: small, kind: tool, tool: look}]
- id: again
  kind: branch
  cases: [{when: size.case == 1, steps: [{id: mail, kind: tool, tool: send}]}]
"""


@pytest.mark.parametrize(("n", "taken"), [(12, "large"), (10, "large"), (9, "medium"), (4, "small")])
def test_branch_takes_the_first_case_that_holds(n: int, taken: str) -> None:
    run = Run(CHOICE, facts={"n": n})
    assert run.started == [Perform(taken, 1)]
    assert run.done(taken) == ([Perform("mail", 1)] if taken == "medium" else [Finish(RunStatus.SUCCEEDED, None)])


def test_a_long_row_of_branches_not_taken_needs_no_deep_stack() -> None:
    steps = "".join(f"- {{id: b{n}, kind: branch, cases: [{{when: 'false', steps: []}}]}}\n" for n in range(499))
    run = Run(steps + "- {id: last, kind: tool, tool: look}")
    assert run.started == [Perform("last", 1)]


def test_taking_over_repeats_what_has_no_outcome_and_nothing_else() -> None:
    run = Run(BOTH, deadline=90.0)
    assert pending(run.state) == [Perform("flight", 1), StartTimer("deadline", 1090.0)]
    run.failed("flight", kind="rate_limited", retry_after=5.0)
    assert pending(run.state) == [StartTimer("deadline", 1090.0), StartTimer("retry:flight:1", 1005.0)]
    run.cancel()
    assert pending(run.state) == []


def test_taking_over_while_undoing() -> None:
    run = _trip_fails_at_the_car()
    run.failed("car")
    assert pending(run.state) == [Compensate("hotel", 1)]
    run.not_undone("hotel", kind="transient")
    assert [type(one) for one in pending(run.state)] == [StartTimer]
    run.fired("compensate:hotel:1")
    assert pending(run.state) == [Compensate("hotel", 2)]


def test_workflow_texts_are_what_the_language_says() -> None:
    """The examples above are workflows that validate."""
    for steps in (TRIP, ONE, REVIEW % "fail", BOTH, CHOICE):
        source = parse_yaml("name: w\ninput: {}\nsteps:\n" + steps, "w.yaml")
        assert validate(Workflow, source).steps
