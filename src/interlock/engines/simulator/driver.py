"""The machine driven in memory: no database, no clock but its own. For property tests and for users' own tests."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from interlock.machine import events as ev
from interlock.machine.machine import advance
from interlock.machine.program import Program
from interlock.machine.state import RunState
from interlock.machine.version import MACHINE_VERSION
from interlock.workflows.facts import Facts

Responder = Callable[[ev.Command, float], ev.Event | None]
"""(command, now) → the event that answers it, or None to leave it unanswered."""

_MAX_EVENTS = 100_000  # a program that needs more does not end


@dataclass(slots=True)
class SimulatedRun:
    """A run driven in memory: its state, every event taken, every command given."""

    program: Program
    state: RunState = field(default_factory=RunState)
    events: list[ev.Event] = field(default_factory=list)
    commands: list[ev.Command] = field(default_factory=list)

    def tell(self, event: ev.Event) -> list[ev.Command] | None:
        """The commands an event leads to; None if the machine refuses it, which is not journalled, as in a real driver."""
        before = self.state
        self.state, commands = advance(self.program, before, event)
        if self.state is before:
            return None
        self.events.append(event)
        self.commands += commands
        return commands


def simulate(program: Program, answer: Responder, *, seed: int = 0, facts: Facts | None = None) -> SimulatedRun:
    """Runs a program to its end, or until nothing more will happen.

    Work is answered at once, in the order commanded; timers fire in order of their due times once all work is done.
    """
    now = 0.0
    run_ = SimulatedRun(program)
    timers: list[tuple[float, int, str]] = []
    todo = run_.tell(ev.RunStarted(now, seed, facts or {}, MACHINE_VERSION)) or []
    while len(run_.events) < _MAX_EVENTS and not run_.state.over:
        if todo:
            command = todo.pop(0)
            if isinstance(command, ev.StartTimer):
                heapq.heappush(timers, (command.due, len(run_.events), command.timer))
            elif (event := answer(command, now)) is not None:
                todo += run_.tell(event) or []
        elif timers:
            due, _, timer = heapq.heappop(timers)
            now = max(now, due)
            todo += run_.tell(ev.TimerFired(timer, now)) or []
        else:
            break
    return run_
