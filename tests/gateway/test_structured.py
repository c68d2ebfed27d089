"""The correction loop against the fake server: how often it asks, what it says, what it adds up."""

from __future__ import annotations

import asyncio
import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice
from genai_prices.types import Provider as PriceProvider

from interlock.base.errors import FailureKind, InvalidInput, InvalidSpec, ProviderError
from interlock.base.money import NanoUsd
from interlock.base.usage import Usage
from interlock.budget import prices
from interlock.gateway.failures import BilledError
from interlock.gateway.openai import OpenAIProvider
from interlock.gateway.provider import ModelResponse
from interlock.gateway.structured import _CACHE_SIZE, _compiled, compile_schema, complete_structured
from interlock.testing import FakeProvider, answer, invalid_json, rate_limited, refusal, server_error, wrong_schema

from .conftest import SCHEMA, VALID, RawServer, request

VALID_TEXT = json.dumps(VALID)


def total(fake: FakeProvider, answers: list[str]) -> Usage:
    """What the calls used, counted from the wire by the fake's rule: a word a token; nobody knows their price."""
    incoming = sum(len(turn["content"].split()) for sent in fake.requests for turn in sent.body["messages"])
    outgoing, calls = sum(len(text.split()) for text in answers), len(answers)
    return Usage("acme", "pinned-1", incoming, outgoing, attempts=calls, unpriced=calls)


async def test_a_valid_answer_needs_one_call(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(answer(VALID))
    result = await complete_structured(openai, request(schema=SCHEMA), validator=compile_schema(SCHEMA))
    assert result.value == VALID
    assert result.usage == total(fake, [VALID_TEXT])


async def test_corrections_name_place_and_rule_but_no_value(fake: FakeProvider, openai: OpenAIProvider) -> None:
    secret = "DE89 3704 0044 0532 0130 00"
    first = json.dumps({"category": secret, "urgency": 9, "iban": "x"})
    fake.script(answer(first), invalid_json(), answer(VALID))
    result = await complete_structured(openai, request(schema=SCHEMA))
    assert (result.value, result.usage.attempts, fake.count) == (VALID, 3, 3)
    turns = fake.requests[1].body["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[2]["content"] == first
    said = turns[3]["content"]
    assert "/category: " in said
    assert "/urgency: the value is greater than the maximum of 5" in said
    assert "declared are category, urgency" in said
    assert "iban" not in said, "a name that the schema does not declare is data"
    assert secret not in said
    assert len(fake.requests[2].body["messages"]) == 6
    assert "not valid JSON" in fake.requests[2].body["messages"][5]["content"]
    assert result.usage == total(fake, [first, '{"category": "fe', VALID_TEXT])


@pytest.mark.parametrize("corrections", [0, 1, 2])
async def test_it_ends_after_the_last_correction_and_says_what_it_cost(
    fake: FakeProvider, openai: OpenAIProvider, corrections: int
) -> None:
    fake.always(wrong_schema({"category": "0160 1234567", "urgency": 1}))
    with pytest.raises(BilledError) as caught:
        await complete_structured(openai, request(schema=SCHEMA), max_corrections=corrections)
    error = caught.value
    assert error.kind is FailureKind.INVALID
    assert error.usage.attempts == fake.count == corrections + 1
    assert error.usage == total(fake, ['{"category": "0160 1234567", "urgency": 1}'] * fake.count)
    assert "/category" in error.message
    assert "0160" not in error.message


async def test_two_corrections_is_the_default(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.always(invalid_json())
    with pytest.raises(BilledError):
        await complete_structured(openai, request(schema=SCHEMA))
    assert fake.count == 3


@pytest.mark.parametrize(
    "text",
    [
        VALID_TEXT,
        f"```json\n{VALID_TEXT}\n```",
        f"```\n{VALID_TEXT}\n```\n",
        f"Here is the answer:\n```JSON\n{VALID_TEXT}\n```",
    ],
)
async def test_a_single_fence_is_tolerated(fake: FakeProvider, openai: OpenAIProvider, text: str) -> None:
    fake.script(answer(text))
    result = await complete_structured(openai, request(schema=SCHEMA))
    assert (result.value, result.usage.attempts) == (VALID, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"Here you are: {VALID_TEXT}",
        f"```json\n{VALID_TEXT}\n```\nAnything else?",
        f"```json\n{VALID_TEXT}\n```\n```json\n{VALID_TEXT}\n```",
        f"```python\n{VALID_TEXT}\n```",
        f"{VALID_TEXT}{VALID_TEXT}",
        '{"category": "fees", "urgency": NaN}',
        '{"category": "card", "category": "fees", "urgency": 2}',
        "[" * 100_000,
        '{"category": "fees", "urgency": ' + "9" * 5000 + "}",
        '{"category": "fees", "urgency": 2, "more": ' + "[" * 100 + "]" * 100 + "}",
        '{"category": "fees", "urgency": 2, "more": 1e999}',
        '{"category": "fees", "urgency": 2, "more": 9223372036854775808}',
        '{"category": "fees", "urgency": 2, "a\\ud800": 1}',
        '{"category": "fees\\ud800", "urgency": 2}',
        '{"category": "fees", "urgency": 2, "a\\u0000b": 1}',
    ],
)
async def test_nothing_cleverer(fake: FakeProvider, openai: OpenAIProvider, text: str) -> None:
    fake.script(answer(text), answer(VALID))
    result = await complete_structured(openai, request(schema=SCHEMA))
    assert (result.value, result.usage.attempts) == (VALID, 2)
    echoed = fake.requests[1].body["messages"][2]["content"]
    assert 0 < len(echoed) < 8_100


async def test_a_cut_answer_is_invalid_even_if_it_parses(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(answer(VALID, finish_reason="length"), answer(VALID))
    result = await complete_structured(openai, request(schema=SCHEMA))
    assert result.usage.attempts == 2
    assert "more briefly" in fake.requests[1].body["messages"][3]["content"]


async def test_a_failure_before_any_cost_passes_unchanged(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(rate_limited(3))
    with pytest.raises(ProviderError) as caught:
        await complete_structured(openai, request(schema=SCHEMA))
    assert not isinstance(caught.value, BilledError)
    assert caught.value.retry_after == 3.0
    assert fake.count == 1


async def test_a_failure_after_a_paid_attempt_carries_the_cost(fake: FakeProvider, openai: OpenAIProvider) -> None:
    fake.script(invalid_json("no"), rate_limited(3), invalid_json("no"), refusal())
    with pytest.raises(BilledError) as caught:
        await complete_structured(openai, request(schema=SCHEMA))
    assert (caught.value.kind, caught.value.retry_after) == (FailureKind.RATE_LIMITED, 3.0)
    assert caught.value.usage == Usage("acme", "pinned-1", 5, 1, attempts=2, unpriced=1), "one of two was answered"
    with pytest.raises(BilledError) as caught:
        await complete_structured(openai, request(schema=SCHEMA))
    assert caught.value.kind is FailureKind.PERMANENT
    # Both calls: the invalid answer's, and the refusal's own.
    assert caught.value.usage.input_tokens > 10
    assert (caught.value.usage.attempts, caught.value.usage.unpriced) == (2, 2)


async def test_no_schema_no_call(fake: FakeProvider, openai: OpenAIProvider) -> None:
    with pytest.raises(InvalidInput, match="needs a schema"):
        await complete_structured(openai, request())
    assert fake.count == 0


async def test_many_violations_are_bounded(fake: FakeProvider, openai: OpenAIProvider) -> None:
    names = [f"field-{'x' * 300}-{number}" for number in range(50)]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": names}
    fake.script(answer(dict.fromkeys(names, "no")), server_error())
    with pytest.raises(ProviderError):
        await complete_structured(openai, request(schema=schema))
    said = fake.requests[1].body["messages"][3]["content"]
    assert "and more" in said
    assert len(said) < 2_500


def test_compiled_schemas_are_shared_and_bounded() -> None:
    assert compile_schema(SCHEMA) is compile_schema(dict(reversed(SCHEMA.items())))
    for number in range(_CACHE_SIZE + 10):
        compile_schema({"const": number})
    assert len(_compiled) == _CACHE_SIZE


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "https://example.com/schema.json"}, {"pattern": "("}]
)
def test_a_bad_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="not a valid JSON Schema"):
        compile_schema(schema)


