"""Prices of model calls, offline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

from genai_prices import Usage as PricedUsage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from interlock.base.money import FREE, NanoUsd, rounded
from interlock.base.usage import Usage

_MANY = 1_000_000  # tokens, the unit of list prices

BATCH_PRICE = Decimal("0.5")
"""Price of a token through a batch API, as a fraction of its list price, at both OpenAI and Anthropic.

Sources: https://platform.openai.com/docs/guides/batch and https://platform.claude.com/docs/en/build-with-claude/batch-processing.
"""


def priced(usage: Usage, provider: str, model: str, *, answering: str = "", batch: bool = False) -> Usage:
    """The usage of one call with its cost: at the list prices that `genai-prices` ships, in a batch at half of them.

    Tokens read from or written to a cache have their own prices if the library has them. Local models cost nothing; a call
    at a price that is not known counts as unpriced. The exact price of the call is rounded once (`base.money.rounded`).

    Args:
        usage: usage of one call; missing names and `attempts` are filled in.
        model: the requested model, at whose price the call was reserved.
        answering: the model that answered, which the usage names from now on; empty to keep its name.
    """
    cost = cost_of(
        provider,
        model,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        batch=batch,
    )
    return Usage(
        usage.provider or provider,
        answering or usage.model or model,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
        attempts=1,
        known_cost=FREE if cost is None else cost,
        unpriced=int(cost is None),
    )


def cost_of(
    provider: str,
    model: str,
    *,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int = 0,
    cache_write_tokens: int = 0,
    batch: bool = False,
) -> NanoUsd | None:
    """Nano-USD of one call; None if the model's price is not known."""
    if provider == "local":
        return FREE
    found = _find(provider, model)
    if found is None:
        return None
    cached = min(cached_tokens, input_tokens)
    written = min(cache_write_tokens, input_tokens - cached)
    rates = _rates(provider, model)
    if rates is None:
        usd = _list_price(found, input_tokens, output_tokens, cached, written)
    else:
        plain = input_tokens - cached - written
        usd = (
            rates.input * plain + rates.cached * cached + rates.written * written + rates.output * output_tokens
        ) / _MANY
    return rounded(usd * BATCH_PRICE if batch else usd)


@dataclass(frozen=True, slots=True)
class _Rates:
    """USD per million tokens of a model whose price is the same at every size and hour."""

    input: Decimal
    cached: Decimal
    written: Decimal
    output: Decimal


@lru_cache(maxsize=256)
def _rates(provider: str, model: str) -> _Rates | None:
    """Rates taken from the library once, because its own calculation costs 0.2 ms.

    None if the price depends on the size, the hour or a fee per request.
    """
    found = _find(provider, model)
    if found is None:
        return None
    prices = found[1].prices
    if not isinstance(prices, ModelPrice):
        return None
    listed = {key: price for key, price in vars(prices).items() if price is not None}
    if any(isinstance(price, TieredPrices) or not key.endswith("_mtok") for key, price in listed.items()):
        return None
    return _Rates(
        input=_list_price(found, _MANY, 0, 0, 0),
        cached=_list_price(found, _MANY, 0, _MANY, 0),
        written=_list_price(found, _MANY, 0, 0, _MANY),
        output=_list_price(found, 0, _MANY, 0, 0),
    )


def _list_price(
    found: tuple[Provider, ModelInfo], input_tokens: int, output_tokens: int, cached: int, written: int
) -> Decimal:
    vendor, info = found
    counted = PricedUsage(
        input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached, cache_write_tokens=written
    )
    return info.calc_price(counted, vendor).total_price


@lru_cache(maxsize=256)
def _find(provider: str, model: str) -> tuple[Provider, ModelInfo] | None:
    """The price list's entry of a model; None if it has none, or none for input and output."""
    try:
        vendor, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    prices = info.get_prices(datetime.now(UTC))
    return (vendor, info) if prices.input_mtok is not None and prices.output_mtok is not None else None
