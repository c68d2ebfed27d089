"""A fake OpenAI server, a fake Anthropic server, and a raw socket for what no HTTP library would send."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from interlock.gateway.openai import OpenAIProvider
from interlock.gateway.provider import Message, ModelRequest
from interlock.testing import FakeProvider

KEY = "sk-test-0123456789abcdefghijklmnop"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"type": "string", "enum": ["card", "cash", "fees"]},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["category", "urgency"],
    "additionalProperties": False,
}
VALID = {"category": "fees", "urgency": 2}


def request(**changes: Any) -> ModelRequest:
    """A small request; every field may be overridden."""
    fields: dict[str, Any] = {
        "model": "pinned-1",
        "messages": [Message("system", "Be brief."), Message("user", "Which fees apply?")],
        "timeout": 10.0,
    }
    return ModelRequest(**{**fields, **changes})


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as server:
        yield server


@pytest.fixture
async def openai(fake: FakeProvider) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider("acme", fake.url, KEY)
    yield provider
    await provider.close()


class FakeAnthropic:
    """The Messages API on loopback; answers with what `script` queued, as (status, headers, body)."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.script: deque[tuple[int, dict[str, str], Any]] = deque()

    def reply(self, content: Any, *, stop_reason: str = "end_turn", usage: Any = None, status: int = 200) -> None:
        body = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-pinned",
            "content": content,
            "stop_reason": stop_reason,
            "usage": usage or {"input_tokens": 10, "output_tokens": 5},
        }
        self.script.append((status, {"request-id": "req_1"}, body))

    def fail(self, status: int, kind: str, message: str, **headers: str) -> None:
        body = {"type": "error", "error": {"type": kind, "message": message}}
        self.script.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, body))

    async def handle(self, received: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in received.headers.items()}
        self.requests.append((await received.json(), headers))
        status, extra, body = self.script.popleft()
        return web.Response(status=status, headers=extra, text=json.dumps(body), content_type="application/json")


@pytest.fixture
async def anthropic_server() -> AsyncIterator[FakeAnthropic]:
    server = FakeAnthropic()
    app = web.Application()
    app.router.add_post("/v1/messages", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    yield server
    await runner.cleanup()


RawServer = Callable[[bytes], AbstractAsyncContextManager[str]]


@pytest.fixture
def raw_server() -> RawServer:
    """A server that reads one request, sends these bytes and closes; gives its base address."""

    @asynccontextmanager
    async def serve(answer: bytes) -> AsyncIterator[str]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            yield f"http://{host}:{port}/v1"

    return serve
