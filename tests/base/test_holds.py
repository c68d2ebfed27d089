from __future__ import annotations

import asyncio
import re
import time

from interlock.base.holds import Hold, HoldWatch


def _occupy(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_held_loop_is_reported_with_task_and_place() -> None:
    holds: list[Hold] = []
    watch = HoldWatch(asyncio.get_running_loop(), holds.append, limit=0.02)
    watch.start()

    async def hold() -> None:
        seconds = 0.05
        while not any(_occupy.__name__ in one.place for one in holds):  # until the thread had a look at it
            _occupy(seconds)
            seconds *= 1.5
            await asyncio.sleep(0.02)

    async with asyncio.timeout(120):
        await asyncio.create_task(hold(), name="holder")
    watch.stop()
    (found, *_) = [one for one in holds if _occupy.__name__ in one.place]
    assert found.task.startswith('task "holder" (test_a_held_loop_is_reported_with_task_and_place.')
    assert found.task.endswith("hold)")
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ _occupy", found.place)
    assert str(found).startswith("the event loop was held for ")


async def test_a_loop_that_turns_is_not_reported() -> None:
    """With a limit that no machine reaches."""
    holds: list[Hold] = []
    watch = HoldWatch(asyncio.get_running_loop(), holds.append, limit=600.0)
    watch.start()
    for _ in range(50):
        await asyncio.sleep(0)
    watch.stop()
    assert holds == []
