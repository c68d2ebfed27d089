"""Readiness of a process."""

from __future__ import annotations

import asyncio

from interlock.base.errors import Unavailable
from interlock.fleet.workers import SILENT_SECONDS
from interlock.services.views.installation import Ready
from interlock.store.database import Database

_READY_SECONDS = 2.0  # a probe waits no longer; the retries of a query would


class Health:
    """Readiness of a process. Open to all: probes have no key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ready(self) -> Ready:
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
