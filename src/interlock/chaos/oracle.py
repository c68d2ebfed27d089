"""Counter process and model provider, controlled by the chaos run."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
from aiohttp import web

from interlock.base.errors import Unavailable
from interlock.chaos import counter
from interlock.chaos.hostile import HOSTILE_JSON
from interlock.testing import Behaviour, FakeProvider, RequestBody, answer, hang, server_error

START_SECONDS = 20.0


class Oracle:
    """The counter service in a separate process."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: asyncio.subprocess.Process | None = None
        self._client = httpx.AsyncClient(trust_env=False, timeout=30)
        self.address = ""

    async def start(self) -> None:
        port_file = self._home / "counter.port"
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(counter.__file__), "--db", str(self._home / "counter.sqlite")),
            *("--port-file", str(port_file)),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                while not port_file.exists():  # noqa: ASYNC110  a file has no event
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise Unavailable("the counter of the chaos run did not start") from None
        self.address = f"127.0.0.1:{port_file.read_text()}"

    async def close(self) -> None:
        await self._client.aclose()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def find(self, business: str) -> list[counter.FoundEffect]:
        """Effects of this business id, as a person would look them up."""
        answer = await self._client.get(f"http://{self.address}/effects", params={"business": business})
        found: list[counter.FoundEffect] = answer.json()["effects"]
        return found

    async def settled(self) -> None:
        """Returns when no request is in progress: a duplicated effect may arrive long after its run has ended."""
        async with asyncio.timeout(2 * counter.HANG_SECONDS):
            while (await self._client.get(f"http://{self.address}/struck")).json()["busy"]:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.1)

    async def book(self) -> counter.Records:
        """All records of the counter."""
        answer = await self._client.get(f"http://{self.address}/book")
        records: counter.Records = answer.json()
        return records

    async def fault(self, mode: str, *, seconds: float, requests: int) -> None:
        """Sets a fault for the next requests; see `counter`."""
        body = {"mode": mode, "seconds": seconds, "requests": requests}
        await self._client.post(f"http://{self.address}/faults", json=body)

    async def struck(self) -> int:
        """Number of requests hit by a fault so far."""
        return int((await self._client.get(f"http://{self.address}/struck")).json()["struck"])


class ChaosProvider(FakeProvider):
    """A model provider whose connections can be interrupted, and which answers the requests of `misled` with hostile texts.

    Attributes:
        struck: number of requests hit by a fault so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fault: str | None = None
        self.struck = 0
        self._hostile = itertools.cycle(HOSTILE_JSON.values())

    async def _behave(self, request: web.Request, body: RequestBody, behaviour: Behaviour) -> web.StreamResponse:
        if self.fault is not None:
            self.struck += 1
        if self.fault == "refuse" and request.transport is not None:
            request.transport.abort()
            return web.Response(status=503)
        if self.fault == "hang":
            behaviour = hang()
        elif self.fault == "error":
            behaviour = server_error()
        elif _is_misled(body):
            behaviour = answer(next(self._hostile))
        return await super()._behave(request, body, behaviour)


def _is_misled(body: RequestBody) -> bool:
    """True for a request of the step that gets hostile answers, by the title of its schema."""
    found: object = body
    for name in ("response_format", "json_schema", "schema", "title"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found == "misled"
