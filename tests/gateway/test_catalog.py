"""Model pins: parsed, refused with a correction, and turned into shared providers; keys go to the settings' address only."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from interlock.base.errors import FailureKind, InvalidSpec, ProviderError
from interlock.base.outbound import Outbound
from interlock.base.settings import ProviderSettings
from interlock.gateway.catalog import ModelCatalog, Pin, parse_pin
from interlock.gateway.provider import Message, ModelRequest
from interlock.testing import FakeProvider

KEYS = {"OPENAI_API_KEY": "sk-operators-key", "ANTHROPIC_API_KEY": "sk-ant-operators-key"}
HELLO = [Message("user", "hello")]


def catalog(environment: dict[str, str], private: tuple[str, ...] = (), **providers: dict[str, Any]) -> ModelCatalog:
    settings = {name: ProviderSettings(**given) for name, given in providers.items()}
    return ModelCatalog(environment, settings, Outbound(private))


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("local:smollm2-135m-instruct-q4_1", Pin("local", "smollm2-135m-instruct-q4_1")),
        ("openai:gpt-4o-2024-08-06", Pin("openai", "gpt-4o-2024-08-06")),
        ("anthropic:claude-sonnet-4-5-20250929", Pin("anthropic", "claude-sonnet-4-5-20250929")),
        ("ollama:llama3.1:8b", Pin("ollama", "llama3.1:8b")),
        ("vertex:claude-3-5-sonnet@20240620", Pin("vertex", "claude-3-5-sonnet@20240620")),
    ],
)
def test_pins(text: str, pin: Pin) -> None:
    assert parse_pin(text) == pin


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("gpt-4o-2024-08-06", "openai:gpt-4o-2024-08-06"),
        ("openai:", "PROVIDER:MODEL"),
        ("Open AI:x", "PROVIDER:MODEL"),
        ("openai:gpt-4o", "dated"),
        ("anthropic:claude-sonnet-latest", "dated"),
    ],
)
def test_a_bad_pin_names_the_correction(text: str, mend: str) -> None:
    with pytest.raises(InvalidSpec, match=mend):
        parse_pin(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("openai:m@http://h:1/v1", "NAME"),
        ("anthropic:m@https://h", "NAME"),
        ("local:m@http://h", "NAME"),
        ("ollama:m@http://h:1/v1", "ollama"),
        ("openai:m@http://user:password@169.254.169.254/v1", "NAME"),
    ],
)
def test_a_pin_names_no_address(text: str, name: str) -> None:
    """As versions of earlier releases did: who deployed a version could have the worker's key sent to any address."""
    url = text.partition("@")[2]
    with pytest.raises(InvalidSpec) as refused:
        parse_pin(text)
    assert f'add [providers.{name}] with base_url = "{url}" there, and write {name}:m' in refused.value.message
    with pytest.raises(InvalidSpec, match="only the settings of the worker"):
        catalog(KEYS).resolve(text)


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(InvalidSpec, match=r"no provider \"mistral\" .*anthropic, local, openai.*\[providers.mistral\]"):
        catalog(KEYS).resolve("mistral:large-2411")


async def test_one_provider_serves_all_models_of_an_endpoint() -> None:
    async with FakeProvider() as fake:
        models = catalog({}, openai={"base_url": fake.url})
        first, model = models.resolve("openai:small")
        second, other = models.resolve("openai:large")
        assert first is second
        assert (model, other) == ("small", "large")
        await first.complete(ModelRequest(model, HELLO))
        await models.close()
        assert fake.requests[0].body["model"] == "small"


async def test_a_key_goes_to_its_own_address_only() -> None:
    """A provider with an address of its own gets the key that its settings name, and by default none."""
    environment = {**KEYS, "OURS": "sk-ours"}
    async with FakeProvider() as fake:
        for given, expected in (({}, None), ({"key": "OURS"}, "Bearer sk-ours")):
            models = catalog(environment, openai={"base_url": fake.url, **given})
            provider, model = models.resolve("openai:small")
            await provider.complete(ModelRequest(model, HELLO))
            await models.close()
            sent = {name.lower(): value for name, value in fake.requests[-1].headers.items()}
            assert sent.get("authorization") == expected
            assert not [one for one in sent.values() if "operators" in one]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_missing_key_is_named(kind: str) -> None:
    with pytest.raises(InvalidSpec, match=f"{kind.upper()}_API_KEY"):
        catalog({}).resolve(f"{kind}:model-2025-01-01")
    with pytest.raises(InvalidSpec, match="OURS in the worker's environment"):
        catalog(KEYS, ours={"base_url": "http://127.0.0.1:9", "key": "OURS"}).resolve("ours:m")


@pytest.mark.parametrize(
    ("host", "address", "private", "said"),
    [
        ("metadata.internal", "169.254.169.254", (), "metadata"),
        ("metadata.internal", "169.254.169.254", ("169.254.0.0/16", "metadata.internal"), "metadata"),
        ("vllm.internal", "10.1.2.3", (), 'add "vllm.internal" to network.private'),
        ("rebound.example", "127.0.0.1", (), "not public"),
        ("mapped.example", "::ffff:127.0.0.1", (), "not public"),
        ("169.254.169.254", None, (), "metadata"),
        ("[::ffff:169.254.169.254]", None, (), "metadata"),
    ],
)
async def test_a_provider_that_leads_inside_the_network_is_not_called(
    host: str, address: str | None, private: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Names:
        """A name service that an attacker controls."""

        async def resolve(self, name: str, port: int, family: socket.AddressFamily) -> list[dict[str, Any]]:
            return [{"hostname": name, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}]

        async def close(self) -> None: ...

    monkeypatch.setattr("interlock.base.vetted_http.ThreadedResolver", Names)
    models = catalog(KEYS, private, ours={"base_url": f"http://{host}:1/v1"})
    provider, model = models.resolve("ours:m")
    with pytest.raises(ProviderError, match=said) as refused:
        await provider.complete(ModelRequest(model, HELLO, timeout=30.0))
    assert refused.value.kind is FailureKind.PERMANENT
    await models.close()
