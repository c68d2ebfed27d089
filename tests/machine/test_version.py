"""Which runs a release drives: those of the machine versions that it knows."""

from __future__ import annotations

from typing import Any

import pytest

from interlock.machine import events as ev
from interlock.machine import version
from interlock.machine.machine import advance
from interlock.machine.state import RunState, state_from_json, state_to_json
from interlock.machine.version import NeedsNewerRelease

from .by_hand import Run

NEWER = version.MACHINE_VERSION + 1
STARTED = ev.RunStarted(1.0, 1, {}, NEWER)


def test_a_run_of_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(
        NeedsNewerRelease,
        match=rf"needs a newer release: its machine version is {NEWER}, and this release knows 1 to {NEWER - 1}",
    ):
        advance(Run("- {id: a, kind: wait, duration: 5}").program, RunState(), STARTED)


def test_an_event_of_a_newer_release_is_refused_by_name() -> None:
    with pytest.raises(NeedsNewerRelease, match=r'needs a newer release: its journal has an event "step_exploded"'):
        ev.event_from_json({"type": "step_exploded", "at": 1})


def test_the_state_keeps_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Run("- {id: a, kind: wait, duration: 5}").program
    with monkeypatch.context() as newer:
        newer.setattr(version, "MACHINE_VERSION", NEWER)
        state, _ = advance(program, RunState(), STARTED)
        assert state.machine == NEWER
        old, _ = advance(program, RunState(), ev.RunStarted(1.0, 1))
        old, _ = advance(program, old, ev.PauseRequested(2.0))
        assert old.machine == 1
        data: Any = state_to_json(state)
        assert state_from_json(data) == state
    with pytest.raises(NeedsNewerRelease):
        state_from_json(data)


def test_a_journal_without_a_version_is_of_the_first() -> None:
    event = ev.event_from_json({"type": "run_started", "at": 1.0, "seed": 1})
    assert event.machine == 1
