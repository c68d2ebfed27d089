"""Any event at all: every kind, with the fields of a state's own steps and timers, or with nonsense."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from interlock.base.errors import FailureKind
from interlock.machine import events as ev
from interlock.machine.program import Program
from interlock.machine.state import RunState

from .world import ref

_NAMES = ["", "nobody", "input", "s0", "s1#1", "s1#1/s2", "s3#0/turn", "#", "/", "a/b/c", "s2#1/call#1"]
_TIMERS = ["", "deadline", "retry:s0:1", "a:b:c:d", "limit:nobody", "wait:s1", ":::"]
_FACTS: list[dict[str, Any]] = [
    {},
    {"n": 1, "flag": True, "approved": True, "case": 0},
    {"n": 10**400, "count": -1},
    {"n": 1e300, "count": 10**9},
    {"n": "text", "count": "two", "succeeded": None},
    {"count": True, "flag": 1},
    {"count": 2},
]
_CALLS = [(), ("look",), ("book", "look", "send"), ("unheard_of",), ("look",) * 50]


def any_event(rng: random.Random, program: Program, state: RunState) -> Any:
    """An event that may or may not fit the state."""
    kind = rng.choice(list(_MAKERS))
    return _MAKERS[kind](rng, _name(rng, program, state), state)


def _name(rng: random.Random, program: Program, state: RunState) -> str:
    known = [*state.steps, *state.steps, *program.nodes]
    return rng.choice(_NAMES) if rng.random() < 0.2 or not known else rng.choice(known)


def _attempt(rng: random.Random, name: str, state: RunState) -> int:
    step = state.steps.get(name)
    real = [step.attempt, step.compensation_attempt] if step is not None else []
    return rng.choice([*real, *real, -1, 0, 1, 2**70])


def _failure(rng: random.Random) -> ev.Failure:
    after = rng.choice([None, None, 0.0, -5.0, 100.0])
    return ev.Failure(rng.choice(list(FailureKind)), "code", "it failed", after, rng.random() < 0.3)


def _at(rng: random.Random) -> float:
    return rng.choice([0.0, -1.0, 1000.0, 1e12])


def _timer(rng: random.Random, name: str, state: RunState) -> ev.TimerFired:
    return ev.TimerFired(
        rng.choice([*state.timers, *state.timers, *_TIMERS, f"limit:{name}", f"retry:{name}:1"]), _at(rng)
    )


_Maker = Callable[[random.Random, str, RunState], Any]
_MAKERS: dict[type, _Maker] = {
    ev.RunStarted: lambda rng, name, state: ev.RunStarted(_at(rng), 1, rng.choice(_FACTS)),
    ev.StepSucceeded: lambda rng, name, state: ev.StepSucceeded(
        name, _attempt(rng, name, state), _at(rng), _at(rng), ref("x"), rng.choice(_FACTS), calls=rng.choice(_CALLS)
    ),
    ev.StepFailed: lambda rng, name, state: ev.StepFailed(
        name, _attempt(rng, name, state), _at(rng), _at(rng), _failure(rng)
    ),
    ev.StepDeferred: lambda rng, name, state: ev.StepDeferred(
        name, _attempt(rng, name, state), _at(rng), _at(rng), rng.choice([-1.0, 0.0, 1e9])
    ),
    ev.ApprovalNeeded: lambda rng, name, state: ev.ApprovalNeeded(
        name, _attempt(rng, name, state), _at(rng), _at(rng), rng.choice(["", "digest"]), ref("x"), "policy"
    ),
    ev.ReviewDecided: lambda rng, name, state: ev.ReviewDecided(
        name, _at(rng), rng.random() < 0.5, ref("x"), rng.choice(_FACTS), rng.choice(["", "digest"])
    ),
    ev.TimerFired: _timer,
    ev.CompensationSucceeded: lambda rng, name, state: ev.CompensationSucceeded(
        name, _attempt(rng, name, state), _at(rng), _at(rng)
    ),
    ev.CompensationFailed: lambda rng, name, state: ev.CompensationFailed(
        name, _attempt(rng, name, state), _at(rng), _at(rng), _failure(rng)
    ),
    ev.CancelRequested: lambda rng, name, state: ev.CancelRequested(_at(rng), ""),
    ev.SignalReceived: lambda rng, name, state: ev.SignalReceived(
        rng.choice(["go", "stop", "", name]), rng.choice(["id1", "id2", ""]), _at(rng), ref("x"), rng.choice(_FACTS)
    ),
    ev.PauseRequested: lambda rng, name, state: ev.PauseRequested(_at(rng)),
    ev.ResumeRequested: lambda rng, name, state: ev.ResumeRequested(_at(rng)),
    ev.DeadLetterRequeued: lambda rng, name, state: ev.DeadLetterRequeued(name, _at(rng), rng.choice([None, ref("y")])),
    ev.DeadLetterDiscarded: lambda rng, name, state: ev.DeadLetterDiscarded(name, _at(rng)),
}


def all_kinds() -> set[type]:
    return set(_MAKERS)
