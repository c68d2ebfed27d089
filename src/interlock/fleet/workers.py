"""Worker registry: heartbeats of workers, and drain requests to them."""

from __future__ import annotations

import asyncio
import os
import socket
from importlib import metadata

from interlock.base.background import Loop
from interlock.base.errors import NotFound
from interlock.store.admin_rows import DrainedWorker
from interlock.store.database import Database
from interlock.store.listener import Listener
from interlock.telemetry import names
from interlock.telemetry.logs import log

CHANNEL = "interlock_workers"
SILENT_SECONDS = 60.0
"""Seconds without a heartbeat after which a worker counts as dead; it sends one every third of its lease."""


class WorkerRegistry:
    """The row of one worker in the table of workers.

    Attributes:
        asked: set when this worker is asked to drain.
    """

    def __init__(self, database: Database, *, worker_id: str, engine: str, every: float) -> None:
        self._database = database
        self._worker_id = worker_id
        self._engine = engine
        self._loop = Loop("worker-registry", self._say, every=every, at_once=False, longest=every, report=_down)
        self._listener = Listener(database, CHANNEL, lambda _: self._loop.wake())
        self.asked = asyncio.Event()

    async def start(self) -> None:
        await self._say()
        self._loop.start()
        self._listener.start()

    async def close(self) -> None:
        """Deletes the row; called when the worker has drained."""
        await self._loop.close()
        await self._listener.close()
        await self._database.rows("worker_gone", self._worker_id)

    async def _say(self) -> None:
        version = metadata.version("interlock")
        args = (self._worker_id, socket.gethostname(), os.getpid(), self._engine, version)
        row = await self._database.row("worker_seen", *args)
        if row is not None and row["draining"]:
            self.asked.set()


def _down(error: Exception) -> None:
    # A worker without a registry entry still works.
    log(names.LOG_DATABASE_DOWN, str(error), level="error")


async def workers(database: Database) -> list[dict[str, object]]:
    """All workers of the database, silent ones included; `silent` is in seconds, `runs` is the number of their runs."""
    return [dict(row) for row in await database.rows("list_workers")]


async def drainable(database: Database, worker_id: str | None) -> list[DrainedWorker]:
    """The rows that ask one worker, or all present ones, to finish the steps under way and exit.

    Raises:
        NotFound: no such worker.
    """
    present = sorted(str(row["worker_id"]) for row in await database.rows("list_workers"))
    if worker_id is not None and worker_id not in present:
        raise NotFound(f'no worker "{worker_id}" on this database; `interlock workers` lists them')
    return [DrainedWorker(worker_id=one) for one in present if worker_id in (None, one)]