async def test_a_reference_elsewhere_is_refused_even_where_it_could_be_fetched(raw_server: RawServer) -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    async with raw_server(reply) as url:
        with pytest.raises(InvalidSpec):
            # In a thread: a fetch would block this loop, and with it the server that answers it.
            await asyncio.to_thread(compile_schema, {"$ref": url})


def test_formats_are_enforced() -> None:
    assert list(compile_schema({"type": "string", "format": "date"}).iter_errors("tomorrow"))


async def test_an_answer_that_is_there_is_the_first_attempt(fake: FakeProvider, openai: OpenAIProvider) -> None:
    """It comes with its cost, which is not the one of a direct call."""
    used = Usage("acme", "pinned-0", 7, 3, attempts=1, known_cost=NanoUsd(99))
    good = ModelResponse('{"category": "fees", "urgency": 2}', "pinned-0", used)
    answer = await complete_structured(openai, request(schema=SCHEMA), answered=good)
    assert (answer.value, answer.usage, fake.count) == (VALID, used, 0)
    bad = ModelResponse("{}", "pinned-0", used)
    answer = await complete_structured(openai, request(schema=SCHEMA), answered=bad)
    assert (answer.usage.attempts, fake.count) == (2, 1)
    assert (answer.usage.known_cost, answer.usage.unpriced, answer.usage.model) == (99, 1, "pinned-1")
    assert answer.usage.input_tokens > 7
    fake.always(wrong_schema())
    with pytest.raises(BilledError) as caught:
        await complete_structured(openai, request(schema=SCHEMA), answered=bad)
    assert (caught.value.usage.attempts, fake.count) == (3, 3), "two corrections, as ever"


async def test_each_call_is_priced_by_itself_and_rounded_once(
    fake: FakeProvider, openai: OpenAIProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 37.5 nano-USD a token, calls cost half a nano-USD more than a whole number; what adds up are the rounded parts."""
    price = ModelPrice(input_mtok=Decimal("0.0375"), output_mtok=Decimal("0.15"))
    listed = PriceProvider("acme", "Acme", ""), ModelInfo("pinned-1", ClauseEquals("pinned-1"), prices=price)
    monkeypatch.setattr(prices, "_find", lambda _provider, _model: listed)
    fake.script(invalid_json("no"), invalid_json("no"), answer(VALID))
    result = await complete_structured(openai, request(schema=SCHEMA))
    calls = [sum(len(turn["content"].split()) for turn in sent.body["messages"]) for sent in fake.requests]
    answers = [1, 1, len(VALID_TEXT.split())]
    exact = [Fraction(75, 2) * used + 150 * said for used, said in zip(calls, answers, strict=True)]
    assert any(one.denominator == 2 for one in exact), "else nothing is rounded here"
    assert result.usage.cost == sum(math.floor(one + Fraction(1, 2)) for one in exact)
    assert (result.usage.attempts, result.usage.unpriced) == (3, 0)
