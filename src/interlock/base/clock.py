"""Clocks. The state machine gets the time inside events; all other code gets it through a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol

# Also counts the time for which the host is suspended, if the system has such a clock: remote systems do not stop either.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def since_boot() -> float:
    """Seconds on a clock that never steps and keeps counting while this process, or the host, is stopped."""
    return time.clock_gettime(_SINCE_BOOT)


class Clock(Protocol):
    """`now` is seconds since the Unix epoch, the database's or the host's; `monotonic` is for measuring durations.

    With a shared database, `now` is the database's time: `store.clock.DatabaseClock`.
    """

    def now(self) -> float: ...

    def monotonic(self) -> float: ...


class SystemClock:
    """The host's own clock, which may step; for code without a database."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that changes only when it is set; for simulations and tests."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
