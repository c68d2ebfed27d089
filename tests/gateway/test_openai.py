"""The OpenAI dialect over a real HTTP server: what is sent, what is read, and what every failure becomes."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from interlock.base.errors import FailureKind, InvalidInput, ProviderError
from interlock.base.usage import Usage
from interlock.gateway.failures import MESSAGE_LIMIT, BilledError
from interlock.gateway.openai import OpenAIProvider, fits_strict, schema_name
from interlock.gateway.provider import Message
from interlock.testing import (
    Behaviour,
    FakeProvider,
    answer,
    cut_stream,
    hang,
    not_the_protocol,
    rate_limited,
    refusal,
    server_error,
    status,
)

from .conftest import KEY, SCHEMA, RawServer, request


async def failure(provider: OpenAIProvider, **changes: object) -> ProviderError:
    """The error of one call, after checking that the key is nowhere in it."""
    with pytest.raises(ProviderError) as caught:
        await provider.complete(request(**changes))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.detail)
    assert KEY not in shown
    # Nothing chained holds the request either: aiohttp's errors carry its headers.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


async def test_sends_the_dialect_and_reads_the_answer(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(answer("Two euros."))
    turns = [Message("system", "a"), Message("developer", "b"), Message("user", "c"), Message("tool", "d")]
    response = await openai.complete(request(messages=turns, seed=7, max_tokens=33))
    assert (response.text, response.model, response.finish_reason) == ("Two euros.", "pinned-1", "stop")
    assert response.usage == Usage("acme", "pinned-1", 4, 2, attempts=1)
    assert response.metadata == {}
    sent = fake.requests[0]
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.body == {
        "model": "pinned-1",
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "system", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "user", "content": "d"},
        ],
        "max_tokens": 33,
        "temperature": 0.0,
        "seed": 7,
    }


async def test_asks_for_the_schema(fake: FakeProvider, openai: OpenAIProvider) -> None:
    response = await openai.complete(request(schema={**SCHEMA, "title": "Ticket triage"}))
    assert json.loads(response.text) == {"category": "card", "urgency": 1}
    wanted = fake.requests[0].body["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["name"] == "Ticket_triage"
    assert wanted["json_schema"]["strict"] is True
    assert wanted["json_schema"]["schema"]["required"] == ["category", "urgency"]


async def test_options_change_the_body(fake: FakeProvider) -> None:
    provider = OpenAIProvider(
        "acme", fake.url + "/", None, strict=False, token_field="max_completion_tokens", send_temperature=False
    )
    await provider.complete(request(schema=SCHEMA))
    await provider.close()
    body = fake.requests[0].body
    assert "authorization" not in fake.requests[0].headers
    assert body["max_completion_tokens"] == 512
    assert not {"max_tokens", "temperature", "seed"} & set(body)
    assert body["response_format"]["json_schema"]["strict"] is False


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (rate_limited(), FailureKind.RATE_LIMITED),
        (rate_limited(code=529), FailureKind.RATE_LIMITED),
        *[(status(code), FailureKind.TRANSIENT) for code in (408, 409, 500, 502, 503, 504, 599)],
        *[(status(code), FailureKind.PERMANENT) for code in (301, 307, 400, 401, 403, 404, 413, 422, 451)],
        (cut_stream(), FailureKind.TRANSIENT),
        (not_the_protocol(), FailureKind.PERMANENT),
        (not_the_protocol(""), FailureKind.PERMANENT),
        (not_the_protocol("[]"), FailureKind.PERMANENT),
        (not_the_protocol("[" * 200_000), FailureKind.PERMANENT),
        (not_the_protocol('{"choices": []}'), FailureKind.PERMANENT),
        (not_the_protocol('{"choices": [{"message": "text"}]}'), FailureKind.PERMANENT),
        (not_the_protocol('{"choices": [{"message": {"content": [1]}}]}'), FailureKind.PERMANENT),
        (not_the_protocol(b"\xff\xfe{"), FailureKind.PERMANENT),
        (refusal(), FailureKind.PERMANENT),
    ],
)
async def test_every_failure_has_its_kind_and_is_not_retried(
    fake: FakeProvider, openai: OpenAIProvider, behaviour: Behaviour, kind: FailureKind
) -> None:
    fake.script(behaviour)
    error = await failure(openai)
    assert error.kind is kind
    assert '"acme"' in error.message
    assert fake.count == 1
    # The provider object is as good as before.
    fake.script(answer("fine"))
    assert (await openai.complete(request())).text == "fine"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({}, None),
    ],
)
async def test_retry_after(
    fake: FakeProvider, openai: OpenAIProvider, headers: dict[str, str], seconds: float | None
) -> None:
    fake.script(status(429, headers=headers), status(503, headers=headers), status(400, headers=headers))
    assert (await failure(openai)).retry_after == seconds
    assert (await failure(openai)).retry_after == seconds
    assert (await failure(openai)).retry_after is None


async def test_retry_after_as_a_date_is_read_by_the_senders_clock(fake: FakeProvider, openai: OpenAIProvider) -> None:
    theirs = datetime(2020, 1, 1, tzinfo=UTC)
    dated = {"Retry-After": format_datetime(theirs + timedelta(seconds=90), usegmt=True)}
    fake.script(
        status(429, headers={**dated, "Date": format_datetime(theirs, usegmt=True)}), status(429, headers=dated)
    )
    assert (await failure(openai)).retry_after == 90.0
    assert (await failure(openai)).retry_after == 0.0


async def test_the_providers_words_arrive_trimmed_and_without_any_key(
    fake: FakeProvider, openai: OpenAIProvider
) -> None:
    fake.script(
        status(401, f"Incorrect API key provided: {KEY}.\n\x1b[31mSee docs"),
        status(400, "x" * (MESSAGE_LIMIT - 30) + KEY + "y" * 5000),
        status(401, "Incorrect API key provided: sk-te********mnop. Authorization: Bearer abcdef"),
        not_the_protocol('{"detail": "no such model"}', code=404),
        not_the_protocol("<h1>Bad gateway</h1>", code=502),
    )
    first = await failure(openai)
    assert first.message == 'provider "acme" answered 401: Incorrect API key provided: [key]. [31mSee docs'
    second = await failure(openai)
    assert len(second.message) < MESSAGE_LIMIT + 40
    assert "sk-test" not in second.message
    third = await failure(openai)
    assert "mnop" not in third.message
    assert "abcdef" not in third.message
    assert (await failure(openai)).message == 'provider "acme" answered 404: no such model'
    assert (await failure(openai)).message == 'provider "acme" answered 502'


async def test_a_redirect_is_not_followed(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(status(307, headers={"Location": fake.url + "/chat/completions"}))
    error = await failure(openai)
    assert "redirects are not followed" in error.message
    assert fake.count == 1


async def test_a_hang_ends_at_the_deadline_and_the_connection_with_it(
    fake: FakeProvider, openai: OpenAIProvider
) -> None:
    fake.script(hang())
    error = await failure(openai, timeout=0.2)
    assert error.kind is FailureKind.TRANSIENT
    assert "within 0.2 s" in error.message
    async with asyncio.timeout(120):
        await fake.wait_until(lambda: fake.disconnects == 1)


async def test_cancelling_the_task_closes_the_connection(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(hang())
    task = asyncio.create_task(openai.complete(request()))
    async with asyncio.timeout(120):
        await fake.wait_until(lambda: fake.count == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await fake.wait_until(lambda: fake.disconnects == 1)


async def test_an_unreachable_provider_is_transient(fake: FakeProvider) -> None:
    async with FakeProvider() as gone:
        url = gone.url
    provider = OpenAIProvider("acme", url, KEY)
    error = await failure(provider)
    await provider.close()
    assert error.kind is FailureKind.TRANSIENT
    address = url.removeprefix("http://").removesuffix("/v1")
    assert error.message == f'provider "acme" at {address} cannot be reached (Connection refused)'


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"", FailureKind.TRANSIENT),
        (b"HTTP/1.1 200 OK\r\nContent-", FailureKind.TRANSIENT),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", FailureKind.TRANSIENT),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a"', FailureKind.TRANSIENT),
        # A body that ends with the connection: half a JSON may be a cut.
        (b'HTTP/1.1 200 OK\r\n\r\n{"choices": [{"mess', FailureKind.TRANSIENT),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", FailureKind.PERMANENT),
    ],
)
async def test_broken_connections(raw_server: RawServer, sent: bytes, kind: FailureKind) -> None:
    async with raw_server(sent) as url:
        provider = OpenAIProvider("acme", url, KEY)
        assert (await failure(provider)).kind is kind
        await provider.close()


async def test_the_body_is_bounded(fake: FakeProvider) -> None:
    provider = OpenAIProvider("acme", fake.url, KEY, max_body=10_000)
    fake.script(answer("x" * 20_000), answer("x" * 9_000), not_the_protocol("z" * 300_000, code=500))
    error = await failure(provider)
    assert error.kind is FailureKind.PERMANENT
    assert "more than 10000 bytes" in error.message
    assert len((await provider.complete(request())).text) == 9_000
    assert (await failure(provider)).kind is FailureKind.TRANSIENT
    await provider.close()


async def test_missing_usage_is_estimated_and_said(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(answer("12345678", usage=False))
    response = await openai.complete(request(messages=[Message("user", "x" * 40)]))
    assert response.metadata == {"usage_estimated": True}
    assert response.usage == Usage("acme", "pinned-1", 14, 2, attempts=1)


# As the API reports them: https://platform.openai.com/docs/api-reference/chat/object
REPORTED = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 192,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


@pytest.mark.parametrize(
    ("changes", "cached", "reasoning"),
    [
        ({}, 1920, 192),
        ({"prompt_tokens_details": None, "completion_tokens_details": {}}, 0, 0),
        ({"prompt_tokens_details": {"cached_tokens": 5000}}, 2006, 192),  # no more than there are
        ({"completion_tokens_details": {"reasoning_tokens": -1}}, 1920, 0),
        ({"prompt_tokens_details": {"cached_tokens": True}, "completion_tokens_details": []}, 0, 0),
    ],
)
async def test_cached_and_reasoning_tokens_are_read(
    fake: FakeProvider, openai: OpenAIProvider, changes: dict[str, object], cached: int, reasoning: int
) -> None:
    message = {"message": {"content": "hi"}, "finish_reason": "stop"}
    body = {"model": "pinned-1-2026-01-01", "choices": [message], "usage": {**REPORTED, **changes}}
    fake.script(not_the_protocol(json.dumps(body), content_type="application/json"))
    response = await openai.complete(request())
    assert response.usage == Usage(
        "acme", "pinned-1-2026-01-01", 2006, 300, cached_tokens=cached, reasoning_tokens=reasoning, attempts=1
    )
    assert response.model == "pinned-1-2026-01-01", "the model that answered"
    assert response.response_id is None


async def test_a_count_that_cannot_be_true_is_none(fake: FakeProvider, openai: OpenAIProvider) -> None:
    """A sum of such counts would not fit into the database."""
    body = {
        "choices": [{"message": {"content": "12345678"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10**30, "completion_tokens": 3},
    }
    fake.script(not_the_protocol(json.dumps(body), content_type="application/json"))
    response = await openai.complete(request(messages=[Message("user", "x" * 40)]))
    assert response.metadata == {"usage_estimated": True}
    assert (response.usage.input_tokens, response.usage.output_tokens) == (14, 3)


async def test_a_refusal_says_why_and_what_it_cost(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(refusal("I will not do that."), answer("half", finish_reason="content_filter"))
    refused = await failure(openai)
    assert isinstance(refused, BilledError)
    assert refused.message == 'provider "acme" refused to answer: I will not do that.'
    assert refused.usage.input_tokens == 5
    assert "content_filter" in (await failure(openai)).message


async def test_an_answer_that_was_all_thought_is_cut_not_refused(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(Behaviour(message={"content": None}, finish_reason="length"))
    response = await openai.complete(request())
    assert (response.text, response.finish_reason) == ("", "length")


async def test_calls_share_one_session_and_keep_connections(fake: FakeProvider, openai: OpenAIProvider) -> None:
    for _ in range(3):
        await openai.complete(request())
    assert fake.connections == 1
    fake.always(answer("x", delay=0.05))
    await asyncio.gather(*(openai.complete(request()) for _ in range(20)))
    assert fake.count == 23
    assert fake.connections <= 20
    before = fake.connections
    await asyncio.gather(*(openai.complete(request()) for _ in range(5)))
    assert fake.connections == before


async def test_close_may_be_called_twice_and_is_final(fake: FakeProvider, openai: OpenAIProvider) -> None:
    await openai.complete(request())
    await openai.close()
    await openai.close()
    assert (await failure(openai)).message == 'provider "acme" is closed'


async def test_the_environments_proxy_is_not_used(
    fake: FakeProvider, openai: OpenAIProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    fake.script(answer("direct"))
    assert (await openai.complete(request())).text == "direct"


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("ftp://host/v1", KEY),
        ("host/v1", KEY),
        ("https://", KEY),
        ("https://user:pw@host/v1", KEY),
        ("https://host/v1?key=1", KEY),
        ("https://host/v1", ""),
        ("https://host/v1", "sk-a\nX-Evil: 1"),
    ],
)
def test_unusable_settings_are_refused_at_once(url: str, key: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        OpenAIProvider("acme", url, key)
    assert "pw" not in caught.value.message
    assert "Evil" not in caught.value.message


async def test_nothing_is_logged_with_the_key(
    fake: FakeProvider, openai: OpenAIProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.script(server_error(), cut_stream())
    await failure(openai)
    await failure(openai)
    assert KEY not in caplog.text


def test_strict_only_where_the_schema_meets_its_rules() -> None:
    assert fits_strict(SCHEMA)
    assert not fits_strict({**SCHEMA, "additionalProperties": True})
    assert not fits_strict({**SCHEMA, "required": ["category"]})
    assert not fits_strict({"type": "array", "items": {"type": "object"}})
    assert fits_strict({"const": {"type": "object"}})
    assert fits_strict({"type": "object", "properties": {}, "required": [], "additionalProperties": False})


def test_schema_names_fit_the_wire() -> None:
    assert schema_name({}) == "answer"
    assert schema_name({"title": "Grüße, Welt"}) == "Gr_e_Welt"
    assert len(schema_name({"title": "x" * 200})) == 64


def test_the_session_is_made_lazily() -> None:
    # Outside of any loop: a provider can be built while the configuration is read.
    provider = OpenAIProvider("acme", "https://api.openai.com/v1", KEY)
    assert provider._token_field == "max_completion_tokens"
    assert provider._endpoint._session is None
