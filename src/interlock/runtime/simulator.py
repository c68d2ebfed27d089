"""The machine driven in memory: no database, no clock but its own. For property tests and for users' own tests."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from interlock.workflows import events as ev
from interlock.workflows.machine import advance
from interlock.workflows.program import Program
from interlock.workflows.state import RunState

Answer = Callable[[ev.Command, float], Any]
"""(command, now) → the event that answers it, or None to leave it unanswered."""

_MAX_EVENTS = 100_000  # a program that needs more does not end


@dataclass(slots=True)
class Trail:
    """What happened: the final state, every event taken, every command given."""

    state: RunState
    events: list[Any] = field(default_factory=list)
    commands: list[ev.Command] = field(default_factory=list)


def simulate(program: Program, answer: Answer, *, seed: int = 0, facts: dict[str, Any] | None = None) -> Trail:
    """Runs a program to its end, or until nothing more will happen.

    Work is answered at once, in the order commanded; timers fire in order of their due times once all work is done.
    """
    now = 0.0
    trail = Trail(RunState())
    timers: list[tuple[float, int, str]] = []
    todo: list[ev.Command] = []

    def apply(event: Any) -> None:
        before = trail.state
        trail.state, commands = advance(program, before, event)
        if trail.state is before:
            return  # as a real driver: what the machine refuses is not journalled, such as a decision after a cancellation
        trail.events.append(event)
        trail.commands.extend(commands)
        todo.extend(commands)

    apply(ev.RunStarted(now, seed, facts or {}))
    while len(trail.events) < _MAX_EVENTS and not trail.state.over:
        if todo:
            command = todo.pop(0)
            if isinstance(command, ev.StartTimer):
                heapq.heappush(timers, (command.due, len(trail.events), command.timer))
                continue
            event = answer(command, now)
            if event is not None:
                apply(event)
        elif timers:
            due, _, timer = heapq.heappop(timers)
            now = max(now, due)
            apply(ev.TimerFired(timer, now))
        else:
            break
    return trail
