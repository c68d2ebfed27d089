"""A policy engine behind HTTP, as one for OPA would be: it implements the port with nothing of Interlock's but the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from interlock.policy.decision import Decision, PolicyEngine, Question


class OpaServer:
    """A server on the loopback interface that answers like OPA's data API.

    Attributes:
        result: the document it answers with; None leaves it out, as OPA does for an undefined decision.
        fault: `500`, `text` (no JSON) or `silence` (no answer until it closes).
        asked: inputs of the requests so far.
    """

    def __init__(self) -> None:
        self.result: Any = {"allow": True, "reasons": ["opa"]}
        self.fault = ""
        self.asked: list[dict[str, Any]] = []
        self.url = ""
        self._closing = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((await request.json())["input"])
        if self.fault == "silence":
            await self._closing.wait()
        if self.fault == "500":
            return web.json_response({"code": "internal_error"}, status=500)
        if self.fault == "text":
            return web.Response(text="<html>", content_type="application/json")
        return web.json_response({} if self.result is None else {"result": self.result})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OpaServer]:
        application = web.Application()
        application.router.add_post("/v1/data/interlock/decision", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = site.name
        try:
            yield self
        finally:
            self._closing.set()
            await runner.cleanup()


class OpaEngine:
    """Asks OPA for every decision. `version` would be the revision of its bundle."""

    immediate = False

    def __init__(self, url: str, session: aiohttp.ClientSession, version: str = "bundle-1") -> None:
        self.version = version
        self._url = f"{url}/v1/data/interlock/decision"
        self._session = session

    async def decide(self, question: Question) -> Decision:
        asked = {
            "principal": {"id": question.user_id, "org": question.org_id, "roles": sorted(question.roles)},
            "action": question.action,
            "resource": {"id": question.resource, **question.attributes},
            "context": dict(question.context),
        }
        async with self._session.post(self._url, json={"input": asked}) as response:
            response.raise_for_status()
            result = (await response.json())["result"]
        return Decision(result["allow"], tuple(result["reasons"]), self.version)


class OpaPolicies:
    """One OPA for all organisations."""

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine

    def of(self, org_id: str) -> PolicyEngine:
        return self._engine
