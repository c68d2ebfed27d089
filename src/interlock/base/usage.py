"""`Usage`: what calls of models used, as the journal, budgets, audit log and views have it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from interlock.base.money import FREE, NanoUsd, usd_text


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call of a model used, or several calls together.

    Usages add up: counts and costs are integers, so the sum does not depend on order or grouping. A sum carries provider and
    model of the last part that names them.

    Attributes:
        provider: who was called, by its configured name.
        model: the name that the answering model gave itself; "" if nothing answered.
        input_tokens: all of them, those read from and written to a cache included.
        output_tokens: all of them, those of the reasoning included.
        cached_tokens: input tokens read from the provider's cache.
        cache_write_tokens: input tokens written to it.
        reasoning_tokens: output tokens that are not in the answer.
        attempts: calls made: corrections, and calls that failed, included.
        known_cost: nano-USD of the calls whose price is known.
        unpriced: calls that were charged for at a price that is not known; `known_cost` says nothing about them.
    """

    provider: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    attempts: int = 0
    known_cost: NanoUsd = FREE
    unpriced: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            other.provider or self.provider,
            other.model or self.model,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.attempts + other.attempts,
            NanoUsd(self.known_cost + other.known_cost),
            self.unpriced + other.unpriced,
        )

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens

    @property
    def cost(self) -> NanoUsd | None:
        """Nano-USD of all of it; None if the price of any part is not known."""
        return None if self.unpriced else self.known_cost

    def anonymous(self) -> Usage:
        """The same counts without provider and model, for sums over calls of different models."""
        return replace(self, provider="", model="")

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def cost_json(known_cost: NanoUsd, unpriced: int) -> dict[str, Any]:
    """Cost as people read it, in views and the audit log: decimal strings of USD.

    `usd` is None as soon as the price of one call is not known, so no reader takes an unknown price for 0; `usd_priced` is the
    sum over the other calls.
    """
    text = usd_text(known_cost)
    return {"usd": None if unpriced else text, "usd_priced": text, "unpriced_calls": unpriced}
