from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.base.errors import BudgetExceeded
from interlock.budget.ledger import RunLedger, Spending

NOTHING = Spending(0, 0.0)


def test_without_limits_anything_may_be_reserved() -> None:
    ledger = RunLedger(tokens=None, usd=None)
    for n in range(3):
        ledger.reserve(f"s{n}", Spending(10**12, 1e12), tokens=10**12, usd=1e12)


def test_a_limit_is_reached_to_the_last_token_and_not_passed() -> None:
    ledger = RunLedger(tokens=100, usd=None)
    ledger.reserve("a", Spending(40, 0.0), tokens=60, usd=5.0)
    with pytest.raises(BudgetExceeded, match="need 1 tokens, and 100 of the run's 100"):
        ledger.reserve("b", Spending(40, 0.0), tokens=1, usd=0.0)
    ledger.reserve("b", Spending(40, 0.0), tokens=0, usd=0.0)


def test_money_is_limited_likewise() -> None:
    ledger = RunLedger(tokens=None, usd=0.30)
    for n in range(3):  # 0.1 + 0.1 + 0.1 is more than 0.3 in floating point
        ledger.reserve(f"s{n}", NOTHING, tokens=10**9, usd=0.1)
    with pytest.raises(BudgetExceeded, match=r"cost 0\.0001 USD, and 0\.3000 of the run's 0\.30 USD"):
        ledger.reserve("more", NOTHING, tokens=0, usd=0.0001)


def test_a_refused_reservation_holds_nothing() -> None:
    ledger = RunLedger(tokens=10, usd=1.0)
    for tokens, usd in ((11, 0.0), (0, 1.1)):
        with pytest.raises(BudgetExceeded):
            ledger.reserve("a", NOTHING, tokens=tokens, usd=usd)
    ledger.reserve("b", NOTHING, tokens=10, usd=1.0)


def test_settling_frees_what_was_held_once() -> None:
    ledger = RunLedger(tokens=10, usd=None)
    ledger.reserve("a", NOTHING, tokens=10, usd=0.0)
    ledger.settle("a")
    ledger.settle("a")
    ledger.settle("never reserved")
    ledger.reserve("b", Spending(4, 0.0), tokens=6, usd=0.0)
    with pytest.raises(BudgetExceeded):
        ledger.reserve("a", Spending(4, 0.0), tokens=1, usd=0.0)


def test_a_second_attempt_takes_the_place_of_the_first() -> None:
    ledger = RunLedger(tokens=10, usd=None)
    ledger.reserve("a", NOTHING, tokens=10, usd=0.0)
    ledger.reserve("a", NOTHING, tokens=8, usd=0.0)
    ledger.reserve("b", NOTHING, tokens=2, usd=0.0)


def test_what_a_call_used_counts_until_the_runs_state_has_it() -> None:
    ledger = RunLedger(tokens=10, usd=None)
    ledger.reserve("a", NOTHING, tokens=8, usd=0.0)
    ledger.use("a", Spending(3, 0.0))
    ledger.reserve("b", NOTHING, tokens=7, usd=0.0)
    with pytest.raises(BudgetExceeded):
        ledger.reserve("c", NOTHING, tokens=1, usd=0.0)
    ledger.settle("a")  # now it is in the state, and must not count twice
    ledger.settle("b")
    ledger.reserve("c", Spending(3, 0.0), tokens=7, usd=0.0)


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
    ledger = RunLedger(tokens=tokens, usd=cents / 100)
    bank = Bank(tokens, Fraction(cents, 100))
    used: set[str] = set()
    for move, name, some, more in moves:
        amount = (some, Fraction(more, 100))
        if move == "reserve" and name not in bank.held:
            spent = Spending(bank.spent[0], float(bank.spent[1]))
            try:
                ledger.reserve(name, spent, tokens=some, usd=more / 100)
            except BudgetExceeded:
                assert not bank.fits(name, *amount)
            else:
                assert bank.fits(name, *amount)
                bank.held[name] = amount
        elif move == "use" and name in bank.held and name not in used:
            worst = bank.held[name]
            bank.held[name] = (min(some, worst[0]), min(amount[1], worst[1]))
            ledger.use(name, Spending(bank.held[name][0], float(bank.held[name][1])))
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
    ledger = RunLedger(tokens=100, usd=None)
    for _ in range(3):
        ledger.reserve("out", NOTHING, tokens=60, usd=0.0)
        ledger.hold("out")
        ledger.settle("out")
        with pytest.raises(BudgetExceeded, match="60 of the run's 100"):
            ledger.reserve("other", NOTHING, tokens=41, usd=0.0)
    ledger.reserve("out", NOTHING, tokens=60, usd=0.0)
    ledger.use("out", Spending(10, 0.0))
    ledger.reserve("other", NOTHING, tokens=90, usd=0.0)
    ledger.settle("out")
    ledger.reserve("more", NOTHING, tokens=10, usd=0.0)


def test_a_call_that_is_over_elsewhere_leaves_nothing() -> None:
    """Its answer came in another process: this one only hears that it is over, or that nobody waits for it."""
    ledger = RunLedger(tokens=100, usd=None)
    ledger.reserve("out", NOTHING, tokens=60, usd=0.0)
    ledger.hold("out")
    assert ledger.held == ["out"]
    ledger.release("out")
    assert ledger.held == []
    ledger.reserve("other", NOTHING, tokens=100, usd=0.0)


def test_a_reservation_made_elsewhere_is_held() -> None:
    ledger = RunLedger(tokens=100, usd=1.0)
    ledger.hold("out", Spending(60, 0.7))
    with pytest.raises(BudgetExceeded):
        ledger.reserve("other", NOTHING, tokens=0, usd=0.31)
    ledger.reserve("out", NOTHING, tokens=100, usd=1.0)


def test_nothing_is_held_of_what_was_never_reserved() -> None:
    ledger = RunLedger(tokens=100, usd=None)
    ledger.hold("nobody")
    ledger.reserve("other", NOTHING, tokens=100, usd=0.0)
