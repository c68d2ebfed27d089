"""A real server on loopback over the test's database, and a key for every role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlock.api.server import Server
from interlock.app import App
from interlock.identity.principal import ROLES
from interlock.services.views.runs import is_over
from interlock.telemetry import logs
from settled import issue_key

ORG, OTHER_ORG = "acme", "globex"  # the organisations of the `tenants` fixture
PATIENCE = 150  # seconds a test waits for something before it calls it lost


@dataclass
class Served:
    """An application behind real HTTP.

    Attributes:
        keys: API key by role in the first organisation, and `stranger`: an admin of the other one.
    """

    app: App
    server: Server
    keys: dict[str, str]
    _stack: AsyncExitStack
    _clients: dict[str | None, httpx.AsyncClient] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def client(self, role: str | None = "admin", *, key: str | None = None) -> httpx.AsyncClient:
        """A client with the key of a role, with a key of the test's own, or (None) without any."""
        name = key or role
        if name not in self._clients:
            token = key or (self.keys[role] if role else None)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            client = httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=PATIENCE)
            self._clients[name] = await self._stack.enter_async_context(client)
        return self._clients[name]

    async def start(self, text: str = "hello", *, role: str = "admin", **body: Any) -> str:
        """A run of `ask`; its id."""
        client = await self.client(role)
        answer = await client.post("/v1/runs", json={"workflow": "ask", "input": {"text": text, **body}})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["run_id"])

    async def run(self, run_id: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The run, once `done` holds."""
        client = await self.client()

        async def wait() -> dict[str, Any]:
            while not done(found := (await client.get(f"/v1/runs/{run_id}")).json()):
                await asyncio.sleep(0.02)
            return dict(found)

        return await asyncio.wait_for(wait(), PATIENCE)

    async def review(self, run_id: str) -> str:
        """The id of the review that a run waits for."""
        await self.run(run_id, lambda run: run["status"] == "waiting")
        reviews = (await (await self.client()).get("/v1/reviews", params={"run_id": run_id})).json()["reviews"]
        return str(reviews[0]["review_id"])

    async def finish(self, run_id: str, decision: str = "approve") -> dict[str, Any]:
        """Decides a run's review and waits for its end."""
        client = await self.client()
        answer = await client.post(f"/v1/reviews/{await self.review(run_id)}/decision", json={"decision": decision})
        assert answer.status_code == 200, answer.text
        return await self.run(run_id, lambda run: is_over(run["status"]))


Serve = Callable[..., Any]

# A workflow that takes every JSON value and shows it to a person.
ANYTHING = """\
name: anything
input: {}
steps:
  - {id: approve, kind: review, title: Anything?, show: {value: $input}}
output: {value: $input}
"""


# A workflow that waits to be told to go on.
LISTEN = """\
name: listen
input: {type: object, properties: {customer: {type: string}}}
subject: $input.customer
steps:
  - id: heard
    kind: wait
    signal: go
    payload: {type: object, properties: {text: {type: string, maxLength: 100}, loud: {type: boolean}}, required: [text]}
  - {id: approve, kind: review, title: Enough?, show: {text: $steps.heard.text}}
output: {text: $steps.heard.text, loud: $steps.heard.loud}
"""


@pytest.fixture(autouse=True)
def log_file(tmp_path: Path) -> Path:
    """The server's log goes to a file, as in production; gives its path."""
    logs.configure(level="info", file=tmp_path / "log.jsonl")
    return tmp_path / "log.jsonl"


@pytest.fixture
async def serve(app_factory: Callable[..., Awaitable[App]], project: Path) -> AsyncIterator[Serve]:
    """Opens an application and serves it; keywords as for `app_factory`."""
    (project / "workflows" / "anything.yaml").write_text(ANYTHING)
    (project / "workflows" / "listen.yaml").write_text(LISTEN)
    async with AsyncExitStack() as stack:

        async def start(*, worker: bool = False, **settings: Any) -> Served:
            app = await app_factory(worker=worker, deploy=True, sandbox={"warm": 0}, **settings)
            keys = {role: await issue_key(app.database, ORG, f"{role}-1", frozenset({role})) for role in sorted(ROLES)}
            keys["stranger"] = await issue_key(app.database, OTHER_ORG, "eve", frozenset({"admin"}))
            server = Server(app.services, host="127.0.0.1", port=0, payload_bytes=app.settings.limits.payload_bytes)
            await server.start()
            stack.push_async_callback(server.stop)
            return Served(app, server, keys, stack)

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """Served, without a worker: runs stay in the queue."""
    return await serve()


@pytest.fixture
async def working(serve: Serve) -> Served:
    """Served, with a worker: runs are driven."""
    return await serve(worker=True)


def problem_of(answer: httpx.Response) -> tuple[str, str]:
    """(code, message) of an error answer, whose shape is checked: nothing but these two, and no stack trace in them."""
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"code", "message"}, body
    code, message = body["error"]["code"], body["error"]["message"]
    assert isinstance(code, str)
    assert code.isidentifier()
    assert isinstance(message, str)
    assert message
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    return code, message
