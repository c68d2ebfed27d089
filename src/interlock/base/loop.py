"""Event loop of long-running processes: libuv's, with a less frequent garbage collection.

The loop saves a tenth of a step's processor time against asyncio's, the garbage collection another tenth (`docs/performance.md`).
With `INTERLOCK_DEBUG` set, the log names what holds the loop for longer than `holds.LIMIT`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Coroutine
from typing import TypeVar

import uvloop

from interlock.base.holds import Hold, HoldWatch

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Python's default 700, 10, 10 scans young objects several times in a step, and all objects of a worker every few seconds.
# Apart from exceptions a step creates no cycles, so rare collections keep only some MB alive for longer.
_THRESHOLDS = (20_000, 20, 20)


def run(main: Coroutine[object, None, T]) -> T:
    """`asyncio.run` on this loop; Ctrl-C cancels `main`, as in asyncio."""
    gc.freeze()  # modules live as long as the process; the collector need not scan them
    gc.set_threshold(*_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if os.environ.get("INTERLOCK_DEBUG"):
            HoldWatch(runner.get_loop(), _warn).start()
        return runner.run(main)


def _warn(hold: Hold) -> None:
    _log.warning("%s", hold)
