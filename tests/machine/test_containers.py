"""Containers in containers: subworkflows, what may fail by itself, and in which order it is finished."""

from __future__ import annotations

from interlock.machine.events import CloseReview, Compensate, Finish, OpenReview, Perform, RunStatus
from interlock.machine.state import StepStatus

from .by_hand import Run

CHILD = """
- {id: ask, kind: tool, tool: look}
- {id: b, kind: branch, cases: [{when: input.n > 1 && ask.n > 1, steps: [{id: mail, kind: tool, tool: send}]}]}
"""
SUB = "- {id: ask, kind: tool, tool: look}\n- {id: sub, kind: subworkflow, workflow: child}\n- {id: then, kind: tool, tool: look}"


def test_a_subworkflow_sees_its_own_input_and_steps() -> None:
    run = Run(SUB, facts={"n": 0}, child=CHILD)
    assert run.done("ask", n=0) == [Perform("sub", 1)], "its input is looked up"
    assert run.done("sub", n=2) == [Perform("sub/ask", 1)]
    assert run.done("sub/ask", n=2) == [Perform("sub/mail", 1)]
    assert run.done("sub/mail") == [Perform("then", 1)]
    assert run.state.steps["sub"].facts == {}


def test_a_subworkflow_whose_input_cannot_be_had() -> None:
    run = Run(SUB, child=CHILD)
    run.done("ask")
    assert run.failed("sub") == [Finish(RunStatus.FAILED, 'step "sub": it broke')]


EVERYTHING = """
- id: each
  kind: map
  items: $input.items
  on_item_failure: continue
  steps:
    - id: again
      kind: loop
      until: "true"
      max_iterations: 2
      steps:
        - id: both
          kind: parallel
          branches:
            a: [{id: sub, kind: subworkflow, workflow: child}]
            b: [{id: ok, kind: review, title: Ok?}]
- {id: then, kind: tool, tool: look}
"""
HELPER = "- {id: helper, kind: agent, prompt: p, output: {}, tools: [book]}\n- {id: last, kind: tool, tool: look}"
DEEP = "each#1/again#1/"


def test_an_agent_in_a_subworkflow_in_a_branch_in_a_loop_in_a_map() -> None:
    run = Run(EVERYTHING, child=HELPER)
    assert run.done("each", count=1) == [Perform(DEEP + "sub", 1), OpenReview(DEEP + "ok", "approve")]
    assert run.done(DEEP + "sub") == [Perform(DEEP + "sub/helper#1/turn", 1)]
    assert run.asks(DEEP + "sub/helper#1/turn", "book") == [Perform(DEEP + "sub/helper#1/call#1", 1)]
    assert run.done(DEEP + "sub/helper#1/call#1") == [Perform(DEEP + "sub/helper#2/turn", 1)]
    assert run.done(DEEP + "sub/helper#2/turn") == [Perform(DEEP + "sub/last", 1)]
    assert run.failed(DEEP + "sub/last") == [
        CloseReview(DEEP + "ok"),
        Compensate(DEEP + "sub/helper#1/call#1", 1),
    ]
    assert run.undone(DEEP + "sub/helper#1/call#1") == [Perform("then", 1)]
    assert run.done("then") == [Finish(RunStatus.PARTIAL, 'step "each#1": it broke')]


PART = """
- id: part
  kind: parallel
  on_failure: continue
  branches:
    a: [{id: x, kind: tool, tool: book}, {id: y, kind: tool, tool: look}]
    b: [{id: z, kind: tool, tool: book}]
- {id: then, kind: tool, tool: look, on_failure: continue}
"""


def test_a_container_is_let_finish_undone_and_left() -> None:
    run = Run(PART)
    run.done("x")
    assert run.failed("y") == [], "z is under way and awaited"
    assert run.status("part") is StepStatus.ENDING
    assert run.done("z") == [Compensate("z", 1)]
    assert run.undone("z") == [Compensate("x", 1)]
    assert run.undone("x") == [Perform("then", 1)]
    assert run.status("part") is StepStatus.FAILED
    assert run.failed("then") == [Finish(RunStatus.PARTIAL, 'step "part": it broke')], "the first reason"


def test_cancelled_while_a_container_is_being_undone() -> None:
    run = Run("- {id: first, kind: tool, tool: book}" + PART)
    for step in ("first", "x", "z"):
        run.done(step)
    assert run.failed("y") == [Compensate("z", 1)]
    assert run.cancel() == []
    assert run.undone("z") == [Compensate("x", 1)], "no effect is undone twice"
    assert run.undone("x") == [Compensate("first", 1)]
    assert run.undone("first") == [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]


def test_a_step_the_run_goes_on_without() -> None:
    run = Run("- {id: ok, kind: review, title: Ok?, on_failure: continue}\n- {id: then, kind: tool, tool: look}")
    assert run.decided("ok", False) == [Perform("then", 1)]
    assert run.done("then") == [Finish(RunStatus.PARTIAL, 'review "ok" was rejected')]


NESTED = """
- id: outer
  kind: parallel
  on_failure: continue
  branches:
    a:
      - id: inner
        kind: parallel
        on_failure: continue
        branches: {c: [{id: x, kind: tool, tool: book}], d: [{id: y, kind: tool, tool: look}]}
      - {id: after, kind: tool, tool: send}
    b: [{id: z, kind: tool, tool: look}]
- {id: then, kind: tool, tool: look}
"""


def test_what_stands_behind_a_failed_container_does_not_start_in_another_that_failed() -> None:
    """Both are concluded by the same event; `after` must not be performed in a container that is over."""
    run = Run(NESTED)
    run.done("x")
    assert run.failed("y") == [Compensate("x", 1)]
    assert run.failed("z") == []
    assert run.undone("x") == [Perform("then", 1)]
    assert "after" not in run.state.steps
    assert run.done("then") == [Finish(RunStatus.PARTIAL, 'step "inner": it broke')]
