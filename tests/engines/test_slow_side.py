"""A far side that does what it was asked to after its caller has given up: the probe must not come before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from engines.conftest import Desk, OpenApp
from engines.harness import Observer, workflow, write

CONTRACT = """\
name: book
description: Books a seat, and can say whether it did.
effect: mutating
timeout: 1.5
probe: true
egress: ["${far}"]
input: {type: object, properties: {url: {type: string}}, required: [url]}
output: {type: object, properties: {seat: {type: integer}}, required: [seat]}
"""
CODE = """\
import json
import urllib.request


def ask(url, key, method):
    request = urllib.request.Request(url + "?key=" + key, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def run(url, context):
    return {"seat": ask(url, context["idempotency_key"], "POST")["seat"]}


def probe(input, context):
    seats = ask(input["url"], context["idempotency_key"], "GET")["seats"]
    return {"happened": True, "output": {"seat": seats[0]}} if seats else {"happened": False}
"""


PAUSE = 0.5


class FarSide:
    """Books `PAUSE` seconds after its caller has given up."""

    def __init__(self) -> None:
        self.booked: list[str] = []
        self.working: list[asyncio.Task[int]] = []
        self.address = ""

    async def book(self, request: web.Request) -> web.Response:
        task = asyncio.create_task(self._book(request, request.query["key"]))
        self.working.append(task)
        return web.json_response({"seat": await asyncio.shield(task)})

    async def _book(self, request: web.Request, key: str) -> int:
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.01)
        await asyncio.sleep(PAUSE)
        self.booked.append(key)
        return len(self.booked)

    async def seats(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"seats": [number for number, key in enumerate(self.booked, 1) if key == request.query["key"]]}
        )


@pytest.fixture
async def far() -> AsyncIterator[FarSide]:
    side = FarSide()
    app = web.Application()
    app.router.add_post("/", side.book)
    app.router.add_get("/", side.seats)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    side.address = "{}:{}".format(*runner.addresses[0][:2])
    yield side
    await runner.cleanup()


async def test_what_is_done_late_is_seen_by_the_probe(
    project: Path, open_app: OpenApp, admin: Any, seen: Observer, far: FarSide
) -> None:
    """The tool is killed at 1.5 s, the seat is booked half a second later: the far side must not be asked at once."""
    step = "- {id: book, kind: tool, tool: book, input: {url: 'http://${far}/'}, retry: {max_attempts: 9, backoff: 0.05}}\n"
    files = {"tools/book/tool.yaml": CONTRACT, "tools/book/main.py": CODE}
    write(project, {**files, **workflow("w", step, allow="book", output="{seat: $steps.book.seat}")})
    variables = {"bank": "127.0.0.1:9", "strict": "127.0.0.1:9", "far": far.address}
    desk = Desk(await open_app(start_worker=True, deploy=True, variables=variables), admin)
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    await asyncio.gather(*far.working)  # whatever it is still about to do
    assert len(far.booked) == 1
    assert await desk.result(run) == {"seat": 1}
