"""Deletion of objects that no commit named: their process died, or their commit was refused."""

from __future__ import annotations

from interlock.store.database import Database
from interlock.store.objects import Objects

GRACE_SECONDS = 3600.0
"""An object is swept when it has been pending for so long: far longer than a commit waits for a database that is away."""
EVERY_SECONDS = 600.0
_BATCH = 100


class ObjectSweeper:
    """Sweeps when called. Any number of processes may: each takes other objects, and deleting twice is harmless."""

    def __init__(self, database: Database, objects: Objects) -> None:
        self._database = database
        self._objects = objects

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
