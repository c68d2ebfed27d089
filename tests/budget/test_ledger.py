from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.base.errors import BudgetExceeded
from interlock.base.money import NanoUsd
from interlock.budget.ledger import NOTHING, Amount, RunLedger

CENT = 10_000_000  # nano-USD


def ledger_of(tokens: int | None = None, cost: int | None = None) -> RunLedger:
    return RunLedger(tokens=tokens, cost=None if cost is None else NanoUsd(cost))


def amount(tokens: int = 0, cost: int = 0) -> Amount:
    return Amount(tokens, NanoUsd(cost))


def test_no_limit_is_no_limit() -> None:
    ledger = ledger_of()
    for n in range(5):
        ledger.reserve(f"s{n}", amount(10**12, 10**18), amount(10**12, 10**18))


def test_used_and_reserved_and_wanted_count_together() -> None:
    ledger = ledger_of(tokens=100)
    ledger.reserve("a", amount(40), amount(60, 5 * CENT))
    with pytest.raises(BudgetExceeded, match="100 of the run's 100 are used"):
        ledger.reserve("b", amount(40), amount(1))
    ledger.reserve("b", amount(40), NOTHING)


def test_money_fits_up_to_its_last_nano() -> None:
    """Three times a tenth is three tenths; in floating point it is a little more."""
    ledger = ledger_of(cost=30 * CENT)
    for n in range(3):
        ledger.reserve(f"s{n}", NOTHING, amount(10**9, 10 * CENT))
    with pytest.raises(BudgetExceeded, match=r"cost 0\.000000001 USD, and 0\.3 of the run's 0\.3 USD"):
        ledger.reserve("more", NOTHING, amount(0, 1))
    ledger = ledger_of(cost=30 * CENT)
    ledger.reserve("a", amount(0, 20 * CENT + 1), amount(0, 10 * CENT - 1))
    ledger.settle("a")
    with pytest.raises(BudgetExceeded):
        ledger.reserve("a", amount(0, 20 * CENT + 1), amount(0, 10 * CENT))


def test_a_refused_call_reserves_nothing() -> None:
    ledger = ledger_of(tokens=10, cost=100 * CENT)
    for wanted in (amount(11), amount(0, 110 * CENT)):
        with pytest.raises(BudgetExceeded):
            ledger.reserve("a", NOTHING, wanted)
    ledger.reserve("b", NOTHING, amount(10, 100 * CENT))


def test_settling_releases() -> None:
    ledger = ledger_of(tokens=10)
    ledger.reserve("a", NOTHING, amount(10))
    with pytest.raises(BudgetExceeded):
        ledger.reserve("b", NOTHING, amount(1))
    ledger.settle("a")
    ledger.reserve("b", amount(4), amount(6))
    with pytest.raises(BudgetExceeded):
        ledger.reserve("a", amount(4), amount(1))


def test_a_step_that_asks_again_replaces_its_own_reservation() -> None:
    ledger = ledger_of(tokens=10)
    ledger.reserve("a", NOTHING, amount(10))
    ledger.reserve("a", NOTHING, amount(8))
    ledger.reserve("b", NOTHING, amount(2))


def test_what_a_call_used_counts_until_the_runs_state_has_it() -> None:
    ledger = ledger_of(tokens=10)
    ledger.reserve("a", NOTHING, amount(8))
    ledger.use("a", amount(3))
    ledger.reserve("b", NOTHING, amount(7))
    with pytest.raises(BudgetExceeded):
        ledger.reserve("c", NOTHING, amount(1))
    ledger.settle("a")  # now it is in the state, and must not count twice
    ledger.settle("b")
    ledger.reserve("c", amount(3), amount(7))


