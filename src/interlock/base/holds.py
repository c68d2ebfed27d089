"""Watch over an event loop: reports the task and the place in the code that hold it, for debugging and for the test suite.

A held loop serves no request and renews no lease. The report is made by a thread, which needs the interpreter lock: a call
into a native library that keeps the lock is reported at the line to which it returns.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

LIMIT = 0.05  # seconds
_OURS = "/interlock/"


@dataclass(frozen=True, slots=True)
class Hold:
    """A time in which a loop made no turn.

    Attributes:
        seconds: how long.
        task: name and coroutine of the task that ran; "a callback" if it was none.
        place: innermost place in Interlock's code, and in any code if that is another, each as `file:line function`.
    """

    seconds: float
    task: str
    place: str

    def __str__(self) -> str:
        return f"the event loop was held for {self.seconds * 1000:.0f} ms by {self.task} at {self.place}"


class HoldWatch:
    """Watches one loop until `stop`, or until the loop is closed.

    Args:
        report: called in the watch's thread.
        limit: seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[Hold], None], limit: float = LIMIT) -> None:
        self._loop = loop
        self._report = report
        self._limit = limit
        self._turn = time.monotonic()
        self._thread_id = 0
        self._over = threading.Event()

    def start(self) -> None:
        self._loop.call_soon(self._tick)

    def stop(self) -> None:
        self._over.set()

    def _tick(self) -> None:
        """Executed by the loop, several times within the limit."""
        self._turn = time.monotonic()
        if not self._thread_id:
            self._thread_id = threading.get_ident()
            threading.Thread(target=self._watch, name="loop-watch", daemon=True).start()
        if not self._over.is_set():
            self._loop.call_later(self._limit / 4, self._tick)

    def _watch(self) -> None:
        seen: tuple[float, str, str] | None = None
        ignored = 0.0  # the turn before a pause between two runs of the loop
        while not self._over.wait(self._limit / 4) and not self._loop.is_closed():
            turn = self._turn
            if not self._loop.is_running():
                seen, ignored = None, turn
                continue
            if seen is not None and seen[0] != turn:
                self._report(Hold(turn - seen[0], seen[1], seen[2]))
                seen = None
            if seen is None and turn != ignored and time.monotonic() - turn > self._limit:
                frames = sys._current_frames()  # noqa: SLF001  documented, in spite of its name
                seen = (turn, _task(self._loop), _place(frames.get(self._thread_id)))


def _task(loop: asyncio.AbstractEventLoop) -> str:
    task = asyncio.current_task(loop)
    if task is None:
        return "a callback"
    return f'task "{task.get_name()}" ({getattr(task.get_coro(), "__qualname__", "?")})'


def _place(frame: FrameType | None) -> str:
    innermost = frame
    while frame is not None and _OURS not in frame.f_code.co_filename:
        frame = frame.f_back
    if innermost is None:
        return "an unknown place"
    if frame is None or frame is innermost:
        return _line(innermost)
    return f"{_line(frame)}, in {_line(innermost)}"


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
