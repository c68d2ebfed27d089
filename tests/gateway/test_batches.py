"""The batch dialects against a server written from the providers' documents, and against answers no provider should give."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from gateway.batch_server import Batch, BatchServer
from gateway.conftest import KEY, SCHEMA, VALID, request
from interlock.base.errors import FailureKind, ProviderError
from interlock.base.usage import Usage
from interlock.gateway.anthropic import AnthropicProvider
from interlock.gateway.batches import batches_of
from interlock.gateway.failures import BilledError
from interlock.gateway.local import LocalProvider
from interlock.gateway.openai import OpenAIProvider
from interlock.gateway.provider import Message, ModelResponse

Provider = OpenAIProvider | AnthropicProvider


@pytest.fixture
async def server() -> AsyncIterator[BatchServer]:
    async with BatchServer() as fake:
        fake.say = lambda _body: VALID
        yield fake


@pytest.fixture(params=["openai", "anthropic"])
async def provider(server: BatchServer, request: pytest.FixtureRequest) -> AsyncIterator[Provider]:
    made: Provider = (
        OpenAIProvider("acme", f"{server.url}/v1", KEY)
        if request.param == "openai"
        else AnthropicProvider("acme", KEY, base_url=server.url)
    )
    yield made
    await made.close()


def ask(text: str, **changes: Any) -> Any:
    return request(messages=[Message("system", "Be brief."), Message("user", text)], schema=SCHEMA, **changes)


@asynccontextmanager
async def answering(like: Provider, body: Any) -> AsyncIterator[Provider]:
    """A provider of the same kind, on a server that answers everything with this."""

    async def say(_: web.Request) -> web.Response:
        return web.json_response(body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", say)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    address = f"http://{host}:{port}"
    openai = isinstance(like, OpenAIProvider)
    made: Provider = (
        OpenAIProvider("acme", f"{address}/v1", KEY) if openai else AnthropicProvider("acme", KEY, base_url=address)
    )
    yield made
    await made.close()
    await runner.cleanup()


async def test_a_batched_call_is_the_same_call(server: BatchServer, provider: Provider) -> None:
    """Same body, same reading of the answer: only the way differs."""
    call = ask("which?")
    direct = await provider.complete(call)
    named = await provider.batches.submit("b-1", {"one": call})
    assert server.batches[0].calls == [("one", server.direct[0])]
    ended = await provider.batches.look(named)
    assert ended is not None
    answer = (await provider.batches.fetch(ended, {"one": call}))["one"]
    assert isinstance(answer, ModelResponse)
    assert (json.loads(answer.text), answer.usage, answer.model) == (VALID, direct.usage, direct.model)
    reasoning = 8 if isinstance(provider, OpenAIProvider) else 0
    used = Usage("acme", call.model, 100, 20, cached_tokens=60, reasoning_tokens=reasoning, attempts=1)
    assert answer.usage == used


async def test_answers_in_any_order(server: BatchServer, provider: Provider) -> None:
    server.say = lambda body: {"words": body["messages"][-1]["content"]}
    calls = {f"call_{n}": ask(f"matter {n}") for n in range(20)}
    ended = await provider.batches.look(await provider.batches.submit("b-1", calls))
    assert ended is not None
    answers = await provider.batches.fetch(ended, calls)
    assert {one: json.loads(answer.text) for one, answer in answers.items()} == {  # type: ignore[union-attr]
        f"call_{n}": {"words": f"matter {n}"} for n in range(20)
    }


async def test_not_over(server: BatchServer, provider: Provider) -> None:
    server.ready = False
    assert await provider.batches.look(await provider.batches.submit("b-1", {"one": ask("x")})) is None


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        ("expired", "transient"),
        ("canceled", "permanent"),
        (429, "rate_limited"),
        (529, "rate_limited"),
        (400, "permanent"),
    ],
)
async def test_a_call_that_failed(outcome: Any, kind: str, server: BatchServer, provider: Provider) -> None:
    server.spoil = lambda one, _body: outcome if one == "bad" else None
    calls = {"good": ask("x"), "bad": ask("y")}
    ended = await provider.batches.look(await provider.batches.submit("b-1", calls))
    assert ended is not None
    answers = await provider.batches.fetch(ended, calls)
    assert isinstance(answers["good"], ModelResponse)
    assert isinstance(answers["bad"], ProviderError)
    assert answers["bad"].kind == kind
    assert 'provider "acme"' in answers["bad"].message


async def test_found_by_what_it_is(server: BatchServer, provider: Provider) -> None:
    """Among others that were handed in at the same time."""
    start = time.time()
    await provider.batches.submit("other", {"a": ask("x"), "b": ask("y")})
    ours = await provider.batches.submit("ours", {"one": ask("x"), "two": ask("y")})
    await provider.batches.submit("third", {"c": ask("x"), "d": ask("y")})
    for batch in server.batches:
        batch.status = "ended" if isinstance(provider, AnthropicProvider) else "completed"
    window = (start, time.time())
    assert await provider.batches.find("ours", {"one", "two"}, 2, *window) == ours
    assert await provider.batches.find("nobody's", {"nine"}, 2, *window) is None
    if isinstance(provider, AnthropicProvider):
        server.batches[0].status = "in_progress"
        assert await provider.batches.find("nobody's", {"nine"}, 3, *window) is None, "of another size"
        assert await provider.batches.find("nobody's", {"nine"}, 2, start - 900, start - 600) is None, "of another time"
        with pytest.raises(ProviderError, match="cannot yet say") as caught:
            await provider.batches.find("nobody's", {"nine"}, 2, *window)
        assert caught.value.kind is FailureKind.TRANSIENT


async def test_found_on_a_later_page(server: BatchServer) -> None:
    now = time.time()
    server.batches = [Batch(f"batch_{n}", [], {"interlock": f"b-{n}"}, "completed", now) for n in range(250)]
    openai = OpenAIProvider("acme", f"{server.url}/v1", KEY)
    assert await openai.batches.find("b-3", set(), 1, now, now) == "batch_3"
    assert server.hits["list"] == 3
    assert await openai.batches.find("b-3", set(), 1, now + 3600, now + 3600) is None
    assert server.hits["list"] == 4, "older ones cannot be it"
    await openai.close()


@pytest.mark.parametrize(
    ("code", "kind"), [("token_limit_exceeded", "rate_limited"), ("invalid_json_line", "permanent")]
)
async def test_a_batch_that_was_refused_later(code: str, kind: str, server: BatchServer) -> None:
    """OpenAI looks into the file after it has taken it."""
    server.ready = False
    openai = OpenAIProvider("acme", f"{server.url}/v1", KEY)
    named = await openai.batches.submit("b-1", {"one": ask("x")})
    server.batches[0].status, server.batches[0].errors = "failed", [{"code": code, "message": f"because of {KEY}"}]
    ended = await openai.batches.look(named)
    await openai.close()
    assert ended is not None
    assert (ended.results, ended.error.kind) == ((), kind)
    assert ended.error.message == 'provider "acme" refused the batch: because of [key]'


@pytest.mark.parametrize("how", ["submit", "look", "fetch", "find"])
async def test_a_provider_that_is_away(how: str, server: BatchServer, provider: Provider) -> None:
    named = await provider.batches.submit("b-1", {"one": ask("x")})
    ended = await provider.batches.look(named)
    assert ended is not None
    server.down = dict.fromkeys(("files", "create", "look", "results", "list"), 503)
    calls: dict[str, Callable[[], Any]] = {
        "submit": lambda: provider.batches.submit("b-2", {"one": ask("x")}),
        "look": lambda: provider.batches.look(named),
        "fetch": lambda: provider.batches.fetch(ended, {"one": ask("x")}),
        "find": lambda: provider.batches.find("b-1", {"one"}, 1, 0, time.time()),
    }
    with pytest.raises(ProviderError, match="answered 503") as caught:
        await calls[how]()
    assert caught.value.kind is FailureKind.TRANSIENT


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"response": None, "error": None, "result": None},
        {"response": 7, "result": 7},
        {"response": {"status_code": "x", "body": []}, "result": {"type": []}},
        {"response": {"status_code": 200, "body": {"choices": []}}, "result": {"type": "succeeded", "message": {}}},
        {"response": {"status_code": 302, "body": None}, "result": {"type": "succeeded"}},
        {"error": {"message": {"deep": 1}}, "result": {"type": "errored", "error": {"error": []}}},
    ],
)
async def test_a_line_that_says_nothing(line: dict[str, Any], server: BatchServer, provider: Provider) -> None:
    """It is the failure of its own call; the call beside it has its answer."""
    calls = {"odd": ask("x"), "good": ask("y")}
    server.around = [json.dumps({"custom_id": "odd", **line}).encode()]
    server.drop = {"odd"}
    ended = await provider.batches.look(await provider.batches.submit("b-1", calls))
    assert ended is not None
    answers = await provider.batches.fetch(ended, calls)
    assert isinstance(answers["odd"], ProviderError)
    assert isinstance(answers["good"], ModelResponse)


async def test_of_two_answers_the_first_counts(server: BatchServer, provider: Provider) -> None:
    calls = {"one": ask("x")}
    server.around = [
        json.dumps({"custom_id": "one", "error": {"code": "batch_expired"}, "result": {"type": "expired"}}).encode()
    ]
    ended = await provider.batches.look(await provider.batches.submit("b-1", calls))
    assert ended is not None
    assert isinstance((await provider.batches.fetch(ended, calls))["one"], ProviderError)


async def test_a_refusal_is_charged_for(server: BatchServer, provider: Provider) -> None:
    server.say = lambda _body: None
    openai = isinstance(provider, OpenAIProvider)
    told = {
        "choices": [{"message": {"content": None, "refusal": "no"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
    said = {"content": [], "stop_reason": "refusal", "usage": {"input_tokens": 9, "output_tokens": 1}}
    line = (
        {"response": {"status_code": 200, "body": told}}
        if openai
        else {"result": {"type": "succeeded", "message": said}}
    )
    server.around, server.drop = [json.dumps({"custom_id": "one", **line}).encode()], {"one"}
    calls = {"one": ask("x")}
    ended = await provider.batches.look(await provider.batches.submit("b-1", calls))
    assert ended is not None
    answer = (await provider.batches.fetch(ended, calls))["one"]
    assert isinstance(answer, BilledError)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 1)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"status": [], "processing_status": {}},
        {"status": "done", "processing_status": "done"},
        {"status": "completed", "output_file_id": "../keys", "processing_status": None},
        {"status": "completed", "error_file_id": 7, "processing_status": 7},
    ],
)
async def test_a_batch_that_says_nothing(body: dict[str, Any], provider: Provider) -> None:
    async with answering(provider, body) as hostile:
        with pytest.raises(ProviderError, match="not its protocol"):
            await hostile.batches.look("batch_1")


@pytest.mark.parametrize(
    "data", [None, 7, [7], [{}], [{"id": []}], [{"created_at": "x", "request_counts": {"a": "b"}}]]
)
async def test_a_list_that_says_nothing(data: Any, provider: Provider) -> None:
    async with answering(provider, {"data": data, "has_more": False}) as hostile:
        assert await hostile.batches.find("b-1", {"one"}, 1, 0, time.time()) is None


@pytest.mark.parametrize("named", ["../../admin/keys", "a/b", "a?b=c", "", ".", "..", "x" * 300, 7, None, "a\r\nX: y"])
async def test_an_id_leads_nowhere_else(named: Any, provider: Provider) -> None:
    """Ids go into paths, with the key in the headers."""
    async with answering(provider, {"id": named}) as hostile:
        with pytest.raises(ProviderError, match="not its protocol"):
            await hostile.batches.submit("b-1", {"one": ask("x")})


def test_who_has_batches() -> None:
    assert batches_of(OpenAIProvider("acme", "http://127.0.0.1:9/v1", None)) is not None
    assert batches_of(LocalProvider(fetch=False)) is None
