"""Receivers of outbox events: the log, and a webhook when one is configured."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time

import aiohttp

from interlock.base.errors import Unavailable
from interlock.base.outbound import AddressRefused, Outbound
from interlock.base.vetted_http import vetted_session
from interlock.store.outbox import EventRefused, OutboxEvent
from interlock.telemetry import names
from interlock.telemetry.logs import log

_PATIENCE_SECONDS = 10.0
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

    def __init__(self, url: str, key: bytes, outbound: Outbound | None = None) -> None:
        self._url = url
        self._key = key
        self._outbound = outbound or Outbound()
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, event: OutboxEvent) -> None:
        body = json.dumps(
            {"id": event.event_id, "topic": event.topic, "org_id": event.org_id, "at": event.at, "data": event.payload}
        ).encode()
        headers = {
            "Content-Type": "application/json",
            "Interlock-Signature": signature_of(self._key, int(time.time()), body),
        }
        try:
            status = await self._post(body, headers)
        except AddressRefused as error:
            raise Unavailable(f"the events webhook is not called: {error}; events are kept") from error
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError too
            if isinstance(error.__cause__, AddressRefused):
                raise Unavailable(f"the events webhook is not called: {error.__cause__}; events are kept") from error
            raise Unavailable("the events webhook does not answer; events are kept", detail=str(error)) from error
        if 400 <= status < 500 and status not in _PASSING:
            raise EventRefused(f"the events webhook answered {status}")
        if not 200 <= status < 300:
            raise Unavailable(f"the events webhook answered {status}; events are kept")

    async def close(self) -> None:
        """Closes the connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, body: bytes, headers: dict[str, str]) -> int:
        """Sends one event; its status. The answer's body is not read."""
        if self._session is None:
            self._session = vetted_session(self._outbound, self._url)
        async with (
            asyncio.timeout(_PATIENCE_SECONDS),
            self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            return response.status
