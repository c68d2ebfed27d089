"""Supervised background loop: one piece of work, repeated in a task of its own until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

_REASONS = 8  # different errors that are reported in one streak of failures
_LONGEST_SECONDS = 60.0
_CANCEL_AGAIN_SECONDS = 5.0

Work = Callable[[], Awaitable[bool | None]]
"""One round. True: there is more, begin the next round at once. An error is reported and the round repeated later."""

Report = Callable[[Exception], None]


class Loop:
    """Runs `work` every `every` seconds, and at once after `wake`, until `close`.

    A round that raises does not end the loop. The first error of a streak and each error with another text is reported, at most
    eight in a streak, so a database that is away for an hour fills no log. The wait doubles from `retry` to `longest` seconds
    as failures follow each other, and a wake-up does not shorten it. A wake-up during a round causes another round.

    Args:
        name: of the task, for debuggers and error messages.
        every: seconds between the end of a round and the next; None waits for `wake` only.
        at_once: begin with a round; otherwise with the wait.
        retry: seconds until the round after a first failure; `every` if not given, or 1 without that.
        longest: seconds that the wait after failures grows to; not less than `retry`.
        report: receives errors; without it they are only kept in `error`.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        *,
        every: float | None,
        at_once: bool = True,
        retry: float | None = None,
        longest: float = _LONGEST_SECONDS,
        report: Report | None = None,
    ) -> None:
        self.name = name
        self._work = work
        self._every = every
        self._at_once = at_once
        self._retry = retry if retry is not None else every if every is not None else 1.0
        self._longest = max(longest, self._retry)
        self._report = report
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._closing = asyncio.Event()
        self._reported: set[str] = set()
        self._failures = 0
        self._error: Exception | None = None

    @property
    def running(self) -> bool:
        """False before `start`, after `close`, and if the task died; only then `error` is set while nothing runs.

        A task dies when it is cancelled from outside or its work raises a BaseException; that is reported.
        """
        return self._task is not None and not self._task.done()

    @property
    def failures(self) -> int:
        """Rounds that failed in a row, up to now."""
        return self._failures

    @property
    def error(self) -> Exception | None:
        """The last round's error, or None if it succeeded."""
        return self._error

    def start(self) -> None:
        """Raises RuntimeError if it runs already."""
        if self.running:
            raise RuntimeError(f'the loop "{self.name}" runs already')
        self._closing.clear()
        self._task = asyncio.create_task(self._run(), name=self.name)
        self._task.add_done_callback(self._ended)

    def wake(self) -> None:
        """Causes a round now, or after the one under way. To be called on the event loop's thread."""
        self._woken.set()

    async def close(self) -> None:
        """Cancels the round under way and waits until it has ended; does nothing the second time."""
        self._closing.set()
        task = self._task
        while task is not None and not task.done():
            task.cancel()  # again, should the work have swallowed the first
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_SECONDS)

    def finish(self) -> None:
        """Makes the round under way the last, without waiting for it; its `True` does not prolong the loop."""
        self._closing.set()
        self._woken.set()

    async def stop(self) -> None:
        """Ends after the round under way, as `finish`, and waits until it has ended."""
        self.finish()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        if not self._at_once:
            await self._pause()
        while not self._closing.is_set():
            self._woken.clear()  # before the work: what is announced from here on causes another round
            error, more = await self._round()
            if error is not None:
                self._failed(error)
                await self._back_off(min(self._longest, self._retry * 2 ** min(self._failures - 1, 60)))
            else:
                self._failures, self._error = 0, None
                self._reported.clear()
                await (asyncio.sleep(0) if more else self._pause())

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Reports a loop that ended by itself: cancelled from outside, or by a BaseException of its work."""
        cause = None if task.cancelled() else task.exception()
        if self._closing.is_set() and cause is None:
            return
        how = "it was cancelled" if cause is None else repr(cause)
        self._error = RuntimeError(f'the loop "{self.name}" has died: {how}')
        if self._report is not None:
            self._report(self._error)

    async def _round(self) -> tuple[Exception | None, bool]:
        try:
            return None, bool(await self._work())
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closing.is_set() or (task is not None and task.cancelling()):
                raise
            # Something that the work awaited was cancelled, not this loop.
            return RuntimeError(f'the work of the loop "{self.name}" was cancelled from inside'), False
        except Exception as error:  # noqa: BLE001  the next round may succeed
            return error, False

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._error = error
        reason = f"{type(error).__name__}: {error}"
        if self._report is not None and reason not in self._reported and len(self._reported) < _REASONS:
            self._reported.add(reason)
            with contextlib.suppress(Exception):  # a report that fails must not end the loop
                self._report(error)

    async def _pause(self) -> None:
        if not self._closing.is_set():
            await _wait(self._woken, self._every)

    async def _back_off(self, seconds: float) -> None:
        await _wait(self._closing, seconds)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
