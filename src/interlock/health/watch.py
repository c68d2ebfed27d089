"""How each process learns what changed: a notification at once, and a look every second as the net under it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from interlock.store.database import DOWN, Database
from interlock.telemetry import names
from interlock.telemetry.logs import log

CHANNEL = "interlock_health"
POLL_SECONDS = 1.0

Refresh = Callable[[], Awaitable[None]]
"""Reads the state anew into memory."""


class Watch:
    """Refreshes what processes keep in memory about breakers, tools and quotas.

    A refresh that fails is logged and tried again; what was known stays in force meanwhile.
    """

    def __init__(self, database: Database, refreshes: list[Refresh], *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._refreshes = refreshes
        self._poll = poll_seconds
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: Any = None
        self._away = False

    async def start(self) -> None:
        """Reads everything once, so that a process starts with what the others know."""
        await self._refresh()
        self._tasks = [
            asyncio.create_task(self._refresh_forever(), name="refresh health"),
            asyncio.create_task(self._listen_forever(), name="listen for health"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._listener is not None:
            with contextlib.suppress(*DOWN):
                async with asyncio.timeout(2):
                    await self._listener.close()

    async def _refresh(self) -> None:
        for refresh in self._refreshes:
            try:
                await refresh()
            except Exception as error:  # noqa: BLE001  what is known stays in force, whatever the database says
                if not self._away:  # once, not every second
                    log(names.LOG_HEALTH_UNKNOWN, str(error), level="warning")
                self._away = True
                return
        self._away = False

    async def _refresh_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._changed.wait()
            self._changed.clear()  # before reading: what changes from here on is read again
            await self._refresh()

    async def _listen_forever(self) -> None:
        while True:
            try:
                self._listener = await self._database.listen(CHANNEL, lambda _payload: self._changed.set())
                self._changed.set()  # something may have happened before we listened
                while not self._listener.is_closed():  # noqa: ASYNC110  the library has no event for it
                    await asyncio.sleep(self._poll)
            except DOWN:
                pass  # the poll goes on
            await asyncio.sleep(self._poll)
