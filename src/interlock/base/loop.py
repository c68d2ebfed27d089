"""Event loop of long-running processes: libuv's, with a less frequent garbage collection.

The loop takes a tenth less of a step's processor time than asyncio's, the collector another tenth (`docs/performance.md`).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

# Python's own 700, 10, 10 look at the young objects several times a step, and at all of a worker's every few seconds. What a step
# makes has no cycles, but for exceptions, so looking seldom keeps little alive for longer: some MB.
_THRESHOLDS = (20_000, 20, 20)


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on that loop; Ctrl-C cancels `main`, as there."""
    gc.freeze()  # modules live as long as the process; no need to look at them ever again
    gc.set_threshold(*_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
