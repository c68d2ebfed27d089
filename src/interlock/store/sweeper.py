"""Deletes objects that no commit named: their process died, or their commit was refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from interlock.store.database import Database
from interlock.store.objects import Objects

GRACE_SECONDS = 3600.0
"""An object is swept when it has been pending for so long: far longer than a commit waits for a database that is away."""
_EVERY_SECONDS = 600.0
_BATCH = 100


class ObjectSweeper:
    """Sweeps every ten minutes. Any number of processes may: each takes other objects, and deleting twice is harmless.

    Args:
        failed: gets the error of a sweep that broke off; the next one does its work.
    """

    def __init__(self, database: Database, objects: Objects, failed: Callable[[Exception], None]) -> None:
        self._database = database
        self._objects = objects
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._sweep_forever(), name="sweep objects")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self, *, grace_seconds: float = GRACE_SECONDS) -> int:
        """Deletes what has been pending for longer than `grace_seconds`; how many objects.

        An object is marked before it is deleted and leaves the record after, so a crash at any moment leaves work for the
        next sweep, and a commit that comes late is refused instead of naming an object that is gone.
        """
        swept = 0
        while True:
            rows = await self._database.rows("sweep_objects", grace_seconds, _BATCH)
            found = [row["name"] for row in rows]
            for name in found:
                await self._objects.delete(name)
            if found:
                await self._database.rows("objects_swept", found)
            swept += len(found)
            if len(found) < _BATCH:
                return swept

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001  the next time may be better
                self._failed(error)
