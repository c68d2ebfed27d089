"""Pausing: what is under way is finished, nothing new is performed."""

from __future__ import annotations

from interlock.machine import events as ev
from interlock.machine.events import Compensate, Finish, OpenReview, Perform, RunStatus, StartTimer
from interlock.machine.machine import pending
from interlock.machine.state import RunState, StepStatus

from .by_hand import Run

TWO = "- {id: a, kind: tool, tool: book, deadline: 60%s}\n- {id: b, kind: tool, tool: look}"


def test_what_is_under_way_is_finished_and_the_next_waits() -> None:
    run = Run(TWO % "")
    assert run.pause() == []
    assert run.state.status is RunStatus.RUNNING
    assert run.done("a") == []
    assert run.status("b") is StepStatus.PAUSED
    assert run.state.status is RunStatus.WAITING
    assert pending(run.state) == []
    assert run.resume() == [Perform("b", 1)]


def test_pausing_twice_and_resuming_what_runs() -> None:
    run = Run(TWO % "")
    assert run.resume() == []
    run.pause()
    before = run.state
    assert run.pause() == []
    assert run.state is before


def test_a_retry_whose_time_comes_waits_too() -> None:
    run = Run(TWO % "")
    run.failed("a", 1, "transient")
    run.pause()
    assert run.fired("retry:a:1") == []
    assert run.resume() == [Perform("a", 2)]


def test_side_by_side_all_go_on() -> None:
    run = Run("- {id: m, kind: map, items: $input.items, steps: [{id: x, kind: tool, tool: look}]}")
    run.pause()
    run.done("m", count=2)
    assert run.resume() == [Perform("m#1/x", 1), Perform("m#2/x", 1)]


def test_reviews_are_asked_and_signals_taken_all_the_same() -> None:
    run = Run(
        "- {id: w, kind: wait, signal: go}\n- {id: ok, kind: review, title: Ok?}\n- {id: b, kind: tool, tool: look}"
    )
    run.pause()
    assert run.signal("go") == [OpenReview("ok", "approve")]
    assert run.decided("ok", True) == []
    assert run.resume() == [Perform("b", 1)]


def test_time_does_not_stand_still() -> None:
    run = Run(TWO % ", fallback: [{tool: look}]")
    run.deferred("a")
    run.pause()
    run.fired("defer:a:1:1")
    assert run.fired("limit:a") == [], "its fallback waits as well"
    assert run.resume() == [Perform("a", 2)]


def test_cancelled_while_paused() -> None:
    run = Run(TWO % "")
    run.pause()
    run.done("a")
    assert run.cancel() == [Compensate("a", 1)]
    assert run.undone("a") == [Finish(RunStatus.CANCELLED, "cancelled: changed my mind")]
    assert run.resume() == []


def test_paused_in_doubt_and_cancelled() -> None:
    run = Run(TWO % "")
    run.failed("a", 1, "transient", doubt=True)
    run.pause()
    run.fired("retry:a:1")
    assert run.cancel() == [OpenReview("a", "confirm")]


def test_paused_before_the_start() -> None:
    run = Run(TWO % "")
    run.state = RunState()
    run.pause()
    assert run.tell(ev.RunStarted(run.now, 1)) == [StartTimer("limit:a", run.now + 60)]
    assert run.resume() == [Perform("a", 1)]
