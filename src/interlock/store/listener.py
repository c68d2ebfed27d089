"""Hearing what other processes notify: the quick way beside a poll, which stays the net under it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from interlock.store.database import DOWN, Connection, Database

_LOOK_SECONDS = 1.0  # how often the connection is looked at, and how long until the next attempt


class Listener:
    """Listens on one channel, and listens again whenever the connection was lost.

    Args:
        heard: gets every notification's payload, and an empty one each time listening begins, because something may have
            been said before that.
    """

    def __init__(self, database: Database, channel: str, on_notification: Callable[[str], None]) -> None:
        self._database = database
        self._channel = channel
        self._on_notification = on_notification
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def listening(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    def start(self) -> None:
        self._task = asyncio.create_task(self._listen_forever(), name=f"listen on {self._channel}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._connection is not None:
            with contextlib.suppress(*DOWN):
                async with asyncio.timeout(2):
                    await self._connection.close()
            self._connection = None

    async def _listen_forever(self) -> None:
        while True:
            try:
                self._connection = await self._database.listen(self._channel, self._on_notification)
                self._on_notification("")
                while self.listening:  # noqa: ASYNC110  the library has no event for it
                    await asyncio.sleep(_LOOK_SECONDS)
            except Exception:  # noqa: BLE001, S110  the owner polls as well; a server that refuses now may not later
                pass
            await asyncio.sleep(_LOOK_SECONDS)
