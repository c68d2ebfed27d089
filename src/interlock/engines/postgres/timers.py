"""Timers of a run that a worker drives; a run without a worker is woken by the queue instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from interlock.base.clock import Clock
from interlock.machine.events import StartTimer, TimerFired

_LOOK_AGAIN_SECONDS = 10.0  # the clock is the database's, and may turn out to be behind


class Timers:
    """Timers by name; `fired` gets the event of each that is due."""

    def __init__(self, clock: Clock, fired: Callable[[TimerFired], None]) -> None:
        self._clock = clock
        self._fired = fired
        self._handles: dict[str, tuple[float, asyncio.TimerHandle]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    @property
    def soonest(self) -> float | None:
        """The time at which the next one is due, seconds since the epoch."""
        return min((due for due, _ in self._handles.values()), default=None)

    def start(self, command: StartTimer) -> None:
        delay = max(0.0, command.due - self._clock.now())
        handle = asyncio.get_running_loop().call_later(min(delay, _LOOK_AGAIN_SECONDS), self._due, command)
        self._handles[command.timer] = (command.due, handle)

    def cancel(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._handles:
                self._handles.pop(name)[1].cancel()

    def close(self) -> None:
        self.cancel(list(self._handles))

    def _due(self, command: StartTimer) -> None:
        if command.due > self._clock.now():
            self.start(command)
            return
        self._handles.pop(command.timer, None)
        self._fired(TimerFired(command.timer, self._clock.now()))
