"""Delivery of outbox events: to the log, and to a webhook if one is configured."""

from __future__ import annotations

import hashlib
import hmac
import json

import httpx

from interlock.base.errors import Unavailable
from interlock.store.outbox import OutboxEvent
from interlock.telemetry import names
from interlock.telemetry.logs import log


async def to_log(event: OutboxEvent) -> None:
    """Writes an event to the JSON log."""
    log(names.LOG_EVENT, topic=event.topic, org_id=event.org_id, event_id=event.event_id, **event.payload)


class Webhook:
    """POSTs events as JSON, signed: `Interlock-Signature: sha256=HMAC(key, body)`, so the receiver can verify their origin."""

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
        if response.status_code >= 300:
            raise Unavailable(f"the events webhook answered {response.status_code}; events are kept")

    async def close(self) -> None:
        await self._client.aclose()
