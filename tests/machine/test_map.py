"""Maps: the same steps for every item of a list."""

from __future__ import annotations

from interlock.machine.events import Compensate, Finish, Perform, RunStatus
from interlock.machine.state import StepStatus

from .by_hand import Run

MAP = """
- id: each
  kind: map
  items: $input.items
  max_items: 3
  concurrency: 2
  %s
  steps: [{id: pay, kind: tool, tool: book}, {id: mail, kind: tool, tool: send}]
- {id: then, kind: tool, tool: look}
"""
STRICT = MAP % ""
LENIENT = MAP % "on_item_failure: continue"


def test_items_side_by_side_as_many_as_allowed() -> None:
    run = Run(STRICT)
    assert run.started == [Perform("each", 1)], "its items are looked up"
    assert run.done("each", count=3) == [Perform("each#1/pay", 1), Perform("each#2/pay", 1)]
    assert run.done("each#2/pay") == [Perform("each#2/mail", 1)]
    assert run.done("each#2/mail") == [Perform("each#3/pay", 1)]
    for step in ("each#3/pay", "each#3/mail", "each#1/pay"):
        run.done(step)
    assert run.done("each#1/mail") == [Perform("then", 1)]
    assert run.state.steps["each"].facts == {"count": 3, "succeeded": 3, "failed": 0}


def test_an_empty_list() -> None:
    run = Run(STRICT)
    assert run.done("each", count=0) == [Perform("then", 1)]
    assert run.state.steps["each"].facts == {"count": 0, "succeeded": 0, "failed": 0}


def test_a_longer_list_is_refused() -> None:
    run = Run(STRICT)
    assert run.done("each", count=4) == [Finish(RunStatus.FAILED, 'step "each": more than 3 items')]


def test_a_failed_item_fails_the_run() -> None:
    run = Run(STRICT)
    run.done("each", count=2)
    run.done("each#1/pay")
    assert run.failed("each#1/mail") == [], "the other item's payment is awaited"
    assert run.done("each#2/pay") == [Compensate("each#2/pay", 1)]
    assert run.undone("each#2/pay") == [Compensate("each#1/pay", 1)]
    assert run.undone("each#1/pay") == [Finish(RunStatus.FAILED, 'step "each#1/mail": it broke')]


def test_a_failed_item_is_undone_alone_and_the_others_go_on() -> None:
    run = Run(LENIENT)
    run.done("each", count=3)
    run.done("each#1/pay")
    run.done("each#2/pay")
    assert run.failed("each#1/mail") == [Compensate("each#1/pay", 1)]
    assert run.done("each#2/mail") == [Perform("each#3/pay", 1)], "the first item still counts as under way"
    assert run.undone("each#1/pay") == []
    run.done("each#3/pay")
    assert run.done("each#3/mail") == [Perform("then", 1)]
    assert run.state.steps["each"].facts == {"count": 3, "succeeded": 2, "failed": 1}
    assert run.status("each#1") is StepStatus.FAILED
    assert run.done("then") == [Finish(RunStatus.PARTIAL, 'step "each#1": it broke')]


def test_all_items_may_fail() -> None:
    run = Run(LENIENT)
    run.done("each", count=1)
    assert run.failed("each#1/pay") == [Perform("then", 1)]
    assert run.state.steps["each"].facts == {"count": 1, "succeeded": 0, "failed": 1}


def test_an_items_condition_reads_its_own_item() -> None:
    run = Run(
        "- {id: each, kind: map, items: $input.items, concurrency: 2, steps: [{id: ask, kind: tool, tool: look},"
        " {id: b, kind: branch, cases: [{when: ask.n > 1, steps: [{id: mail, kind: tool, tool: send}]}]}]}"
    )
    run.done("each", count=2)
    assert run.done("each#2/ask", n=1) == []
    assert run.done("each#1/ask", n=2) == [Perform("each#1/mail", 1)]
