"""Every journal of every machine version folds to the state it folded to when the version was current."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from interlock.machine import events as ev
from interlock.machine.machine import fold
from interlock.machine.state import RunState
from interlock.machine.version import MACHINE_VERSION, OLDEST_MACHINE

from .kept_journals import PLACE, digest, read

FILES = sorted(PLACE.glob("v*.jsonl.gz"))


def test_every_version_that_is_kept_has_its_journals() -> None:
    assert {file.name for file in FILES} == {f"v{one}.jsonl.gz" for one in range(OLDEST_MACHINE, MACHINE_VERSION + 1)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_folds_to_the_same_state(file: Path) -> None:
    different, count = [], 0
    for kept in read(file):
        count += 1
        state = fold(kept.program, map(ev.event_from_json, kept.events))
        begun = any(event["type"] == "run_started" for event in kept.events)  # some are cancelled before
        assert not begun or f"v{state.machine}.jsonl.gz" == file.name
        if digest(state) != kept.digest:
            different.append(kept.name)
    assert count > 1000
    assert not different, (
        f"{len(different)} of {count} journals fold to another state, such as {different[:5]}. A released version's behaviour "
        "must not change: raise MACHINE_VERSION and branch on it (machine/version.py). Only before its release may a version's "
        "journals be made again, with .venv/bin/python tests/machine/make_journals.py"
    )


def test_the_digest_sees_every_field() -> None:
    """Of the state and of a step: whatever of it is not at its default."""
    kept = next(one for one in read(FILES[-1]) if len(one.events) > 5)
    state = fold(kept.program, map(ev.event_from_json, kept.events))
    name = next(iter(state.steps))
    seen = {digest(state)}
    for one in dataclasses.fields(RunState):
        if one.name == "live":
            continue
        seen.add(digest(dataclasses.replace(state, **{one.name: "another"})))
        assert len(seen) > 1, one.name
    assert len(seen) == 1 + 1 + len(dataclasses.fields(RunState)) - 2
    step = state.steps[name]
    for one in dataclasses.fields(step):
        changed = dataclasses.replace(step, **{one.name: "another"})
        other = digest(dataclasses.replace(state, steps={**state.steps, name: changed}))
        assert other not in seen, one.name
        seen.add(other)
