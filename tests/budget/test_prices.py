"""Prices come with a library, offline; these are its own numbers for models whose list price is well known."""

from __future__ import annotations

import socket

import pytest

from interlock.budget.prices import _per_token, cost_usd, is_priced


@pytest.mark.parametrize(
    ("provider", "model", "input_usd", "output_usd"),  # a million tokens
    [
        ("openai", "gpt-4o", 2.5, 10.0),
        ("openai", "gpt-4o-mini", 0.15, 0.6),
        ("anthropic", "claude-3-5-sonnet-20241022", 3.0, 15.0),
    ],
)
def test_a_known_model_costs_its_list_price(provider: str, model: str, input_usd: float, output_usd: float) -> None:
    assert is_priced(provider, model)
    assert cost_usd(provider, model, input_tokens=10**6, output_tokens=0) == pytest.approx(input_usd)
    assert cost_usd(provider, model, input_tokens=0, output_tokens=10**6) == pytest.approx(output_usd)
    cost = cost_usd(provider, model, input_tokens=1000, output_tokens=200)
    assert cost == pytest.approx((1000 * input_usd + 200 * output_usd) / 1e6)
    assert cost_usd(provider, model, input_tokens=0, output_tokens=0) == 0


def test_a_dated_name_is_the_same_model() -> None:
    dated, plain = (
        cost_usd("openai", f"gpt-4o-mini{date}", input_tokens=9, output_tokens=9) for date in ("-2024-07-18", "")
    )
    assert dated == plain > 0


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-nope"),
        ("nobody", "gpt-4o"),
        ("openai", ""),
        ("", ""),
        ("openai", "x" * 10_000),
        ("openai", "\0"),
    ],
)
def test_an_unknown_model_has_no_price_and_says_so(provider: str, model: str) -> None:
    assert not is_priced(provider, model)
    assert cost_usd(provider, model, input_tokens=10**6, output_tokens=10**6) == 0


def test_a_local_model_is_free_which_is_a_price() -> None:
    assert is_priced("local", "anything at all")
    assert cost_usd("local", "anything at all", input_tokens=10**9, output_tokens=10**9) == 0


def test_no_network_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("prices must be known offline")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    _per_token.cache_clear()
    assert is_priced("openai", "gpt-4o")
    assert not is_priced("openai", "gpt-of-tomorrow")


def test_a_batch_costs_half() -> None:
    tokens = {"input_tokens": 1000, "output_tokens": 200}
    whole = (1000 * 0.15 + 200 * 0.6) / 1e6
    assert cost_usd("openai", "gpt-4o-mini", **tokens, batch=True) == pytest.approx(whole / 2)
    assert cost_usd("openai", "gpt-nope", **tokens, batch=True) == 0
    assert cost_usd("local", "anything at all", **tokens, batch=True) == 0
