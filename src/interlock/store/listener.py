"""Notifications of other processes: the quick way, beside a poll that finds what was missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from interlock.base.background import Loop
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
        # Errors are not reported: every user of a listener polls too, and reports that the database is away.
        self._loop = Loop(f"listen on {channel}", self._keep_listening, every=_LOOK_SECONDS, longest=_LOOK_SECONDS)

    @property
    def listening(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    def start(self) -> None:
        self._loop.start()

    async def close(self) -> None:
        await self._loop.close()
        if self._connection is not None:
            with contextlib.suppress(*DOWN):
                async with asyncio.timeout(2):
                    await self._connection.close()
            self._connection = None

    async def _keep_listening(self) -> None:
        if not self.listening:
            self._connection = await self._database.listen(self._channel, self._on_notification)
            self._on_notification("")
