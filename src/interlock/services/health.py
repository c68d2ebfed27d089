"""Readiness of a process."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from interlock.base.errors import Unavailable
from interlock.fleet.workers import SILENT_SECONDS
from interlock.services.views.installation import Ready
from interlock.store.database import Database

_READY_SECONDS = 2.0  # a probe waits no longer; the retries of a query would
_MIB = 2**20
_FREE_BYTES = 32 * _MIB  # below this a commit with a large value, or PostgreSQL's own log, may not fit


class Health:
    """Readiness of a process. Open to all: probes have no key.

    Args:
        data: directory of the installation, with large values, keys and logs.
    """

    def __init__(self, database: Database, data: Path) -> None:
        self._database = database
        self._data = data

    async def ready(self) -> Ready:
        """Raises:
        Unavailable: the database did not answer within two seconds, or the disk of the data directory is full.
        """
        ready = await self.database()
        free = await asyncio.to_thread(_free_bytes, self._data)
        if free < _FREE_BYTES:
            raise Unavailable(
                f"only {free // _MIB} MiB are free on the disk of the data directory; {_FREE_BYTES // _MIB} are needed, make room"
            )
        return ready

    async def database(self) -> Ready:
        """Raises:
        Unavailable: the database did not answer within two seconds.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS):
                depth = await self._database.row("queue_depth")
                present = await self._database.row("present_workers", SILENT_SECONDS)
        except TimeoutError as error:
            raise Unavailable(
                f"the database did not answer within {_READY_SECONDS:g} s; check that PostgreSQL runs"
            ) from error
        assert depth is not None, "the query counts"
        assert present is not None, "the query counts"
        return Ready(queue_depth=depth[0], workers=present["workers"])


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free
