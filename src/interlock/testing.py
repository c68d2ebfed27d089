"""Fakes for tests of applications. They are servers that speak the real protocol.

`FakeProvider` is a model provider: a real HTTP server on loopback that speaks OpenAI's chat completions. Without a
script it answers every request with a valid instance of the requested schema; with a script it fails as providers fail:

    async with FakeProvider() as fake:
        fake.script(rate_limited(retry_after=2), hang(), answer({"category": "fees"}))
        provider = OpenAIProvider("fake", fake.url, "any-key")
        ...
        assert fake.count == 3
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from aiohttp import web

from interlock.base.json import Json, JsonObject
from interlock.workflows.spec import JsonSchema

__all__ = [
    "Behaviour",
    "FakeProvider",
    "RecordedRequest",
    "answer",
    "cut_stream",
    "example_instance",
    "hang",
    "invalid_json",
    "not_the_protocol",
    "rate_limited",
    "refusal",
    "server_error",
    "status",
    "wrong_schema",
]

RequestBody: TypeAlias = dict[str, Any]
"""A request's JSON as the client sent it: what it has is for the test to say."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Behaviour of the fake provider for one request. Build it with the functions below.

    Attributes:
        kind: answer with a completion, send a raw body, never answer, or close the connection during the answer.
        content: the assistant's text; None answers with a valid instance of the schema.
        http_status: status of the answer.
        headers: further headers.
        body: the raw body, for kind "raw".
        message: additional fields of the assistant's message, such as `refusal`.
        finish_reason: why the model stopped.
        usage: whether token counts are reported, as some compatible servers do not.
        delay: seconds before anything is sent.
    """

    kind: Literal["completion", "raw", "hang", "cut"] = "completion"
    content: str | None = None
    http_status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    message: JsonObject = field(default_factory=dict)
    finish_reason: str = "stop"
    usage: bool = True
    delay: float = 0.0


def answer(value: object = None, *, finish_reason: str = "stop", usage: bool = True, delay: float = 0.0) -> Behaviour:
    """Answer with this text, or with this value as JSON; None gives a valid instance of the request's schema."""
    content = value if value is None or isinstance(value, str) else json.dumps(value)
    return Behaviour(content=content, finish_reason=finish_reason, usage=usage, delay=delay)


def status(code: int, message: str = "scripted failure", *, headers: Mapping[str, str] | None = None) -> Behaviour:
    """Answer with this HTTP status and an error body in OpenAI's shape."""
    error = {"error": {"message": message, "type": "scripted", "code": None}}
    return Behaviour("raw", http_status=code, headers=dict(headers or {}), body=json.dumps(error).encode())


def rate_limited(retry_after: float | str | None = None, *, code: int = 429) -> Behaviour:
    """Refuse with 429 (or 529) and, if given, a `Retry-After` in seconds or as an HTTP date."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return status(code, "Rate limit reached", headers=headers)


def server_error(code: int = 500) -> Behaviour:
    """Fail with a 5xx."""
    return status(code, "The server had an error")


def hang() -> Behaviour:
    """Accept the request and never answer."""
    return Behaviour("hang")


def cut_stream() -> Behaviour:
    """Announce a whole answer by Content-Length, send half of it and close the connection."""
    return Behaviour("cut")


def invalid_json(text: str = '{"category": "fe') -> Behaviour:
    """A well-formed completion whose text is not JSON."""
    return Behaviour(content=text)


def wrong_schema(value: object = None) -> Behaviour:
    """A well-formed completion whose JSON fits no schema that forbids unknown fields."""
    return Behaviour(content=json.dumps({"unexpected": True} if value is None else value))


def refusal(text: str = "I cannot help with that.") -> Behaviour:
    """A completion without content, refused as OpenAI refuses."""
    return Behaviour(message={"content": None, "refusal": text})


def not_the_protocol(
    body: str | bytes = "<html>It works!</html>", *, content_type: str = "text/html", code: int = 200
) -> Behaviour:
    """Send this body as it is, with this status."""
    raw = body if isinstance(body, bytes) else body.encode()
    return Behaviour("raw", http_status=code, body=raw, headers={"Content-Type": content_type})


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request as the fake received it: the parsed JSON body, the path, and the headers with lower-case names."""

    body: RequestBody
    path: str
    headers: Mapping[str, str]