@dataclass
class Bank:
    """The oracle: exact numbers, and a step either holds its worst case, or what it used, or is over."""

    tokens: int
    usd: Fraction
    spent: tuple[int, Fraction] = (0, Fraction(0))
    held: dict[str, tuple[int, Fraction]] = field(default_factory=dict)

    def fits(self, name: str, tokens: int, usd: Fraction) -> bool:
        others = [amount for key, amount in self.held.items() if key != name]
        return (
            self.spent[0] + sum(one[0] for one in others) + tokens <= self.tokens
            and self.spent[1] + sum((one[1] for one in others), Fraction(0)) + usd <= self.usd
        )


def _nano(one: tuple[int, Fraction]) -> Amount:
    nano = one[1] * 10**9
    assert nano.denominator == 1
    return amount(one[0], nano.numerator)


STEPS = [f"s{n}" for n in range(5)]
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "use", "settle"]), st.sampled_from(STEPS), st.integers(0, 60), st.integers(0, 60)
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(tokens=st.integers(1, 150), cents=st.integers(1, 150), moves=MOVES)
def test_parallel_steps_never_overspend_together(
    tokens: int, cents: int, moves: list[tuple[str, str, int, int]]
) -> None:
    """Any interleaving of reservations, uses and settlements, where no call uses more than its worst case."""
    ledger = ledger_of(tokens, cents * CENT)
    bank = Bank(tokens, Fraction(cents, 100))
    used: set[str] = set()
    for move, name, some, more in moves:
        wanted = (some, Fraction(more, 100))
        if move == "reserve" and name not in bank.held:
            try:
                ledger.reserve(name, _nano(bank.spent), _nano(wanted))
            except BudgetExceeded:
                assert not bank.fits(name, *wanted)
            else:
                assert bank.fits(name, *wanted)
                bank.held[name] = wanted
        elif move == "use" and name in bank.held and name not in used:
            worst = bank.held[name]
            bank.held[name] = (min(some, worst[0]), min(wanted[1], worst[1]))
            ledger.use(name, _nano(bank.held[name]))
            used.add(name)
        elif move == "settle" and name in used:
            gone = bank.held.pop(name)
            used.discard(name)
            bank.spent = (bank.spent[0] + gone[0], bank.spent[1] + gone[1])
            ledger.settle(name)
        assert bank.spent[0] + sum(one[0] for one in bank.held.values()) <= tokens
        assert bank.spent[1] + sum((one[1] for one in bank.held.values()), Fraction(0)) <= Fraction(cents, 100)


def test_what_is_out_stays_reserved_until_its_call_is_over() -> None:
    """A call in a provider's hands: the step that waits for it is settled again and again, and the others still see it."""
    ledger = ledger_of(tokens=100)
    for _ in range(3):
        ledger.reserve("out", NOTHING, amount(60))
        ledger.hold("out")
        ledger.settle("out")
        with pytest.raises(BudgetExceeded, match="60 of the run's 100"):
            ledger.reserve("other", NOTHING, amount(41))
    ledger.reserve("out", NOTHING, amount(60))
    ledger.use("out", amount(10))
    ledger.reserve("other", NOTHING, amount(90))
    ledger.settle("out")
    ledger.reserve("more", NOTHING, amount(10))


def test_a_call_that_is_over_elsewhere_leaves_nothing() -> None:
    """Its answer came in another process: this one only hears that it is over, or that nobody waits for it."""
    ledger = ledger_of(tokens=100)
    ledger.reserve("out", NOTHING, amount(60))
    ledger.hold("out")
    assert ledger.held == ["out"]
    ledger.release("out")
    assert ledger.held == []
    ledger.reserve("other", NOTHING, amount(100))


def test_a_reservation_made_elsewhere_is_held() -> None:
    ledger = ledger_of(100, 100 * CENT)
    ledger.hold("out", amount(60, 70 * CENT))
    with pytest.raises(BudgetExceeded):
        ledger.reserve("other", NOTHING, amount(0, 30 * CENT + 1))
    ledger.reserve("out", NOTHING, amount(100, 100 * CENT))


def test_nothing_is_held_of_what_was_never_reserved() -> None:
    ledger = ledger_of(tokens=100)
    ledger.hold("nobody")
    ledger.reserve("other", NOTHING, amount(100))
