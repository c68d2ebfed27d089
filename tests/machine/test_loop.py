"""Loops: steps repeated until a condition holds."""

from __future__ import annotations

from interlock.machine.events import Compensate, Finish, Perform, RunStatus
from interlock.machine.state import StepStatus

from .by_hand import Run

LOOP = """
- id: again
  kind: loop
  until: draft.n >= 2
  max_iterations: 2
  %s
  steps: [{id: draft, kind: tool, tool: book}]
- {id: then, kind: tool, tool: look}
"""


def test_until_it_is_met() -> None:
    run = Run(LOOP % "")
    assert run.started == [Perform("again#1/draft", 1)]
    assert run.done("again#1/draft", n=1) == [Perform("again#2/draft", 1)]
    assert run.done("again#2/draft", n=2) == [Perform("then", 1)]
    assert run.state.steps["again"].facts == {"iterations": 2, "met": True}


def test_its_bound_is_hard() -> None:
    run = Run(LOOP % "")
    run.done("again#1/draft", n=1)
    assert run.done("again#2/draft", n=1) == [Compensate("again#2/draft", 1)]
    assert run.undone("again#2/draft") == [Compensate("again#1/draft", 1)]
    reason = 'step "again": its condition did not come true in 2 rounds'
    assert run.undone("again#1/draft") == [Finish(RunStatus.FAILED, reason)]


def test_going_on_at_the_bound() -> None:
    run = Run(LOOP % "on_limit: continue")
    run.done("again#1/draft", n=1)
    assert run.done("again#2/draft", n=1) == [Perform("then", 1)]
    assert run.state.steps["again"].facts == {"iterations": 2, "met": False}


def test_a_condition_that_cannot_be_evaluated() -> None:
    run = Run(LOOP % "")
    assert run.done("again#1/draft") == [Compensate("again#1/draft", 1)]


def test_a_round_that_fails_fails_the_loop_and_the_run_goes_on() -> None:
    """The loop as a whole: its earlier rounds are undone too, and it is over."""
    run = Run(LOOP % "on_failure: continue")
    run.done("again#1/draft", n=1)
    assert run.failed("again#2/draft") == [Compensate("again#1/draft", 1)]
    assert run.undone("again#1/draft") == [Perform("then", 1)]
    assert run.status("again") is StepStatus.FAILED
    assert run.done("then") == [Finish(RunStatus.PARTIAL, 'step "again": it broke')]


def test_after_the_loop_its_last_round_is_what_conditions_see() -> None:
    run = Run(
        LOOP.replace("- {id: then", "- {id: b, kind: branch, cases: [{when: draft.n == 5, steps: []}]}\n- {id: then")
        % ""
    )
    run.done("again#1/draft", n=1)
    run.done("again#2/draft", n=5)
    assert run.state.steps["b"].facts == {"case": 0}
