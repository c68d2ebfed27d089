"""Refresh of in-memory state: on a database notification, and every second in case a notification is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from interlock.store.database import Database
from interlock.store.listener import Listener
from interlock.telemetry import names
from interlock.telemetry.logs import log

CHANNEL = "interlock_health"
POLL_SECONDS = 1.0

Refresh = Callable[[], Awaitable[None]]
"""Reads the state anew into memory."""


class StateRefresh:
    """Refreshes the process's copy of breakers, tool health and quotas.

    A failed refresh is logged and repeated; the last known state stays in force meanwhile.
    """

    def __init__(self, database: Database, refreshes: list[Refresh], *, poll_seconds: float = POLL_SECONDS) -> None:
        self._refreshes = refreshes
        self._poll = poll_seconds
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listener = Listener(database, CHANNEL, lambda _: self._changed.set())
        self._away = False

    async def start(self) -> None:
        """Reads everything once, so that a process starts with the current state."""
        await self._refresh()
        self._task = asyncio.create_task(self._refresh_forever(), name="refresh health")
        self._listener.start()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._listener.close()

    async def _refresh(self) -> None:
        for refresh in self._refreshes:
            try:
                await refresh()
            except Exception as error:  # noqa: BLE001  the last known state stays in force on any database error
                if not self._away:  # log once, not every second
                    log(names.LOG_HEALTH_UNKNOWN, str(error), level="warning")
                self._away = True
                return
        self._away = False

    async def _refresh_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._changed.wait()
            self._changed.clear()  # cleared before reading, so that a change from here on is read again
            await self._refresh()
