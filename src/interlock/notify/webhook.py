"""Receivers of outbox events: the log, and a webhook when one is configured."""

from __future__ import annotations

import hashlib
import hmac
import json

import httpx

from interlock.base.errors import Unavailable
from interlock.store.outbox import EventRefused, OutboxEvent
from interlock.telemetry import names
from interlock.telemetry.logs import log

_PASSING = frozenset({408, 425, 429})  # the 4xx that say "later"; every other one is about the request itself


async def to_log(event: OutboxEvent) -> None:
    """Writes the event to the JSON log."""
    log(names.LOG_EVENT, topic=event.topic, org_id=event.org_id, event_id=event.event_id, **event.payload)


class Webhook:
    """Sink that POSTs events as JSON, signed: `Interlock-Signature: sha256=HMAC(key, body)`, so receivers can check the origin.

    2xx means taken. Another 4xx than 408, 425 and 429 refuses the event for good; after everything else it is sent again.
    Redirections are not followed, because they could lead inside the network.
    """

    def __init__(self, url: str, key: bytes) -> None:
        self._url = url
        self._key = key
        self._client = httpx.AsyncClient(timeout=10.0, trust_env=False, follow_redirects=False)

    async def __call__(self, event: OutboxEvent) -> None:
        body = json.dumps(
            {"id": event.event_id, "topic": event.topic, "org_id": event.org_id, "at": event.at, "data": event.payload}
        ).encode()
        signature = hmac.new(self._key, body, hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json", "Interlock-Signature": f"sha256={signature}"}
        try:
            response = await self._client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Unavailable("the events webhook does not answer; events are kept", detail=str(error)) from error
        status = response.status_code
        if 400 <= status < 500 and status not in _PASSING:
            raise EventRefused(f"the events webhook answered {status}")
        if not 200 <= status < 300:
            raise Unavailable(f"the events webhook answered {status}; events are kept")

    async def close(self) -> None:
        await self._client.aclose()
