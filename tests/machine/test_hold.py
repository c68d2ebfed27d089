"""The dead-letter queue: steps that are held, and effects that could not be undone."""

from __future__ import annotations

import pytest

from interlock.machine import events as ev
from interlock.machine.events import CloseDeadLetter, Compensate, Finish, OpenDeadLetter, Perform, RunStatus, StartTimer
from interlock.machine.machine import pending
from interlock.machine.state import StepStatus

from .by_hand import Run
from .world import ref

TRIP = """
- {id: flight, kind: tool, tool: book}
- {id: hotel, kind: tool, tool: book, retry: {max_attempts: 2}, fallback: [{tool: send}]}
- {id: mail, kind: tool, tool: send}
"""
BROKE = 'step "mail": it broke'


def _held() -> Run:
    run = Run(TRIP, on_failure="hold")
    run.done("flight")
    run.failed("hotel", 1)
    assert run.failed("hotel", 2) == [OpenDeadLetter("hotel", "step")], "after its fallback, and nothing is undone"
    return run


def test_a_step_that_failed_for_good_waits_for_a_person() -> None:
    run = _held()
    assert run.status("hotel") is StepStatus.HELD
    assert run.state.status is RunStatus.WAITING
    assert pending(run.state) == []


def test_requeued_it_begins_anew_with_other_arguments() -> None:
    run = _held()
    assert run.requeued("hotel", "edited") == [CloseDeadLetter("hotel"), Perform("hotel", 3)]
    assert run.state.steps["hotel"].override == ref("edited")
    assert run.state.steps["hotel"].variant == 0
    assert run.requeued("hotel") == [], "it is no dead letter any more"
    assert isinstance(run.failed("hotel", 3, "transient")[0], StartTimer), "its tries begin anew too"
    run.fired("retry:hotel:3")
    assert run.done("hotel", 4) == [Perform("mail", 1)]


def test_requeued_it_has_its_deadline_anew_from_that_moment() -> None:
    run = Run("- {id: a, kind: tool, tool: look, deadline: 60}", on_failure="hold")
    assert run.state.timers == {"limit:a": run.now + 60}
    run.failed("a")
    assert run.state.timers == {}
    run.now += 1000
    assert run.requeued("a")[1:] == [Perform("a", 2), StartTimer("limit:a:2", run.now + 60)]
    before = run.state
    run.tell(ev.TimerFired("limit:a", run.now))
    assert run.state is before, "the old deadline, told late, is not the new one"
    assert run.fired("limit:a:2") == []
    assert run.failed("a", 2, "transient") == [OpenDeadLetter("a", "step")], "its time is up, so it is not tried again"


def test_requeued_while_the_run_is_paused_the_deadline_runs_all_the_same() -> None:
    run = Run("- {id: a, kind: tool, tool: look, deadline: 60}", on_failure="hold")
    run.failed("a")
    run.tell(ev.PauseRequested(run.now))
    assert run.requeued("a") == [CloseDeadLetter("a"), StartTimer("limit:a:2", run.now + 60)]
    assert run.fired("limit:a:2") == [OpenDeadLetter("a", "step")]


def test_discarded_the_run_fails_and_is_undone() -> None:
    run = _held()
    assert run.discarded("hotel") == [CloseDeadLetter("hotel"), Compensate("flight", 1)]
    assert run.undone("flight") == [Finish(RunStatus.FAILED, 'step "hotel": it broke')]


def test_cancelling_takes_the_letter_back() -> None:
    run = _held()
    assert run.cancel() == [CloseDeadLetter("hotel"), Compensate("flight", 1)]


def test_what_the_run_may_go_on_without_is_not_held() -> None:
    run = Run("- {id: a, kind: tool, tool: look, on_failure: continue}", on_failure="hold")
    assert run.failed("a") == [Finish(RunStatus.PARTIAL, 'step "a": it broke')]


# -- effects that could not be undone ----------------------------------------------------------------------------------


def _dead() -> Run:
    run = Run(TRIP)
    run.done("flight")
    run.done("hotel")
    run.failed("mail")
    run.not_undone("hotel")
    run.not_undone("flight")
    assert run.state.status is RunStatus.DEAD
    return run


def test_what_cannot_be_undone_is_a_letter_and_the_run_is_dead() -> None:
    run = Run(TRIP)
    run.done("flight")
    run.done("hotel")
    run.failed("mail")
    assert run.not_undone("hotel") == [OpenDeadLetter("hotel", "compensation"), Compensate("flight", 1)]
    assert run.undone("flight") == [Finish(RunStatus.DEAD, f"{BROKE}; could not undo hotel")]


def test_out_of_the_queue_it_is_tried_again_and_the_run_ends_as_it_would_have() -> None:
    run = _dead()
    assert run.requeued("hotel") == [CloseDeadLetter("hotel"), Compensate("hotel", 2)]
    assert run.state.status is RunStatus.COMPENSATING
    assert run.undone("hotel", 2) == [Finish(RunStatus.DEAD, f"{BROKE}; could not undo flight")]
    run.requeued("flight")
    assert run.undone("flight", 2) == [Finish(RunStatus.FAILED, BROKE)]


def test_it_may_fail_again() -> None:
    run = _dead()
    run.requeued("hotel")
    assert run.not_undone("hotel", 2) == [
        OpenDeadLetter("hotel", "compensation"),
        Finish(RunStatus.DEAD, f"{BROKE}; could not undo flight, hotel"),
    ]


def test_discarded_the_effects_stay() -> None:
    run = _dead()
    assert run.discarded("hotel") == [CloseDeadLetter("hotel")]
    assert run.status("hotel") is StepStatus.COMPENSATION_ABANDONED
    assert run.discarded("flight") == [CloseDeadLetter("flight"), Finish(RunStatus.FAILED, BROKE)]
    assert run.requeued("flight") == []


@pytest.mark.parametrize("event", [ev.CancelRequested(1.0, ""), ev.PauseRequested(1.0), ev.ResumeRequested(1.0)])
def test_nothing_else_wakes_the_dead(event: object) -> None:
    run = _dead()
    before = run.state
    assert run.tell(event) == []
    assert run.state is before


PART = """
- id: part
  kind: parallel
  on_failure: continue
  branches: {a: [{id: x, kind: tool, tool: book}, {id: y, kind: tool, tool: look}]}
- {id: then, kind: tool, tool: look}
"""


def _stuck_on_the_way() -> Run:
    run = Run(PART, deadline=600)
    run.done("x")
    assert run.failed("y") == [Compensate("x", 1)]
    assert run.not_undone("x") == [OpenDeadLetter("x", "compensation"), Perform("then", 1)]
    return run


def test_an_effect_that_stays_behind_makes_the_run_dead_at_its_end() -> None:
    run = _stuck_on_the_way()
    assert run.done("then") == [Finish(RunStatus.DEAD, 'step "part": it broke; could not undo x')]
    run.requeued("x")
    assert run.undone("x", 2) == [Finish(RunStatus.PARTIAL, 'step "part": it broke')]


def test_undoing_out_of_the_queue_is_awaited_at_the_end() -> None:
    run = _stuck_on_the_way()
    assert run.requeued("x") == [CloseDeadLetter("x"), Compensate("x", 2)]
    assert run.done("then") == [], "the effect is being undone now"
    assert run.state.timers == {}
    assert run.undone("x", 2) == [Finish(RunStatus.PARTIAL, 'step "part": it broke')]
