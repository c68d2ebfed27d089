"""Refresh of in-memory state: on a database notification, and every second in case a notification is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from interlock.base.background import Loop
from interlock.store.database import Database
from interlock.store.listener import Listener
from interlock.telemetry import names
from interlock.telemetry.logs import log

CHANNEL = "interlock_health"
POLL_SECONDS = 1.0

Refresh = Callable[[], Awaitable[None]]
"""Reads the state anew into memory."""


class StateRefresh:
    """Refreshes the process's copy of active policies, breakers, tool health and quotas.

    A failed refresh is logged and repeated; the last known state stays in force meanwhile.
    """

    def __init__(self, database: Database, refreshes: list[Refresh], *, poll_seconds: float = POLL_SECONDS) -> None:
        self._refreshes = refreshes
        self._loop = Loop(
            "refresh health", self._refresh, every=poll_seconds, at_once=False, longest=poll_seconds, report=_unknown
        )
        self._listener = Listener(database, CHANNEL, lambda _: self._loop.wake())

    async def start(self) -> None:
        """Reads everything once, so that a process starts with the current state."""
        try:
            await self._refresh()
        except Exception as error:  # noqa: BLE001  the next round may succeed
            _unknown(error)
        self._loop.start()
        self._listener.start()

    async def close(self) -> None:
        await self._loop.close()
        await self._listener.close()

    async def _refresh(self) -> None:
        for refresh in self._refreshes:
            await refresh()


def _unknown(error: Exception) -> None:
    log(names.LOG_HEALTH_UNKNOWN, str(error), level="warning")
