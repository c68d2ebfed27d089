"""The Anthropic dialect over a real HTTP server of its shape."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from interlock.base.errors import FailureKind, ProviderError
from interlock.base.usage import Usage
from interlock.gateway.anthropic import AnthropicProvider
from interlock.gateway.failures import BilledError
from interlock.gateway.provider import Message
from interlock.gateway.structured import complete_structured

from .conftest import KEY, SCHEMA, VALID, FakeAnthropic, request


@pytest.fixture
async def claude(anthropic_server: FakeAnthropic) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider("claude", KEY, base_url=anthropic_server.url)
    yield provider
    await provider.close()


async def test_sends_the_dialect_and_reads_the_answer(
    anthropic_server: FakeAnthropic, claude: AnthropicProvider
) -> None:
    anthropic_server.reply([{"type": "text", "text": "Two "}, {"type": "text", "text": "euros."}])
    turns = [
        Message("system", "Be brief."),
        Message("developer", "In English."),
        Message("user", "Hello."),
        Message("user", "Which fees?"),
        Message("assistant", "Which card?"),
        Message("tool", "card=gold"),
        Message("user", "Gold."),
    ]
    response = await claude.complete(request(messages=turns, temperature=1.5, seed=3))
    assert (response.text, response.model, response.response_id) == ("Two euros.", "claude-pinned", "msg_1")
    assert response.finish_reason == "stop"
    assert response.metadata == {"request_id": "req_1"}
    body, headers = anthropic_server.requests[0]
    assert headers["x-api-key"] == KEY
    assert headers["anthropic-version"] == "2023-06-01"
    assert body == {
        "model": "pinned-1",
        "max_tokens": 512,
        "temperature": 1.0,
        "system": "Be brief.\n\nIn English.",
        "messages": [
            {"role": "user", "content": "Hello.\n\nWhich fees?"},
            {"role": "assistant", "content": "Which card?"},
            {"role": "user", "content": "card=gold\n\nGold."},
        ],
    }


async def test_a_lone_instruction_becomes_the_user_turn(
    anthropic_server: FakeAnthropic, claude: AnthropicProvider
) -> None:
    anthropic_server.reply([{"type": "text", "text": "ok"}])
    await claude.complete(request(messages=[Message("system", "Say ok.")]))
    body = anthropic_server.requests[0][0]
    assert body["messages"] == [{"role": "user", "content": "Say ok."}]
    assert "system" not in body


async def test_structured_output_is_a_forced_tool_call(
    anthropic_server: FakeAnthropic, claude: AnthropicProvider
) -> None:
    call = {"type": "tool_use", "id": "t", "name": "answer", "input": VALID}
    anthropic_server.reply([{"type": "text", "text": "Sure."}, call], stop_reason="tool_use")
    response = await claude.complete(request(schema=SCHEMA))
    assert json.loads(response.text) == VALID
    assert response.finish_reason == "stop"
    body = anthropic_server.requests[0][0]
    assert body["tools"][0]["input_schema"] == SCHEMA
    assert body["tool_choice"] == {"type": "tool", "name": "answer", "disable_parallel_tool_use": True}


async def test_a_schema_that_is_no_object_is_wrapped_and_unwrapped(
    anthropic_server: FakeAnthropic, claude: AnthropicProvider
) -> None:
    schema = {"type": "array", "items": {"$ref": "#/$defs/tag"}, "$defs": {"tag": {"enum": ["a", "b"]}}}
    call = {"type": "tool_use", "id": "t", "name": "answer", "input": {"value": ["a"]}}
    anthropic_server.reply([call], stop_reason="tool_use")
    result = await complete_structured(claude, request(schema=schema))
    assert result.value == ["a"]
    sent = anthropic_server.requests[0][0]["tools"][0]["input_schema"]
    assert sent["type"] == "object"
    assert sent["$defs"] == {"tag": {"enum": ["a", "b"]}}
    assert sent["properties"]["value"] == {"type": "array", "items": {"$ref": "#/$defs/tag"}}


async def test_a_cut_tool_call_counts_as_cut(anthropic_server: FakeAnthropic, claude: AnthropicProvider) -> None:
    call = {"type": "tool_use", "id": "t", "name": "answer", "input": {}}
    anthropic_server.reply([call], stop_reason="max_tokens")
    assert (await claude.complete(request(schema=SCHEMA))).finish_reason == "length"


async def test_cache_tokens_count_as_input(anthropic_server: FakeAnthropic, claude: AnthropicProvider) -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 1000,
    }
    anthropic_server.reply([{"type": "text", "text": "ok"}], usage=usage)
    response = await claude.complete(request())
    assert response.usage == Usage(
        "claude", "claude-pinned", 1110, 5, cached_tokens=1000, cache_write_tokens=100, attempts=1
    )


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (400, "invalid_request_error", FailureKind.PERMANENT),
        (401, "authentication_error", FailureKind.PERMANENT),
        (403, "permission_error", FailureKind.PERMANENT),
        (404, "not_found_error", FailureKind.PERMANENT),
        (413, "request_too_large", FailureKind.PERMANENT),
        (429, "rate_limit_error", FailureKind.RATE_LIMITED),
        (500, "api_error", FailureKind.TRANSIENT),
        (529, "overloaded_error", FailureKind.RATE_LIMITED),
    ],
)
async def test_errors(
    anthropic_server: FakeAnthropic, claude: AnthropicProvider, status: int, name: str, kind: FailureKind
) -> None:
    anthropic_server.fail(status, name, f"it failed for {KEY}", retry_after="4")
    with pytest.raises(ProviderError) as caught:
        await claude.complete(request())
    assert caught.value.kind is kind
    assert caught.value.message == f'provider "claude" answered {status}: it failed for [key]'
    assert caught.value.retry_after == (None if kind is FailureKind.PERMANENT else 4.0)
    assert len(anthropic_server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"content": "text", "usage": {"input_tokens": 1, "output_tokens": 1}},
        {"content": [{"type": "text", "text": "hi"}]},
        {"content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": -1, "output_tokens": True}},
        {},
    ],
)
async def test_what_is_not_the_protocol_is_permanent(
    anthropic_server: FakeAnthropic, claude: AnthropicProvider, body: object
) -> None:
    anthropic_server.script.append((200, {}, body))
    with pytest.raises(ProviderError) as caught:
        await claude.complete(request())
    assert caught.value.kind is FailureKind.PERMANENT
    assert "not its protocol" in caught.value.message


async def test_a_refusal_is_permanent_and_billed(anthropic_server: FakeAnthropic, claude: AnthropicProvider) -> None:
    anthropic_server.reply([], stop_reason="refusal")
    anthropic_server.reply([], stop_reason="end_turn")
    for _ in range(2):
        with pytest.raises(BilledError) as caught:
            await claude.complete(request())
        assert caught.value.kind is FailureKind.PERMANENT
        assert caught.value.usage == Usage("claude", "claude-pinned", 10, 5, attempts=1)


async def test_corrections_keep_the_alternation(anthropic_server: FakeAnthropic, claude: AnthropicProvider) -> None:
    for value in ({"category": "fees"}, VALID):
        anthropic_server.reply(
            [{"type": "tool_use", "id": "t", "name": "answer", "input": value}], stop_reason="tool_use"
        )
    result = await complete_structured(claude, request(schema=SCHEMA))
    assert result.value == VALID
    assert result.usage == Usage("claude", "claude-pinned", 20, 10, attempts=2, unpriced=2)
    roles = [turn["role"] for turn in anthropic_server.requests[1][0]["messages"]]
    assert roles == ["user", "assistant", "user"]
