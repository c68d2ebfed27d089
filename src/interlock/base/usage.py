"""`Usage`: tokens and cost of model calls, in journal, budgets, audit log and views."""

from __future__ import annotations

from interlock.base.money import FREE, NanoUsd, usd_text
from interlock.base.values import value


@value(frozen=True, slots=True)
class Usage:
    """Usage of one model call, or of several calls together.

    Usages can be added: counts and costs are integers, so the sum does not depend on order or grouping. A sum has the
    provider and model of the last part that names them.

    Attributes:
        provider: configured name of the provider.
        model: name reported by the answering model; "" without an answer.
        input_tokens: all input tokens, those read from and written to a cache included.
        output_tokens: all output tokens, those of the reasoning included.
        cached_tokens: input tokens read from the provider's cache.
        cache_write_tokens: input tokens written to that cache.
        reasoning_tokens: output tokens that are not in the answer.
        attempts: calls made, corrections and failed calls included.
        known_cost: nano-USD of the calls whose price is known.
        unpriced: number of charged calls whose price is not known; `known_cost` does not include them.
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
        """Input and output tokens."""
        return self.input_tokens + self.output_tokens

    @property
    def cost(self) -> NanoUsd | None:
        """Total cost in nano-USD; None if the price of any part is not known."""
        return None if self.unpriced else self.known_cost

    def anonymous(self) -> Usage:
        """The same counts without provider and model, for sums over calls of different models."""
        counts = (self.input_tokens, self.output_tokens, self.cached_tokens, self.cache_write_tokens)
        return Usage("", "", *counts, self.reasoning_tokens, self.attempts, self.known_cost, self.unpriced)

    def to_json(self) -> dict[str, str | int]:
        return {name: getattr(self, name) for name in self.__slots__}


def cost_json(known_cost: NanoUsd, unpriced: int) -> dict[str, str | int | None]:
    """Cost for views and the audit log: decimal strings of USD.

    `usd` is None if the price of any call is not known, so that an unknown price cannot be read as 0; `usd_priced` is the sum
    over the other calls.
    """
    text = usd_text(known_cost)
    return {"usd": None if unpriced else text, "usd_priced": text, "unpriced_calls": unpriced}
