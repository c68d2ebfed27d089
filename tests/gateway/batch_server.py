"""The batch APIs of OpenAI and Anthropic on loopback, and their ordinary calls beside them.

Written from the providers' documents, not from our client. It counts what was handed in, so it is the oracle for "once".
Every call is answered with what its own last turn says, so an answer at the wrong step shows.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Line = dict[str, Any]


@dataclass
class Batch:
    """A batch as the provider has it: `calls` are (custom_id, body), in the order in which they came."""

    id: str
    calls: list[tuple[str, dict[str, Any]]]
    metadata: dict[str, str] = field(default_factory=dict)
    status: str = ""
    created: float = field(default_factory=time.time)
    errors: list[dict[str, Any]] = field(default_factory=list)
    files: tuple[str | None, str | None] = (None, None)


class BatchServer:
    """Attributes:
    batches: what was handed in, in order.
    ready: whether a batch is over by the time it is first looked at.
    say: body of a call → the value it is answered with.
    spoil: custom_id, body → an outcome instead: "expired", "canceled", an HTTP status, or None for a good one.
    around: raw lines that come before the results.
    down: endpoints that answer 503 (or the given status): "files", "create", "look", "results", "list".
    before_create, after_create: awaited before making a batch, and before saying so; `during_look` while somebody looks.
    direct: bodies of ordinary calls.
    hits: requests by endpoint.
    most_looking: how many looked at one batch at the same time, at most.
    """

    def __init__(self) -> None:
        self.url = ""
        self.batches: list[Batch] = []
        self.ready = True
        self.say: Callable[[dict[str, Any]], Any] = lambda body: {"verdict": "good", "words": asked(body)}
        self.spoil: Callable[[str, dict[str, Any]], str | int | None] = lambda _one, _body: None
        self.around: list[bytes] = []
        self.reverse = True
        self.drop: set[str] = set()
        self.down: dict[str, int] = {}
        self.after_create: Callable[[], Any] | None = None
        self.before_create: Callable[[], Any] | None = None
        self.during_look: Callable[[], Any] | None = None
        self.direct: list[dict[str, Any]] = []
        self.hits: Counter[str] = Counter()
        self.looking: Counter[str] = Counter()
        self.most_looking = 0
        self._files: dict[str, bytes] = {}

    @property
    def pin(self) -> str:
        return "openai:fake"

    @property
    def providers(self) -> dict[str, Any]:
        """The setting that makes both known providers this server."""
        return {
            "openai": {"base_url": f"{self.url}/v1"},
            "anthropic": {"base_url": self.url, "dialect": "anthropic", "key": "ANTHROPIC_API_KEY"},
        }

    @property
    def anthropic_pin(self) -> str:
        return "anthropic:claude-fake"

    @property
    def calls(self) -> list[str]:
        """What was asked in batches, over all of them."""
        return [asked(body) for batch in self.batches for _, body in batch.calls]

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        route = app.router
        route.add_post("/v1/chat/completions", self._chat)
        route.add_post("/v1/files", self._upload)
        route.add_get("/v1/files/{id}/content", self._content)
        route.add_post("/v1/batches", self._create)
        route.add_get("/v1/batches", self._list)
        route.add_get("/v1/batches/{id}", self._look)
        route.add_post("/v1/messages", self._message)
        route.add_post("/v1/messages/batches", self._create_messages)
        route.add_get("/v1/messages/batches", self._list_messages)
        route.add_get("/v1/messages/batches/{id}", self._look_messages)
        route.add_get("/v1/messages/batches/{id}/results", self._results)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def _gate(self, name: str) -> None:
        self.hits[name] += 1
        if name in self.down:
            body = json.dumps({"error": {"message": "scripted", "type": "scripted"}})
            raise _error(self.down[name], body)

    async def _watched(self, batch: Batch) -> None:
        """Counts how many look at one batch at once."""
        self.looking[batch.id] += 1
        self.most_looking = max(self.most_looking, self.looking[batch.id])
        try:
            if self.during_look is not None:
                await self.during_look()
        finally:
            self.looking[batch.id] -= 1

    def _find(self, request: web.Request) -> Batch:
        for batch in self.batches:
            if batch.id == request.match_info["id"]:
                return batch
        raise web.HTTPNotFound(text="{}")

    # -- OpenAI ------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.direct.append(body)
        self._gate("chat")
        return web.json_response(completion(body, self.say(body)))

    async def _upload(self, request: web.Request) -> web.Response:
        self._gate("files")
        form = await request.post()
        assert form["purpose"] == "batch"
        file = form["file"]
        assert isinstance(file, web.FileField)
        name = f"file-{len(self._files)}"
        self._files[name] = file.file.read()
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def _create(self, request: web.Request) -> web.Response:
        self._gate("create")
        body = await request.json()
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = [json.loads(line) for line in self._files[body["input_file_id"]].splitlines()]
        assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
        calls = [(line["custom_id"], line["body"]) for line in lines]
        assert len({one for one, _ in calls}) == len(calls)
        assert len({one["model"] for _, one in calls}) == 1, "a file is for one model"
        if self.before_create is not None:
            await self.before_create()
        batch = Batch(f"batch_{len(self.batches)}", calls, body.get("metadata") or {}, "validating")
        self.batches.append(batch)
        if self.after_create is not None:
            await self.after_create()
        return web.json_response(self._openai(batch))

    async def _list(self, request: web.Request) -> web.Response:
        self._gate("list")
        limit = int(request.query.get("limit", 20))
        newest = [self._openai(batch) for batch in reversed(self.batches)]
        after = request.query.get("after")
        start = next((n + 1 for n, one in enumerate(newest) if one["id"] == after), 0)
        page = newest[start : start + limit]
        return web.json_response({"object": "list", "data": page, "has_more": start + limit < len(newest)})

    async def _look(self, request: web.Request) -> web.Response:
        self._gate("look")
        batch = self._find(request)
        await self._watched(batch)
        if self.ready and batch.status in {"validating", "in_progress"}:
            self.finish(batch)
        return web.json_response(self._openai(batch))

    def finish(self, batch: Batch, status: str = "completed") -> None:
        """Answers every call, in files of results and of errors."""
        good, bad = [], []
        for one, body in batch.calls:
            if one in self.drop:
                continue
            outcome = self.spoil(one, body)
            line: Line = {"id": f"batch_req_{one}", "custom_id": one, "response": None, "error": None}
            if outcome is None:
                answered = completion(body, self.say(body))
                good.append({**line, "response": {"status_code": 200, "request_id": "r", "body": answered}})
            elif isinstance(outcome, int):
                said = {"error": {"message": f"scripted {outcome}", "type": "scripted"}}
                bad.append({**line, "response": {"status_code": outcome, "request_id": "r", "body": said}})
            else:
                bad.append({**line, "error": {"code": f"batch_{outcome}", "message": f"This was {outcome}."}})
        batch.files = (self._keep(good, self.around), self._keep(bad, []))
        batch.status = status

    def _keep(self, lines: list[Line], around: list[bytes]) -> str | None:
        if not lines and not around:
            return None
        name = f"file-{len(self._files)}"
        ordered = list(reversed(lines)) if self.reverse else lines
        self._files[name] = b"\n".join([*around, *(json.dumps(line).encode() for line in ordered)]) + b"\n"
        return name

    async def _content(self, request: web.Request) -> web.Response:
        self._gate("results")
        return web.Response(body=self._files[request.match_info["id"]])

    def _openai(self, batch: Batch) -> dict[str, Any]:
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "input_file_id": "file-x",
            "completion_window": "24h",
            "status": batch.status,
            "output_file_id": batch.files[0],
            "error_file_id": batch.files[1],
            "created_at": int(batch.created),
            "request_counts": {"total": len(batch.calls), "completed": 0, "failed": 0},
            "metadata": batch.metadata,
        }

    # -- Anthropic ---------------------------------------------------------------------------------------------

    async def _message(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.direct.append(body)
        self._gate("chat")
        return web.json_response(message(body, self.say(body)))

    async def _create_messages(self, request: web.Request) -> web.Response:
        self._gate("create")
        assert request.headers["anthropic-version"] == "2023-06-01"
        body = await request.json()
        calls = [(one["custom_id"], one["params"]) for one in body["requests"]]
        assert all(len(one) <= 64 and one.replace("_", "").replace("-", "").isalnum() for one, _ in calls)
        if self.before_create is not None:
            await self.before_create()
        batch = Batch(f"msgbatch_{len(self.batches)}", calls, status="in_progress")
        self.batches.append(batch)
        if self.after_create is not None:
            await self.after_create()
        return web.json_response(self._anthropic(batch))

    async def _list_messages(self, request: web.Request) -> web.Response:
        self._gate("list")
        newest = [self._anthropic(batch) for batch in reversed(self.batches)]
        return web.json_response({"data": newest[: int(request.query.get("limit", 20))], "has_more": False})

    async def _look_messages(self, request: web.Request) -> web.Response:
        self._gate("look")
        batch = self._find(request)
        await self._watched(batch)
        if self.ready:
            batch.status = "ended"
        return web.json_response(self._anthropic(batch))

    async def _results(self, request: web.Request) -> web.Response:
        self._gate("results")
        batch = self._find(request)
        if batch.status != "ended":
            raise web.HTTPNotFound(text="{}")
        lines = []
        for one, body in reversed(batch.calls):
            if one in self.drop:
                continue
            outcome = self.spoil(one, body)
            result: dict[str, Any] = {"type": outcome}
            if outcome is None:
                result = {"type": "succeeded", "message": message(body, self.say(body))}
            elif isinstance(outcome, int):
                kind = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error"}[outcome]
                error = {"type": "error", "error": {"type": kind, "message": f"scripted {outcome}"}}
                result = {"type": "errored", "error": error}
            lines.append(json.dumps({"custom_id": one, "result": result}).encode())
        return web.Response(body=b"\n".join([*self.around, *lines]) + b"\n")

    def _anthropic(self, batch: Batch) -> dict[str, Any]:
        over = batch.status == "ended"
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        counts["succeeded" if over else "processing"] = len(batch.calls)
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": batch.status,
            "request_counts": counts,
            "created_at": datetime.fromtimestamp(batch.created, UTC).isoformat(),
            # Where a client must not send its key.
            "results_url": "http://127.0.0.1:9/results" if over else None,
        }


def asked(body: dict[str, Any]) -> str:
    """What the first user turn asks, after "Think about "."""
    turn = next(turn["content"] for turn in body["messages"] if turn["role"] == "user")
    return str(turn).removeprefix("Think about ")


def completion(body: dict[str, Any], value: Any) -> dict[str, Any]:
    """A chat completion; tokens are 100 in, 60 of them cached, and 20 out, 8 of them of the reasoning."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": _text(value)}, "finish_reason": "stop"},
        ],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 60},
            "completion_tokens_details": {"reasoning_tokens": 8},
        },
    }


def message(body: dict[str, Any], value: Any) -> dict[str, Any]:
    """A message that calls the forced tool; tokens as above; this API counts the cached ones apart and reports no reasoning."""
    block = {"type": "tool_use", "id": "toolu_1", "name": body["tools"][0]["name"], "input": value}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [block],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 40, "output_tokens": 20, "cache_read_input_tokens": 60},
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _error(status: int, body: str) -> web.HTTPException:
    kinds: dict[int, type[web.HTTPException]] = {
        401: web.HTTPUnauthorized,
        404: web.HTTPNotFound,
        429: web.HTTPTooManyRequests,
        503: web.HTTPServiceUnavailable,
    }
    return kinds[status](text=body, content_type="application/json")


async def never() -> None:
    """Waits until the connection is gone."""
    await asyncio.Event().wait()
