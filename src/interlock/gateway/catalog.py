"""Model pins, and the providers that they name.

A pin is one line of configuration and part of a workflow version, so a run keeps its model:

    local:smollm2-135m-instruct-q4_1     weights on this host, no key
    openai:gpt-4o-2024-08-06             provider `openai`, known: api.openai.com, key in OPENAI_API_KEY
    anthropic:claude-sonnet-4-5-20250929 provider `anthropic`, known: api.anthropic.com, key in ANTHROPIC_API_KEY
    ollama:llama3.1                      a provider of the settings: [providers.ollama] base_url = "http://localhost:11434/v1"

A pin names a provider and never an address: who deploys a version is not who runs the worker. Address and key of a provider
come from the settings and the environment of the worker. Keys are never stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from interlock.base.errors import InvalidSpec
from interlock.base.outbound import Outbound
from interlock.base.settings import ProviderSettings
from interlock.gateway.anthropic import BASE_URL, AnthropicProvider
from interlock.gateway.local import LocalProvider
from interlock.gateway.openai import OpenAIProvider
from interlock.gateway.provider import Provider
from interlock.gateway.weights import SMOLLM2_135M

KNOWN: Mapping[str, ProviderSettings] = {
    "openai": ProviderSettings(base_url="https://api.openai.com/v1", key="OPENAI_API_KEY"),
    "anthropic": ProviderSettings(base_url=BASE_URL, dialect="anthropic", key="ANTHROPIC_API_KEY"),
}
"""Providers that need no settings; settings of the same name replace them."""

LOCAL = "local"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_ADDRESS = re.compile(r"@(https?://\S+)$")
# Names that a provider may assign to another model; a pin must mean the same model for the whole life of a run.
_ALIASES = ("latest", "gpt-4o", "gpt-4", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "chatgpt-4o")


@dataclass(frozen=True, slots=True)
class Pin:
    """A parsed pin."""

    provider: str
    model: str


def parse_pin(text: str) -> Pin:
    """Raises:
    InvalidSpec: not a pin, a pin with an address, or a name that its provider assigns to changing models.
    """
    provider, _, model = text.partition(":")
    if not _NAME.fullmatch(provider) or not model:
        raise InvalidSpec(
            f'models: "{text}" is not a model; write PROVIDER:MODEL, such as openai:gpt-4o-2024-08-06, or local:NAME'
        )
    address = _ADDRESS.search(model)
    if provider == LOCAL and address is None and model != SMOLLM2_135M.name:
        raise InvalidSpec(
            f'models: "{text}" is not a model: the only local one is {SMOLLM2_135M.name}; for a server of your own add '
            f"[providers.NAME] with its base_url, and write NAME:{model}"
        )
    if address is not None:
        name = provider if provider not in KNOWN and provider != LOCAL else "NAME"
        raise InvalidSpec(
            f'models: "{text}" names an address, which only the settings of the worker may; '
            f'add [providers.{name}] with base_url = "{address[1]}" there, and write {name}:{model[: address.start()]}'
        )
    if provider in KNOWN and (model in _ALIASES or model.endswith("-latest")):
        raise InvalidSpec(
            f'models: "{text}" is an alias that its provider moves; pin a dated version, such as {provider}:{model}-2024-08-06'
        )
    return Pin(provider, model)


def provider_of(pin: Pin, providers: Mapping[str, ProviderSettings]) -> ProviderSettings | None:
    """The settings of a pin's provider; None for weights on this host.

    Raises:
        InvalidSpec: the settings have no such provider.
    """
    if pin.provider == LOCAL:
        return None
    found = providers.get(pin.provider) or KNOWN.get(pin.provider)
    if found is None:
        known = ", ".join(sorted({LOCAL, *KNOWN, *providers}))
        raise InvalidSpec(
            f'models: "{pin.provider}:{pin.model}": no provider "{pin.provider}" (there are: {known}); '
            f"add [providers.{pin.provider}] with its base_url to the settings of the worker"
        )
    return found


def has_batches(pin: str) -> bool:
    """True if the provider of a pin may have a batch API; for an address of one's own only a request can tell."""
    return parse_pin(pin).provider != LOCAL


class ModelCatalog:
    """Providers by name, created on first use and shared by all runs of the process.

    Args:
        environment: of the worker; the providers' keys are in it.
        providers: of the worker's settings.
        outbound: decides about the addresses that providers' names lead to.
    """

    def __init__(
        self, environment: Mapping[str, str], providers: Mapping[str, ProviderSettings], outbound: Outbound
    ) -> None:
        self._environment = environment
        self._settings = providers
        self._outbound = outbound
        self._providers: dict[str, Provider] = {}

    def resolve(self, pin: str) -> tuple[Provider, str]:
        """The provider to call and its name for the model.

        Raises:
            InvalidSpec: not a pin, an unknown provider, or its key is not in the environment.
        """
        parsed = parse_pin(pin)
        if parsed.provider not in self._providers:
            self._providers[parsed.provider] = self._make(parsed)
        return self._providers[parsed.provider], parsed.model

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()
        self._providers.clear()

    def _make(self, pin: Pin) -> Provider:
        settings = provider_of(pin, self._settings)
        if settings is None:
            return LocalProvider(fetch=True)
        key = None
        if settings.key is not None:
            key = self._environment.get(settings.key)
            if not key:
                raise InvalidSpec(
                    f"model {pin.provider}:{pin.model} needs {settings.key} in the worker's environment; "
                    "set it and restart the worker"
                )
        if settings.dialect == "anthropic":
            return AnthropicProvider(pin.provider, key, base_url=settings.base_url, outbound=self._outbound)
        return OpenAIProvider(pin.provider, settings.base_url, key, outbound=self._outbound)
