"""Refused requests on record: counted in memory, written as few audit entries a minute."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from interlock.base.background import Loop
from interlock.base.clock import Clock
from interlock.base.json import JsonObject
from interlock.identity.principal import Principal
from interlock.services.administration import LOCAL_ORG
from interlock.store.commit import Commit, Committer
from interlock.store.entries import Entry
from interlock.telemetry import names
from interlock.telemetry.logs import log

_EVERY_SECONDS = 60.0
_CLOSING_SECONDS = 5.0
_MOST_ACTORS = 100  # of all organisations together; further ones share one entry for each organisation
_MOST_REQUESTS = 20  # of one actor; further ones are counted as "other"
_OTHERS = "others"

RefusalEvent = Literal["access.denied", "auth.refused"]


@dataclass(slots=True)
class _Count:
    since: float
    requests: dict[str, int] = field(default_factory=dict)

    def add(self, request: str, times: int = 1) -> None:
        if request not in self.requests and len(self.requests) >= _MOST_REQUESTS:
            request = "other"
        self.requests[request] = self.requests.get(request, 0) + times


class Refusals:
    """Counts refused requests by principal, or by source where the principal is unknown, and records the counts every minute.

    A flood of refused requests therefore writes a bounded number of entries. Refusals of an unknown caller are on record in the
    installation's own organisation, `local`. A process that is killed loses the counts of its last minute.

    Args:
        ensure_org: creates an organisation unless it exists.
    """

    def __init__(
        self, committer: Committer, clock: Clock, *, ensure_org: Callable[[str, str], Awaitable[None]]
    ) -> None:
        self._committer = committer
        self._clock = clock
        self._ensure_org = ensure_org
        self._counts: dict[tuple[str, RefusalEvent, str], _Count] = {}
        self._loop = Loop("refusals", self.flush, every=_EVERY_SECONDS, at_once=False, report=_failed)

    def start(self) -> None:
        self._loop.start()

    async def close(self) -> None:
        """Records what is counted, if the database answers."""
        await self._loop.close()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self.flush()

    def note_denied(self, principal: Principal, request: str) -> None:
        """Counts a request that a known principal may not make; `request` is method and path template."""
        self._note(principal.org_id, "access.denied", principal.actor, request)

    def note_unauthenticated(self, source: str, request: str) -> None:
        """Counts a request without a valid key."""
        self._note(LOCAL_ORG, "auth.refused", f"address:{source}", request)

    async def flush(self) -> None:
        """Records the counts, one entry for each actor, and begins anew; keeps them if that fails."""
        counts, self._counts = self._counts, {}
        by_org: dict[str, list[Entry]] = {}
        for (org_id, event_type, actor), count in counts.items():
            requests: JsonObject = dict(sorted(count.requests.items()))
            detail: JsonObject = {"count": sum(count.requests.values()), "requests": requests, "since": count.since}
            now = self._clock.now()
            entry = Entry(org_id, event_type, actor, "request", "api", now, decision="deny", detail=detail)
            by_org.setdefault(org_id, []).append(entry)
        try:
            if LOCAL_ORG in by_org:
                await self._ensure_org(LOCAL_ORG, "Local")
            for org_id in list(by_org):
                await self._committer.submit(Commit(org_id, audit=by_org[org_id]))
                counts = {key: count for key, count in counts.items() if key[0] != org_id}
        except BaseException:
            for (org_id, event_type, actor), count in counts.items():
                for request, times in count.requests.items():
                    self._note(org_id, event_type, actor, request, times, since=count.since)
            raise

    def _note(
        self,
        org_id: str,
        event_type: RefusalEvent,
        actor: str,
        request: str,
        times: int = 1,
        *,
        since: float | None = None,
    ) -> None:
        key = (org_id, event_type, actor)
        if key not in self._counts and len(self._counts) >= _MOST_ACTORS:
            key = (org_id, event_type, _OTHERS)
        if key not in self._counts:
            self._counts[key] = _Count(self._clock.now() if since is None else since)
        self._counts[key].add(request, times)


def _failed(error: Exception) -> None:
    log(names.LOG_DATABASE_DOWN, str(error), level="error")
