"""The webhook, against a real HTTP server that checks the signature by itself."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from interlock.base.errors import Unavailable
from interlock.base.outbound import Outbound
from interlock.identity.principal import Principal
from interlock.notify.webhook import Webhook
from interlock.store import outbox
from interlock.store.outbox import EventRefused, OutboxEvent

if TYPE_CHECKING:
    from conftest import AppFactory

MASTER_KEY = bytes(range(32))
KEY = b"a key of this test"
EVENT = OutboxEvent(
    7, "acme", "run.finished", {"run_id": "run_1", "status": "succeeded", "words": "ø\u2028"}, 1_000_000.5
)


class Endpoint:
    """Answers with `statuses` one after the other, then 200; 0 hangs up. `events` are those that it took."""

    def __init__(self) -> None:
        self.url = ""
        self.key = KEY
        self.statuses: list[int] = []
        self.requests = 0
        self.events: list[dict[str, Any]] = []
        self.elsewhere = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests += 1
        stamp, _, signature = request.headers["Interlock-Signature"].partition(",v1=")
        seconds = stamp.removeprefix("t=")
        expected = hmac.new(self.key, f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
        fresh = abs(time.time() - int(seconds)) < 3600
        if signature != expected or not fresh or request.content_type != "application/json":
            return web.Response(status=401)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            assert request.transport is not None
            request.transport.close()
        if status == 200:
            self.events.append(json.loads(body))
        return web.Response(status=status, headers={"Location": "/elsewhere"} if 300 <= status < 400 else None)

    async def wrong_turn(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(180):
            while len(self.events) < count:
                await asyncio.sleep(0.01)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    application = web.Application()
    application.router.add_post("/hook", endpoint.take)
    application.router.add_route("*", "/elsewhere", endpoint.wrong_turn)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    endpoint.url = f"http://{host}:{port}/hook"
    yield endpoint
    await runner.cleanup()


async def test_an_event_arrives_whole_and_signed(endpoint: Endpoint) -> None:
    webhook = Webhook(endpoint.url, KEY)
    await webhook(EVENT)
    await webhook.close()
    assert endpoint.events == [
        {"id": 7, "topic": "run.finished", "org_id": "acme", "at": 1_000_000.5, "data": EVENT.payload}
    ]


async def test_a_signature_with_another_key_does_not_fit(endpoint: Endpoint) -> None:
    webhook = Webhook(endpoint.url, b"another key")
    with pytest.raises(EventRefused, match="401"):
        await webhook(EVENT)
    await webhook.close()
    assert endpoint.events == []


@pytest.mark.parametrize("status", [301, 302, 307, 308, 408, 425, 429, 500, 503, 0])
async def test_an_answer_that_may_change_keeps_the_event(endpoint: Endpoint, status: int) -> None:
    endpoint.statuses = [status]
    webhook = Webhook(endpoint.url, KEY)
    with pytest.raises(Unavailable):
        await webhook(EVENT)
    assert endpoint.events == []
    assert endpoint.elsewhere == 0  # a redirection could lead inside the network
    await webhook(EVENT)
    await webhook.close()
    assert len(endpoint.events) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
async def test_an_answer_about_the_event_refuses_it(endpoint: Endpoint, status: int) -> None:
    endpoint.statuses = [status]
    webhook = Webhook(endpoint.url, KEY)
    with pytest.raises(EventRefused, match=str(status)):
        await webhook(EVENT)
    await webhook.close()
    assert endpoint.events == []


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nothing listens, and nothing can begin to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


async def test_nobody_at_the_other_end(nowhere: str) -> None:
    webhook = Webhook(f"{nowhere}/hook", KEY)
    with pytest.raises(Unavailable, match="does not answer"):
        await webhook(EVENT)
    await webhook.close()


async def test_a_proxy_in_the_environment_does_not_get_the_events(
    endpoint: Endpoint, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", nowhere)
    monkeypatch.setenv("ALL_PROXY", nowhere)
    webhook = Webhook(endpoint.url, KEY)
    await webhook(EVENT)
    await webhook.close()
    assert len(endpoint.events) == 1


async def test_a_runs_events_reach_the_configured_webhook(
    app_factory: AppFactory, endpoint: Endpoint, admin: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a run to the receiver, through an endpoint that is down at first."""
    for name in ("_POLL_SECONDS", "_FIRST_WAIT"):
        monkeypatch.setattr(outbox, name, 0.02)
    endpoint.key = hmac.new(MASTER_KEY, b"webhook", hashlib.sha256).digest()
    endpoint.statuses = [503, 0, 302]
    app = await app_factory(deploy=True, worker=True, events={"webhook": endpoint.url}, sandbox={"warm": 0})
    run_id, _ = await app.submission.accept(admin, "ask", {"text": "hello"}, None)
    await endpoint.until(1)
    (review,) = await app.reviews.page(admin)
    await app.reviews.decide(admin, review.review_id, "approve", "fine")
    await endpoint.until(2)
    assert endpoint.requests == 5
    opened, finished = endpoint.events
    assert [opened["topic"], finished["topic"]] == ["review.opened", "run.finished"]
    assert opened["id"] < finished["id"]
    assert opened["org_id"] == finished["org_id"] == admin.org_id
    assert opened["data"]["run_id"] == finished["data"]["run_id"] == run_id
    assert opened["data"]["review"] == review.review_id
    assert finished["data"]["status"] == "succeeded"


@pytest.mark.parametrize(
    ("host", "address", "said"),
    [
        ("hooks.example", "127.0.0.1", 'add "hooks.example" to network.private'),
        ("hooks.example", "169.254.169.254", "metadata"),
        ("169.254.169.254", "", "metadata"),
    ],
)
async def test_events_are_not_sent_inside_the_network(
    endpoint: Endpoint, host: str, address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Names:
        """A name service that an attacker controls."""

        async def resolve(self, name: str, port: int, family: int) -> list[dict[str, Any]]:
            return [{"hostname": name, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}]

        async def close(self) -> None: ...

    monkeypatch.setattr("interlock.base.vetted_http.ThreadedResolver", Names)
    webhook = Webhook(endpoint.url.replace("127.0.0.1", host), KEY)
    with pytest.raises(Unavailable, match=said):
        await webhook(EVENT)
    await webhook.close()
    assert endpoint.requests == 0
    if address == "127.0.0.1":
        webhook = Webhook(endpoint.url.replace("127.0.0.1", host), KEY, Outbound(["hooks.example"]))
        await webhook(EVENT)
        await webhook.close()
        assert endpoint.requests == 1
