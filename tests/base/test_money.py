"""Money is counted in whole nano-USD: nothing is lost between a receipt, a sum and a text."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.base.errors import InvalidSpec
from interlock.base.money import MAX_USD, NanoUsd, read_usd, rounded, usd_text
from interlock.base.usage import Usage, cost_json
from interlock.workflows.source import parse_yaml, validate
from interlock.workflows.spec import Budget

AMOUNTS = st.integers(-(2**63), 2**63 - 1).map(NanoUsd)
LIMITS = st.integers(1, MAX_USD * 10**9).map(NanoUsd)
USAGES = st.builds(
    Usage, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "m", "n"]), *[st.integers(0, 10**9)] * 6,
    st.integers(0, 2**40).map(NanoUsd), st.integers(0, 3),
)  # fmt: skip


@given(AMOUNTS)
def test_the_text_of_an_amount_is_exact(amount: NanoUsd) -> None:
    text = usd_text(amount)
    assert Fraction(text) == Fraction(amount, 10**9)
    assert "e" not in text.lower()
    assert not (text.endswith("0") and "." in text)
    assert not text.endswith(".")


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0"), (123_000, "0.000123"), (1, "0.000000001"), (2 * 10**9, "2"), (-500_000_000, "-0.5")]
)
def test_amounts_people_know(amount: int, text: str) -> None:
    assert usd_text(NanoUsd(amount)) == text


@given(LIMITS)
def test_a_limit_survives_every_way_into_a_definition(limit: NanoUsd) -> None:
    """As a YAML number, as a YAML string, and back from the definition in the store."""
    for written in (usd_text(limit), f'"{usd_text(limit)}"'):
        budget = validate(Budget, parse_yaml(f"usd: {written}", "w.yaml"))
        assert budget.usd == limit
        stored = json.loads(json.dumps(budget.model_dump(mode="json")))
        assert Budget.model_validate(stored) == budget
        assert Budget.model_validate(budget.model_dump()) == budget


@pytest.mark.parametrize(
    "written",
    [
        "0", "-1", "0.0", "true", "1e400", '"nan"', '"inf"', '"a lot"', '""', "[1]", "1000000.1", '"1e-9999999"',
        "0.0000000001", '"0.5000000000000000000000001"', "0.1234567891",
    ],
)  # fmt: skip
def test_what_is_no_limit_is_refused_in_place(written: str) -> None:
    with pytest.raises(InvalidSpec, match=r"w\.yaml") as caught:
        validate(Budget, parse_yaml(f"\nusd: {written}", "w.yaml"))
    assert "\n" not in caught.value.message


def test_no_float_error_on_the_way() -> None:
    assert read_usd(0.1) + read_usd(0.1) + read_usd(0.1) == read_usd(0.3)
    assert read_usd(1e-9) == 1
    assert read_usd("0.000123") == 123_000


@given(st.decimals(0, 10**6, places=18), st.integers(1, 10**6))
def test_a_price_is_rounded_half_up_once(price: Decimal, tokens: int) -> None:
    exact = Fraction(price) * tokens / 10**6 * 10**9
    assert rounded(price * tokens / 10**6) == (exact + Fraction(1, 2)).__floor__()


@given(st.lists(USAGES, max_size=8), st.randoms(use_true_random=False))
def test_usages_add_up_in_any_grouping(parts: list[Usage], rng: random.Random) -> None:
    whole = sum(parts, Usage())
    left = list(parts)
    while len(left) > 1:
        at = rng.randrange(len(left) - 1)
        left[at : at + 2] = [left[at] + left[at + 1]]
    assert (left[0] if left else Usage()) == whole
    for field in ("input_tokens", "output_tokens", "cached_tokens", "attempts", "known_cost", "unpriced"):
        assert getattr(whole, field) == sum(getattr(one, field) for one in parts)
    assert (whole.cost is None) == any(one.unpriced for one in parts)


def test_a_million_receipts_add_up_to_the_nano() -> None:
    """A ledger that grows receipt by receipt, sums of its parts, and what people are shown of every tenth."""
    rng = random.Random(7)
    receipts = [NanoUsd(int(10 ** (12 * rng.random()))) for _ in range(10**6)]
    ledger = 0
    for receipt in receipts:
        ledger += receipt
    shown = 0  # in nano-USD, read off the digits
    for receipt in receipts[::10]:
        whole, _, decimals = usd_text(receipt).partition(".")
        shown += int(whole) * 10**9 + int(decimals.ljust(9, "0") or 0)
    assert shown == sum(receipts[::10])
    assert sum(receipts[1::2]) + sum(receipts[::2]) == ledger
    assert read_usd(usd_text(NanoUsd(ledger % 10**15))) == ledger % 10**15
    # What a float makes of the same receipts: the reason for all this.
    assert round(sum(receipt / 10**9 for receipt in receipts) * 10**9) != ledger


def test_an_unknown_price_is_never_shown_as_a_sum() -> None:
    assert cost_json(NanoUsd(5), 0) == {"usd": "0.000000005", "usd_priced": "0.000000005", "unpriced_calls": 0}
    assert cost_json(NanoUsd(5), 2) == {"usd": None, "usd_priced": "0.000000005", "unpriced_calls": 2}
