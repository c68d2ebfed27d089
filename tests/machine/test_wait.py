"""Waits: for time to pass, a moment to come, a signal."""

from __future__ import annotations

import pytest

from interlock.machine import events as ev
from interlock.machine.events import Finish, Perform, RunStatus, StartTimer
from interlock.machine.machine import MAX_SIGNALS
from interlock.machine.state import RunState

from .by_hand import Run
from .world import ref

THEN = "\n- {id: then, kind: tool, tool: look}"
SIGNAL = "- {id: hear, kind: wait, signal: go%s}" + THEN


def test_for_time_to_pass() -> None:
    run = Run("- {id: rest, kind: wait, duration: 60}" + THEN)
    assert run.started == [StartTimer("wait:rest", 1060.0)]
    assert run.state.status is RunStatus.WAITING
    assert run.fired("wait:rest") == [Perform("then", 1)]


def test_for_a_moment() -> None:
    run = Run("- {id: rest, kind: wait, until: '1970-01-01T01:00:00+00:30'}" + THEN)
    assert run.started == [StartTimer("wait:rest", 1800.0)]


def test_for_a_moment_that_a_fact_names_and_that_may_have_passed() -> None:
    run = Run("- {id: rest, kind: wait, until: $input.n}" + THEN, facts={"n": 5})
    assert run.started == [StartTimer("wait:rest", 5.0)]


@pytest.mark.parametrize(
    "value", [True, "soon", 10**400, float("nan"), float("inf"), None], ids=lambda value: str(value)[:6]
)
def test_what_is_no_moment(value: object) -> None:
    run = Run("- {id: rest, kind: wait, until: $input.n}" + THEN, facts={"n": value})
    reason = 'step "rest": $input.n is no number of seconds since 1970, so it is no moment to wait for'
    assert run.started == [Finish(RunStatus.FAILED, reason)]


def test_a_moment_without_an_offset_would_be_another_one_on_another_machine() -> None:
    run = Run("- {id: rest, kind: wait, until: '2030-01-01T00:00:00'}" + THEN)
    assert [type(one) for one in run.started] == [Finish]


def test_for_a_signal() -> None:
    run = Run(SIGNAL % "")
    assert run.started == []
    assert run.signal("stop") == [], "another one; kept"
    assert run.signal("go", "other", n=3) == [Perform("then", 1)]
    assert run.state.steps["hear"].facts == {"n": 3, "received": True}
    assert run.state.steps["hear"].output == ref("go/other")


def test_a_signal_that_comes_early_is_kept() -> None:
    run = Run("- {id: first, kind: tool, tool: look}\n" + SIGNAL % "")
    assert run.signal("go", n=1) == []
    assert run.done("first") == [Perform("then", 1)]
    assert run.state.steps["hear"].facts == {"n": 1, "received": True}


def test_one_signal_id_counts_once() -> None:
    run = Run("- {id: one, kind: wait, signal: go}\n- {id: two, kind: wait, signal: go}")
    assert run.signal("go", "a") == []
    before = run.state
    assert run.signal("go", "a") == []
    assert run.state is before
    assert run.signal("go", "b") == [Finish(RunStatus.SUCCEEDED, None)]


def test_a_signal_is_for_who_began_to_wait_first() -> None:
    run = Run(
        "- {id: p, kind: parallel, branches: {a: [{id: x, kind: wait, signal: go}], b: [{id: y, kind: wait, signal: go}]}}"
    )
    run.signal("go", "a", n=1)
    run.signal("go", "b", n=2)
    assert run.state.steps["x"].facts["n"] == 1
    assert run.state.steps["y"].facts["n"] == 2


def test_no_signal_in_time() -> None:
    run = Run(SIGNAL % ", timeout: 60")
    assert run.started == [StartTimer("wait:hear", 1060.0)]
    assert run.fired("wait:hear") == [Finish(RunStatus.FAILED, 'step "hear": no signal "go" came within 60 s')]


def test_no_signal_in_time_as_a_fact() -> None:
    run = Run(SIGNAL % ", timeout: 60, on_timeout: continue")
    assert run.fired("wait:hear") == [Perform("then", 1)]
    assert run.state.steps["hear"].facts == {"received": False}
    assert run.signal("go") == [], "too late for anybody; kept"


def test_a_signal_stops_the_clock() -> None:
    run = Run(SIGNAL % ", timeout: 60")
    run.signal("go")
    assert run.state.timers == {}
    assert run.tell(ev.TimerFired("wait:hear", 1060.0)) == []


def test_signals_before_the_start_are_kept() -> None:
    run = Run(SIGNAL % "")
    run.state = RunState()
    run.signal("go")
    assert run.tell(ev.RunStarted(run.now, 1)) == [Perform("then", 1)]


def test_what_a_caller_can_make_a_run_hold_is_bounded() -> None:
    run = Run("- {id: first, kind: tool, tool: look}\n" + SIGNAL % "")
    for number in range(MAX_SIGNALS):
        run.signal("go", f"{number}")
    before = run.state
    assert run.signal("go", "one too many") == []
    assert run.state is before
