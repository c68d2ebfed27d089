"""Workers whose wall clocks are wrong: timers go by the database's time, so none fires early, late or never.

The control: with `base.clock.SystemClock` in a worker, the first test sees a wait of an hour more or less, and in the second
one the run never ends.
"""

from __future__ import annotations

import signal
import time

import pytest

from engines.conftest import Desk, Spawn
from engines.harness import Model, Observer, until
from interlock.testing import rate_limited

HOUR = 3600.0
WAIT = 600.0


@pytest.mark.parametrize("wrong", [HOUR, -HOUR])
async def test_a_timer_is_as_long_as_it_was_meant_whatever_the_wall_clock_says(
    wrong: float, desk: Desk, spawn: Spawn, seen: Observer, model: Model
) -> None:
    model.script(rate_limited(retry_after=WAIT))
    await spawn(wall=wrong).ready()
    began = time.monotonic()
    run = await desk.start("only_think")
    await until(lambda: "step_failed think" in seen.kinds(run), lambda: f"no failure: {seen.kinds(run)}")
    await seen.asleep(run)
    query = "select extract(epoch from available_at - clock_timestamp()) from queue where run_id = %s"
    left = float(seen.rows(query, run)[0][0])
    assert WAIT - (time.monotonic() - began) - 1 <= left <= WAIT + 1


async def test_workers_with_different_wall_clocks_hand_a_timer_over(
    desk: Desk, spawn: Spawn, seen: Observer, model: Model
) -> None:
    """Set where it is an hour later, it fires where it is an hour earlier, after the six seconds that it was to last."""
    model.script(rate_limited(retry_after=6))
    ahead = await spawn(wall=HOUR).ready()
    began = time.monotonic()
    run = await desk.start("only_think")
    await until(lambda: "step_failed think" in seen.kinds(run), lambda: f"no failure: {seen.kinds(run)}")
    ahead.send(signal.SIGTERM)
    assert await ahead.ended() == 0
    await spawn(wall=-HOUR).ready()
    assert await seen.finished(run) == ["succeeded"]
    assert time.monotonic() - began >= 6
    failed, fired = (next(e for e in seen.journal(run) if e["type"] == kind) for kind in ("step_failed", "timer_fired"))
    assert fired["at"] - failed["at"] >= 6
    assert model.count == 2
    seen.story(run)
