"""Prices of model calls, offline."""

from __future__ import annotations

from functools import lru_cache

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

BATCH_PRICE = 0.5
"""Price of a token through a batch API, as a fraction of its list price, at both OpenAI and Anthropic.

Sources: https://platform.openai.com/docs/guides/batch and https://platform.claude.com/docs/en/build-with-claude/batch-processing.
"""


@lru_cache(maxsize=256)
def _per_token(provider: str, model: str) -> tuple[float, float] | None:
    try:
        inputs = calc_price(PricedUsage(input_tokens=1_000_000, output_tokens=0), model_ref=model, provider_id=provider)
        outputs = calc_price(
            PricedUsage(input_tokens=0, output_tokens=1_000_000), model_ref=model, provider_id=provider
        )
    except LookupError:
        return None
    return float(inputs.total_price) / 1e6, float(outputs.total_price) / 1e6


def cost_usd(provider: str, model: str, *, input_tokens: int, output_tokens: int, batch: bool = False) -> float:
    """USD of a call at the list prices that `genai-prices` ships, in a batch at half of them; 0 for local and unknown models.

    Tiered and cached prices are not applied, so this is an upper estimate for providers that discount them.
    """
    if provider == "local":
        return 0.0
    prices = _per_token(provider, model)
    if prices is None:
        return 0.0
    usd = prices[0] * input_tokens + prices[1] * output_tokens
    return usd * BATCH_PRICE if batch else usd


def is_priced(provider: str, model: str) -> bool:
    """True if a price is known; a run with a USD budget may only use priced models."""
    return provider == "local" or _per_token(provider, model) is not None