class FakeProvider:
    """A model provider on `http://127.0.0.1:<free port>/v1`; an async context manager.

    Attributes:
        requests: all received requests, in order of arrival.
        disconnects: clients that disconnected before the answer (a cancelled or timed-out call).
    """

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self.disconnects = 0
        self._script: deque[Behaviour] = deque()
        self._always = Behaviour()
        self._peers: set[object] = set()
        self._changed = asyncio.Condition()
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The base address to configure a provider with."""
        return self._url

    @property
    def count(self) -> int:
        """Requests received, with any outcome."""
        return len(self.requests)

    @property
    def connections(self) -> int:
        """Number of different TCP connections of the requests."""
        return len(self._peers)

    def script(self, *behaviours: Behaviour) -> None:
        """Queue behaviours, one for each of the next requests; after the last one the default applies again."""
        self._script.extend(behaviours)

    def always(self, behaviour: Behaviour) -> None:
        """Set the default for requests without a scripted behaviour."""
        self._always = behaviour

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the fake is true, such as `lambda: fake.count == 2`. Use it with a timeout."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._handle)
        # Without handler_cancellation a disconnect of the client would not be noticed.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behaviour = self._script.popleft() if self._script else self._always
        async with self._changed:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.requests.append(RecordedRequest(body, request.path, headers))
            if request.transport is not None:
                self._peers.add(request.transport.get_extra_info("peername"))
            self._changed.notify_all()
        try:
            return await self._behave(request, body, behaviour)
        except asyncio.CancelledError:
            self.disconnects += 1
            async with self._changed:
                self._changed.notify_all()
            raise

    async def _behave(self, request: web.Request, body: RequestBody, behaviour: Behaviour) -> web.StreamResponse:
        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        if behaviour.kind == "hang":
            await self._closing.wait()
            return web.Response(status=503)
        if behaviour.kind == "raw":
            headers = {"Content-Type": "application/json", **behaviour.headers}
            return web.Response(status=behaviour.http_status, body=behaviour.body, headers=headers)
        try:
            completion = json.dumps(_completion(body, behaviour, self.count)).encode()
        except ValueError as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        if behaviour.kind == "cut":
            return await _cut(request, completion)
        return web.Response(body=completion, content_type="application/json", headers=behaviour.headers)


async def _cut(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


def _completion(body: RequestBody, behaviour: Behaviour, number: int) -> dict[str, Json]:
    content = behaviour.content
    if content is None:
        wanted = body.get("response_format", {}).get("json_schema", {}).get("schema")
        content = "ok" if wanted is None else json.dumps(example_instance(wanted))
    completion: dict[str, Json] = {
        "id": f"chatcmpl-fake-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "fake"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **behaviour.message},
                "finish_reason": behaviour.finish_reason,
            }
        ],
    }
    if behaviour.usage:
        # One token per word: easy to predict in a test.
        incoming = sum(len(str(turn.get("content")).split()) for turn in body.get("messages", ()))
        outgoing = len(content.split())
        completion["usage"] = {
            "prompt_tokens": incoming,
            "completion_tokens": outgoing,
            "total_tokens": incoming + outgoing,
        }
    return completion


_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example_instance(schema: object, root: object = None) -> Any:
    """A small valid instance of a JSON Schema, the same in every call.

    Supports types, enum, const, required and other properties, items and their number, lengths, bounds, multiples, common
    formats, anyOf, oneOf, allOf of objects, and local references.

    Raises:
        ValueError: the schema uses another keyword (such as a pattern); script an answer instead.
    """
    root = schema if root is None else root
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema or schema.get("enum"):
        given: Json = schema["const"] if "const" in schema else schema["enum"][0]
        return given
    if "$ref" in schema:
        return example_instance(_resolve(schema["$ref"], root), root)
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return example_instance(schema[key][0], root)
    if schema.get("allOf"):
        parts = [example_instance(part, root) for part in schema["allOf"]]
        return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}
    return _typed_instance(dict(schema), root)


def _typed_instance(schema: JsonSchema, root: object) -> Json:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    if not isinstance(kind, str):
        kind = kind[0]
    if kind == "object":
        # Required properties only: an optional one may refer to the schema itself, without end.
        properties = schema.get("properties", {})
        return {name: example_instance(properties.get(name, {}), root) for name in schema.get("required", ())}
    if kind == "array":
        items = [example_instance(item, root) for item in schema.get("prefixItems", ())]
        missing = schema.get("minItems", 0) - len(items)
        return items + [example_instance(schema.get("items", {}), root) for _ in range(missing)]
    if kind == "string":
        if "pattern" in schema:
            raise ValueError("no example for a pattern; script an answer instead")
        text: str = _FORMATS.get(schema.get("format", ""), "text")
        return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
    if kind in {"integer", "number"}:
        return _number(schema, kind)
    return False if kind == "boolean" else None


def _number(schema: JsonSchema, kind: str) -> float:
    """The smallest multiple from the lower bound upwards, or the largest below the upper one."""
    step = schema.get("multipleOf", 1 if kind == "integer" else 0)
    if "minimum" in schema or "exclusiveMinimum" in schema:
        low = max(schema.get("minimum", float("-inf")), schema.get("exclusiveMinimum", float("-inf")))
        value = -(-low // step) * step if step else low
        if value == schema.get("exclusiveMinimum"):
            value += step or _half_way(value, schema)
        return int(value) if kind == "integer" else value
    high = min(schema.get("maximum", 0), schema.get("exclusiveMaximum", 1))
    value = min(0, high // step * step if step else high)
    if value == schema.get("exclusiveMaximum"):
        value -= step or 1
    return int(value) if kind == "integer" else value


def _half_way(low: float, schema: JsonSchema) -> float:
    high = min(schema.get("maximum", low + 1), schema.get("exclusiveMaximum", low + 1))
    return float(high - low) / 2


def _resolve(reference: str, root: object) -> object:
    if not reference.startswith("#"):
        raise ValueError(f"no example for {reference}; only references within the schema are followed")
    found = root
    for part in reference[1:].split("/")[1:]:
        found = _part(found, part.replace("~1", "/").replace("~0", "~"))
    return found


def _part(value: object, name: str) -> object:
    if not isinstance(value, Mapping):
        raise KeyError(name)
    part: object = value[name]
    return part
