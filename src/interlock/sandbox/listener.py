"""Listening socket of an egress proxy, with bounds on the connections that are open at once.

At a bound the listener stops accepting. Further connections wait in the kernel's queue, where they use no descriptor of
this process, so a tool that opens connections without end takes nothing away from the other sandboxes of the worker.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

CONNECTIONS = 64  # of one sandbox at once
_SHARED_MOST, _SHARED_LEAST = 256, 16  # of all sandboxes of a worker, see `SharedBound`
_BACKLOG = 128  # connections in the kernel's queue; the next one is refused
_RETRY = 0.2  # seconds until the next attempt after a failed accept, such as too many open files

Serve = Callable[[socket.socket], Coroutine[object, object, None]]
"""Serves one accepted connection and closes it."""

_log = logging.getLogger(__name__)


class SharedBound:
    """Bound on the connections of all sandboxes of a worker.

    Each sandbox may always hold one connection; its further ones count against the bound. Sandboxes that wait for room get
    it in turn, one connection each.

    Args:
        most: the bound; None for an eighth of the descriptors that this process may open, at most 256. A served connection
            uses two descriptors.
    """

    def __init__(self, most: int | None = None) -> None:
        if most is None:
            most = max(_SHARED_LEAST, min(_SHARED_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8))
        self._left = most
        self._waiting: dict[BoundedListener, None] = {}

    def take(self, listener: BoundedListener) -> bool:
        """Room for one more connection; if there is none, the listener is resumed when there is."""
        if self._left == 0:
            self._waiting[listener] = None  # keeps its turn if it waits already
            return False
        self._left -= 1
        self._waiting.pop(listener, None)
        return True

    def release(self) -> None:
        self._left += 1
        while self._left and self._waiting:
            listener = next(iter(self._waiting))
            del self._waiting[listener]
            listener.resume()

    def forget(self, listener: BoundedListener) -> None:
        self._waiting.pop(listener, None)


class BoundedListener:
    """Accepts connections at a path and serves each in a task, within its own bound and the shared one."""

    def __init__(self, serve: Serve, shared: SharedBound) -> None:
        self._serve = serve
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._serving: dict[asyncio.Task[None], socket.socket] = {}
        self._accepting = False
        self._retry: asyncio.TimerHandle | None = None

    def start(self, path: Path) -> None:
        """Listen at `path`, which every user may connect to; permissions of its directory restrict the access."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.listen(_BACKLOG)
        self.resume()

    async def close(self) -> None:
        """Ends all connections, those in the kernel's queue included."""
        self._pause()
        self._shared.forget(self)
        if self._retry is not None:
            self._retry.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def resume(self) -> None:
        """Accept again, beginning with a connection that waits."""
        if self._socket is not None and not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._socket.fileno(), self._accept)
            self._accept()

    def _pause(self) -> None:
        if self._socket is not None and self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        """Accept one connection, or stop until there is room."""
        assert self._socket is not None
        first = not self._serving
        if len(self._serving) >= CONNECTIONS or not (first or self._shared.take(self)):
            self._pause()
            return
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            self._give_back(first)
            return
        except OSError as error:
            _log.warning("a connection of a tool waits, because it cannot be accepted: %s", error)
            self._pause()  # else the loop would try at every turn
            self._retry = self._loop.call_later(_RETRY, self.resume)
            self._give_back(first)
            return
        self._shared.forget(self)
        task = self._loop.create_task(self._serve(connection))
        self._serving[task] = connection
        task.add_done_callback(self._ended)

    def _give_back(self, first: bool) -> None:
        if not first:
            self._shared.release()

    def _ended(self, task: asyncio.Task[None]) -> None:
        connection = self._serving.pop(task)
        if task.cancelled():
            connection.close()  # it may have been cancelled before its first step
        self._give_back(not self._serving)
        self.resume()
