"""Model pins: parsed, refused with a mend, and turned into shared providers."""

from __future__ import annotations

import pytest

from interlock.base.errors import InvalidSpec
from interlock.gateway.catalog import ModelCatalog, Pin, parse_pin
from interlock.gateway.provider import Message, ModelRequest
from interlock.testing import FakeProvider


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("local:smollm2-135m-instruct-q4_1", Pin("local", "smollm2-135m-instruct-q4_1", None)),
        ("openai:gpt-4o-2024-08-06", Pin("openai", "gpt-4o-2024-08-06", None)),
        ("openai:llama3.1@http://h:1/v1", Pin("openai", "llama3.1", "http://h:1/v1")),
        ("anthropic:claude-sonnet-4-5-20250929", Pin("anthropic", "claude-sonnet-4-5-20250929", None)),
    ],
)
def test_pins(text: str, pin: Pin) -> None:
    assert parse_pin(text) == pin


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("gpt-4o-2024-08-06", "openai:MODEL"),
        ("mistral:x", "openai:MODEL"),
        ("openai:", "openai:MODEL"),
        ("openai:m@host:1", "http://"),
        ("local:m@http://h", "openai:m@http://h"),
        ("openai:gpt-4o", "dated"),
        ("anthropic:claude-sonnet-latest", "dated"),
    ],
)
def test_a_bad_pin_names_the_mend(text: str, mend: str) -> None:
    with pytest.raises(InvalidSpec, match=mend):
        parse_pin(text)


async def test_one_provider_serves_all_models_of_an_endpoint() -> None:
    async with FakeProvider() as fake:
        catalog = ModelCatalog({})
        first, model = catalog.resolve(f"openai:small@{fake.url}")
        second, other = catalog.resolve(f"openai:large@{fake.url}")
        assert first is second
        assert (model, other) == ("small", "large")
        await first.complete(ModelRequest(model, [Message("user", "hello")]))
        await catalog.close()
        assert fake.requests[0].body["model"] == "small"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_missing_key_is_named(kind: str) -> None:
    with pytest.raises(InvalidSpec, match=f"{kind.upper()}_API_KEY"):
        ModelCatalog({}).resolve(f"{kind}:model-2025-01-01")
