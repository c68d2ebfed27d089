"""Model pins and their providers.

A pin is one line of configuration and part of a workflow version, so a run keeps its model:

    local:smollm2-135m-instruct-q4_1         weights on this host, no key
    openai:gpt-4o-2024-08-06             api.openai.com, key in OPENAI_API_KEY
    openai:llama3.1@http://host:11434/v1 any OpenAI-compatible endpoint
    anthropic:claude-sonnet-4-5-20250929 key in ANTHROPIC_API_KEY

Keys come from the environment of the worker and are never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interlock.base.errors import InvalidSpec
from interlock.gateway.anthropic import BASE_URL, AnthropicProvider
from interlock.gateway.local import LocalProvider
from interlock.gateway.openai import OpenAIProvider
from interlock.gateway.provider import Provider
from interlock.gateway.weights import SMOLLM2_135M

_OPENAI = "https://api.openai.com/v1"
_KINDS = ("local", "openai", "anthropic")
# Names that a provider may assign to another model; a pin must mean the same model for the whole life of a run.
_ALIASES = ("latest", "gpt-4o", "gpt-4", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "chatgpt-4o")


@dataclass(frozen=True, slots=True)
class Pin:
    """A parsed pin."""

    kind: str
    model: str
    base_url: str | None


def parse_pin(text: str) -> Pin:
    """Raises:
    InvalidSpec: not a pin, or a name that its provider assigns to changing models.
    """
    kind, _, rest = text.partition(":")
    model, _, base_url = rest.partition("@")
    if kind not in _KINDS or not model:
        raise InvalidSpec(
            f'models: "{text}" is not a model; write local:NAME, openai:MODEL, openai:MODEL@URL or anthropic:MODEL'
        )
    if base_url and not base_url.startswith(("http://", "https://")):
        raise InvalidSpec(f'models: "{text}": the address after @ must begin with http:// or https://')
    if kind == "local" and not base_url and model != SMOLLM2_135M.name:
        raise InvalidSpec(
            f'models: "{text}" is not a model: the only local one is {SMOLLM2_135M.name}; name a server with openai:{model}@URL'
        )
    if base_url and kind == "local":
        raise InvalidSpec(f'models: "{text}": a local model has no address; use openai:{model}@{base_url}')
    if not base_url and kind != "local" and (model in _ALIASES or model.endswith("-latest")):
        raise InvalidSpec(
            f'models: "{text}" is an alias that its provider moves; pin a dated version, such as {kind}:{model}-2024-08-06'
        )
    return Pin(kind, model, base_url or None)


def has_batches(pin: str) -> bool:
    """True if the provider of a pin may have a batch API; for a custom address only a request can tell."""
    return parse_pin(pin).kind != "local"


class ModelCatalog:
    """Providers by pin, created on first use and shared by all runs of the process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._providers: dict[tuple[str, str | None], Provider] = {}

    def resolve(self, pin: str) -> tuple[Provider, str]:
        """The provider to call and its name for the model.

        Raises:
            InvalidSpec: not a pin, or its key is not in the environment.
        """
        parsed = parse_pin(pin)
        place = (parsed.kind, parsed.base_url)
        if place not in self._providers:
            self._providers[place] = self._make(parsed)
        return self._providers[place], parsed.model

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()
        self._providers.clear()

    def _make(self, pin: Pin) -> Provider:
        if pin.kind == "local":
            return LocalProvider(fetch=True)
        if pin.kind == "anthropic":
            key = self._key("ANTHROPIC_API_KEY", pin)
            return AnthropicProvider("anthropic", key, base_url=pin.base_url or BASE_URL)
        if pin.base_url:
            return OpenAIProvider("openai", pin.base_url, self._environment.get("OPENAI_API_KEY"))
        return OpenAIProvider("openai", _OPENAI, self._key("OPENAI_API_KEY", pin))

    def _key(self, name: str, pin: Pin) -> str:
        key = self._environment.get(name)
        if not key:
            raise InvalidSpec(
                f"model {pin.kind}:{pin.model} needs {name} in the worker's environment; set it and restart the worker"
            )
        return key
