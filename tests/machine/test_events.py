"""Events as JSON: the journal is the only thing that outlives a worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from interlock.base.errors import FailureKind
from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.base.money import NanoUsd
from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.machine import events as ev

_names = st.text(max_size=12)
_times = st.floats(allow_nan=False, allow_infinity=False)
_facts = st.dictionaries(_names, st.booleans() | st.integers() | _times | st.text(max_size=5), max_size=3)
_labels = st.builds(
    Labels,
    st.sampled_from(Trust),
    st.sampled_from(Sensitivity),
    st.frozensets(_names, max_size=3),
    st.frozensets(_names, max_size=3),
    st.none() | _times,
)
_refs = st.builds(Ref, st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 2**40), _labels)
_failures = st.builds(
    ev.Failure, st.sampled_from(FailureKind), _names, _names, st.none() | _times, st.booleans(), st.none() | _refs
)
_calls = st.lists(_names, max_size=2).map(tuple)
_counts = st.integers(0, 1000)
_money = st.integers(0, 2**62).map(NanoUsd)  # beyond what a float holds exactly
_usage = st.none() | st.builds(Usage, _names, _names, *[_counts] * 6, _money, _counts)
_FAILED = {"kind": "permanent", "code": "c", "message": "m"}
EVENTS = st.one_of(
    st.builds(ev.RunStarted, _times, st.integers(0, 2**48), _facts),
    st.builds(ev.StepSucceeded, _names, _counts, _times, _times, _refs, _facts, _usage, _calls, st.none() | _refs),
    st.builds(ev.StepFailed, _names, _counts, _times, _times, _failures, _usage, st.none() | _refs),
    st.builds(ev.StepDeferred, _names, _counts, _times, _times, _times, st.booleans()),
    st.builds(ev.ReviewDecided, _names, _times, st.booleans(), _refs, _facts),
    st.builds(ev.TimerFired, _names, _times),
    st.builds(ev.CompensationSucceeded, _names, _counts, _times, _times),
    st.builds(ev.CompensationFailed, _names, _counts, _times, _times, _failures),
    st.builds(ev.CancelRequested, _times, _names),
)


@settings(deadline=None)
@given(EVENTS)
def test_round_trip_through_text(event: Any) -> None:
    again = ev.event_from_json(json.loads(json.dumps(ev.event_to_json(event))))
    assert again == event
    assert type(again) is type(event)


def test_facts_keep_their_types() -> None:
    """A fact that came back as another type would take another branch."""
    event = ev.RunStarted(1.0, 1, {"b": True, "i": 1, "f": 1.0, "e": "1", "zero": 0, "no": False})
    again = ev.event_from_json(json.loads(json.dumps(ev.event_to_json(event))))
    assert {name: (type(value), value) for name, value in again.facts.items()} == {
        name: (type(value), value) for name, value in event.facts.items()
    }


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"type": "timer_fired", "at": 1},
        {"type": "timer_fired", "at": "soon", "timer": "x"},
        {"type": "run_started", "at": 1, "seed": "seven"},
        {"type": "compensation_succeeded", "step": "a", "attempt": 1, "at": 1},  # when did it begin?
        {
            "type": "step_failed",
            "step": "a",
            "attempt": 1,
            "began": 1,
            "at": 1,
            "failure": _FAILED,
            "usage": {"known_cost": 0.5},
        },
    ],
)
def test_what_is_no_event_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ev.event_from_json(entry)


def test_the_end_is_the_end() -> None:
    assert {status for status, moves in ev.RUN_MOVES.items() if not moves} == ev.TERMINAL - {ev.RunStatus.DEAD}
    assert set(ev.RUN_MOVES) == set(ev.RunStatus)
