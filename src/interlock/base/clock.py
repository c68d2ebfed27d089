"""Time, as something handed in: the machine gets it inside events, everything else through a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol

# Goes on while the machine sleeps, where there is such a clock: what others wait for does, too.
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def since_boot() -> float:
    """Seconds on a clock that never steps and does not stop while this process, or the machine, is stopped."""
    return time.clock_gettime(_SINCE_BOOT)


class Clock(Protocol):
    """`now` is seconds since the Unix epoch, the platform's or a machine's; `monotonic` is for measuring durations.

    Where a database is shared, `now` is that database's: `store.clock.DatabaseClock`.
    """

    def now(self) -> float: ...

    def monotonic(self) -> float: ...


class SystemClock:
    """The machine's own clock, which may step: for what has no database to agree with."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to; for simulations and tests."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
