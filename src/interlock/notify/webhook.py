"""Receivers of outbox events: the log, and a webhook when one is configured."""

from __future__ import annotations

import hashlib
import hmac
import json
import time

import httpx

from interlock.base.errors import Unavailable
from interlock.store.outbox import EventRefused, OutboxEvent
from interlock.telemetry import names
from interlock.telemetry.logs import log

_PASSING = frozenset({408, 425, 429})  # the 4xx that say "later"; every other one is about the request itself


async def to_log(event: OutboxEvent) -> None:
    """Writes the event to the JSON log."""
    log(names.LOG_EVENT, topic=event.topic, org_id=event.org_id, event_id=event.event_id, **event.payload)


def webhook_key(master_key: bytes) -> bytes:
    """The key of this installation's signatures; `interlock events key` prints it in hexadecimal."""
    return hmac.new(master_key, b"webhook", hashlib.sha256).digest()


def signature_of(key: bytes, seconds: int, body: bytes) -> str:
    """The value of the header `Interlock-Signature`."""
    digest = hmac.new(key, f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


class Webhook:
    """Sink that POSTs events as JSON, signed: `Interlock-Signature: t=SECONDS,v1=HMAC-SHA256(key, "SECONDS." + body)`.

    SECONDS is the Unix time of this attempt, so a receiver can refuse a request that was recorded and is sent again later.
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
        headers = {
            "Content-Type": "application/json",
            "Interlock-Signature": signature_of(self._key, int(time.time()), body),
        }
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
