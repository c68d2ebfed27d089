"""The clock that moves only when told to."""

from __future__ import annotations

from interlock.base.clock import ManualClock, SystemClock


def test_manual_clock() -> None:
    clock = ManualClock(100.0)
    assert (clock.now(), clock.monotonic()) == (100.0, 100.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (102.5, 102.5)


def test_system_clock_never_runs_backwards() -> None:
    clock = SystemClock()
    readings = [clock.monotonic() for _ in range(100)]
    assert readings == sorted(readings)
    assert clock.now() > 1_700_000_000
