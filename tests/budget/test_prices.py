"""Prices come with a library, offline; these are its own numbers for models whose list price is well known."""

from __future__ import annotations

import random
import socket
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP
from fractions import Fraction

import pytest
from genai_prices import Usage as PricedUsage
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from interlock.base.usage import Usage
from interlock.budget.prices import _find, cost_of, priced

# USD per million tokens: input, output, input read from the cache, input written to it.
LISTED = {
    ("openai", "gpt-4o"): ("2.5", "10", "1.25", "2.5"),  # writing to the cache has no price of its own
    ("openai", "gpt-4o-mini"): ("0.15", "0.6", "0.075", "0.15"),
    ("openai", "gpt-5-nano"): ("0.05", "0.4", "0.005", "0.05"),
    ("anthropic", "claude-3-5-sonnet-20241022"): ("3", "15", "0.3", "3.75"),
    ("openai", "gpt-4"): ("30", "60", "30", "30"),  # no cache: all input costs the same
}
_COUNTS = st.integers(0, 10**7)


def nano(exact: Fraction) -> int:
    """Half up, of an amount in USD."""
    return (exact * 10**9 + Fraction(1, 2)).__floor__()


@given(st.sampled_from(sorted(LISTED)), _COUNTS, _COUNTS, _COUNTS, _COUNTS, st.booleans())
def test_a_call_costs_its_list_price_to_the_nano(
    which: tuple[str, str], plain: int, cached: int, written: int, outgoing: int, batch: bool
) -> None:
    """Each kind of token at its price; half of it all in a batch."""
    used = Usage(
        input_tokens=plain + cached + written, output_tokens=outgoing, cached_tokens=cached, cache_write_tokens=written
    )
    counts = (plain, outgoing, cached, written)
    exact = sum(Fraction(price) * count for price, count in zip(LISTED[which], counts, strict=True)) / 10**6
    receipt = priced(used, *which, batch=batch)
    assert receipt.cost == nano(exact / 2 if batch else exact)
    assert (receipt.provider, receipt.model, receipt.attempts, receipt.unpriced) == (*which, 1, 0)
    assert receipt.tokens == used.tokens


def test_half_a_nano_is_rounded_up() -> None:
    """A cached token of gpt-5-nano costs 5 nano-USD, and in a batch two and a half."""
    costs = [
        cost_of("openai", "gpt-5-nano", input_tokens=count, output_tokens=0, cached_tokens=count, batch=True)
        for count in range(5)
    ]
    assert costs == [0, 3, 5, 8, 10]


def test_a_long_prompt_has_the_price_of_its_tier() -> None:
    """Of each call, so the calls of a step must not be added up before they are priced."""
    short = cost_of("anthropic", "claude-sonnet-4-5-20250929", input_tokens=150_000, output_tokens=0)
    long = cost_of("anthropic", "claude-sonnet-4-5-20250929", input_tokens=300_000, output_tokens=0)
    assert short == 450_000_000
    assert long == 1_800_000_000


def test_a_dated_name_is_the_same_model() -> None:
    dated, plain = (
        cost_of("openai", f"gpt-4o-mini{date}", input_tokens=9, output_tokens=9) for date in ("-2024-07-18", "")
    )
    assert dated == plain == 9 * 150 + 9 * 600


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-nope"),
        ("nobody", "gpt-4o"),
        ("openai", ""),
        ("", ""),
        ("openai", "x" * 10_000),
        ("openai", "\0"),
        ("openai", "tts-1"),  # listed, at no price for tokens
    ],
)
def test_an_unknown_price_is_no_price(provider: str, model: str) -> None:
    assert cost_of(provider, model, input_tokens=1, output_tokens=1) is None
    assert cost_of(provider, model, input_tokens=10**6, output_tokens=10**6) is None
    receipt = priced(Usage(input_tokens=5), provider, model, batch=True)
    assert (receipt.cost, receipt.known_cost, receipt.unpriced) == (None, 0, 1)
    assert (receipt + priced(Usage(input_tokens=10**6), "openai", "gpt-4o")).cost is None


def test_a_local_model_is_free_which_is_a_price() -> None:
    assert cost_of("local", "anything at all", input_tokens=1, output_tokens=1) is not None
    receipt = priced(Usage(input_tokens=10**9, output_tokens=10**9), "local", "anything at all")
    assert (receipt.cost, receipt.unpriced) == (0, 0)


def test_the_answering_model_is_named_and_the_asked_one_is_priced() -> None:
    """A budget was reserved at the price of the one that was asked for."""
    receipt = priced(Usage("openai", "gpt-4o-2099-01-01", 1000), "openai", "gpt-4o-mini")
    assert (receipt.model, receipt.cost) == ("gpt-4o-2099-01-01", 150_000)


def test_no_network_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("prices must be known offline")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    _find.cache_clear()
    assert cost_of("openai", "gpt-4o", input_tokens=1, output_tokens=1) is not None
    assert cost_of("openai", "gpt-of-tomorrow", input_tokens=1, output_tokens=1) is None


def test_cached_rates_give_the_price_of_the_library() -> None:
    """For every model of the list: the cached rates and the library's own calculation agree to the nano-USD."""
    rng, compared = random.Random(5), 0
    for provider in get_snapshot().providers:
        for info in provider.models:
            prices = info.get_prices(datetime.now(UTC))
            if prices.input_mtok is None or prices.output_mtok is None:
                continue
            given = rng.randrange(300_000)
            cached = rng.randrange(given + 1)
            written = rng.randrange(given - cached + 1)
            out = rng.randrange(90_000)
            counted = PricedUsage(
                input_tokens=given, output_tokens=out, cache_read_tokens=cached, cache_write_tokens=written
            )
            usage = {
                "input_tokens": given,
                "output_tokens": out,
                "cached_tokens": cached,
                "cache_write_tokens": written,
            }
            cost = cost_of(provider.id, info.id, **usage)
            if cost is None:
                continue  # the name of the model leads to another entry
            found = get_snapshot().find_provider_model(info.id, None, provider.id, None)
            usd = found[1].calc_price(counted, found[0]).total_price
            assert cost == (usd * 10**9).to_integral_value(ROUND_HALF_UP), (provider.id, info.id, usage)
            compared += 1
    assert compared > 300
