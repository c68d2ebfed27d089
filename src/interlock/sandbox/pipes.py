"""File descriptors on the event loop: a tool's output, process exits, bubblewrap's report.

asyncio's subprocess module is not used: on Python 3.11 it needs a thread for each child, and a pool has many children.
"""

from __future__ import annotations

import asyncio
import os

_CHUNK = 65536
_KEPT = 4096  # bytes of stdout and stderr that are kept
_FREE_OUTPUT = 1 << 20  # bytes read at full speed; a larger output must not occupy the loop
_FLOOD_PAUSE = 0.02  # seconds between chunks of a larger output


class Tail:
    """Reader of a pipe that keeps its last bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._loop = loop
        self._descriptor: int | None = descriptor
        self._kept = b""
        self._total = 0
        self._paused: asyncio.TimerHandle | None = None
        os.set_blocking(descriptor, False)
        loop.add_reader(descriptor, self._readable)

    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def close(self) -> None:
        """Read the rest of the pipe (bounded, because the writers are dead) and close it."""
        if self._descriptor is None:
            return
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._descriptor)
        while self._read():
            pass
        os.close(self._descriptor)
        self._descriptor = None

    def _readable(self) -> None:
        assert self._descriptor is not None
        if not self._read():
            self._loop.remove_reader(self._descriptor)
        elif self._total > _FREE_OUTPUT:
            self._loop.remove_reader(self._descriptor)
            self._paused = self._loop.call_later(_FLOOD_PAUSE, self._loop.add_reader, self._descriptor, self._readable)

    def _read(self) -> bool:
        assert self._descriptor is not None
        try:
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return False
        self._total += len(data)
        self._kept = (self._kept + data)[-_KEPT:]
        return bool(data)


async def readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """Wait for data or the end; for a pidfd, for the exit of the process. One waiter per descriptor at a time."""
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def read_all(loop: asyncio.AbstractEventLoop, descriptor: int) -> bytes:
    """All bytes up to the end of a pipe whose writer is trusted."""
    os.set_blocking(descriptor, False)
    parts: list[bytes] = []
    while True:
        await readable(loop, descriptor)
        part = os.read(descriptor, _CHUNK)
        if not part:
            return b"".join(parts)
        parts.append(part)
