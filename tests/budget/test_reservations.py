"""Reservations of a run's budget: in memory where calls come one by one, in the real database where they may overlap."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.audit.log import AuditLog
from interlock.base.errors import BudgetExceeded, LeaseLost
from interlock.base.money import NanoUsd
from interlock.budget.reservations import NOTHING, Amount, BudgetLimit, Lease, Reservations, RunBudget
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.rows import FinishedRun
from store.rows import deploy, populate, run_update

if TYPE_CHECKING:
    from conftest import Tenant

CENT = 10_000_000  # nano-USD


def amount(tokens: int = 0, cost: int = 0) -> Amount:
    return Amount(tokens, NanoUsd(cost))


def limits(scope: str, tokens: int | None = None, cost: int | None = None) -> BudgetLimit:
    return BudgetLimit(scope, tokens, None if cost is None else NanoUsd(cost))


# -- the limits themselves -------------------------------------------------------------------------------------------


def test_used_and_wanted_count_together() -> None:
    budget = limits("s", tokens=100)
    budget.check(amount(40), amount(60, 5 * CENT))
    with pytest.raises(BudgetExceeded, match="100 of the run's 100 are used"):
        budget.check(amount(100), amount(1))
    budget.check(amount(100), NOTHING)


def test_money_fits_up_to_its_last_nano() -> None:
    """Three times a tenth is three tenths; in floating point it is a little more."""
    budget = limits("s", cost=30 * CENT)
    budget.check(amount(0, 20 * CENT), amount(10**9, 10 * CENT))
    with pytest.raises(BudgetExceeded, match=r"cost 0\.000000001 USD, and 0\.3 of the run's 0\.3 USD"):
        budget.check(amount(0, 30 * CENT), amount(0, 1))
    enormous = 2**53  # above it a float cannot count
    budget = limits("s", cost=enormous + 1)
    budget.check(amount(0, enormous), amount(0, 1))
    with pytest.raises(BudgetExceeded):
        budget.check(amount(0, enormous), amount(0, 2))


# -- a run whose calls may overlap -----------------------------------------------------------------------------------


@dataclass
class Desk:
    """A run in the database, and workers with its budget."""

    database: Database
    committer: Committer
    owner: psycopg.Connection[Any]
    org_id: str
    run_id: str

    @property
    def scope(self) -> str:
        return f"run:{self.run_id}"

    def lease(self, fence: int = 0, command: str | None = None) -> Lease:
        return Lease(self.org_id, self.run_id, command, fence)

    def budget(self, *, shared: bool = True, tokens: int | None = None, cost: int | None = None) -> RunBudget:
        return RunBudget(limits(self.scope, tokens, cost), shared=shared, reservations=Reservations(self.database))

    def move_fence(self, fence: int) -> None:
        self.owner.execute("update queue set fence = %s where run_id = %s", (fence, self.run_id))

    async def record(self, budget: RunBudget, used: Amount, holders: list[str], *, fence: int = 0) -> None:
        """The commit that puts the usage of calls into the run's row, as a driver makes it."""
        update = run_update(self.run_id)
        settled = budget.settled_rows(holders, fence)
        commit = Commit(self.org_id, fence=(self.run_id, fence), settled_reservations=settled)
        commit.runs.append(type(update)(**{**_fields(update), "input_tokens": used.tokens, "nano_usd": used.cost}))
        await self.committer.submit(commit)

    def rows(self) -> list[tuple[Any, ...]]:
        query = "select holder, fence, tokens, nano_usd from reservations where scope = %s order by 1, 2"
        return self.owner.execute(query, (self.scope,)).fetchall()


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


@pytest.fixture
async def desk(
    database: Database, owner: psycopg.Connection[Any], tenants: tuple[Tenant, Tenant]
) -> AsyncIterator[Desk]:
    org = tenants[0].org_id
    deploy(owner, org)
    populate(owner, org)
    owner.execute("delete from reservations")
    owner.execute("delete from claims")
    committer = Committer(database, AuditLog(bytes(32)).seal)
    committer.start()
    yield Desk(database, committer, owner, org, f"run_{org}")
    await committer.close()


async def reserve(desk: Desk, budget: RunBudget, holder: str, wanted: Amount, fence: int = 0) -> None:
    await budget.reserve(desk.lease(fence), holder, wanted, lasting=False)


async def test_no_limit_reserves_nothing(desk: Desk) -> None:
    budget = desk.budget()
    for n in range(3):
        await reserve(desk, budget, f"s{n}", amount(10**12, 10**17))
    assert desk.rows() == []


async def test_one_by_one_needs_no_row(desk: Desk) -> None:
    budget = desk.budget(shared=False, tokens=10)
    await reserve(desk, budget, "a", amount(10))
    budget.finish(desk.lease(), "a", amount(4), lasting=False)
    await reserve(desk, budget, "b", amount(6))
    with pytest.raises(BudgetExceeded):
        await reserve(desk, budget, "b", amount(7))
    budget.settle(amount(4), ["a"])  # now it is in the state, and must not count twice
    await reserve(desk, budget, "b", amount(6))
    assert desk.rows() == []


async def test_others_see_a_reservation_until_its_usage_is_recorded(desk: Desk) -> None:
    """Two workers, each with what it knows by itself."""
    one, other = desk.budget(tokens=10), desk.budget(tokens=10)
    await reserve(desk, one, "a", amount(10))
    with pytest.raises(BudgetExceeded, match="10 of the run's 10"):
        await reserve(desk, other, "b", amount(1))
    one.finish(desk.lease(), "a", amount(4), lasting=False)
    await reserve(desk, one, "c", amount(1))  # which tells the database what a used
    await reserve(desk, other, "b", amount(5))
    await desk.record(one, amount(4), ["a"])
    one.settle(amount(4), ["a"])
    with pytest.raises(BudgetExceeded, match="10 of the run's 10"):
        await reserve(desk, one, "d", amount(1))
    assert [row[0] for row in desk.rows()] == ["b", "c"]


async def test_a_call_that_asks_again_replaces_its_own_reservation(desk: Desk) -> None:
    budget = desk.budget(tokens=10)
    await reserve(desk, budget, "a", amount(10))
    await reserve(desk, budget, "a", amount(8))
    await reserve(desk, budget, "b", amount(2))
    with pytest.raises(BudgetExceeded):
        await reserve(desk, budget, "c", amount(1))


async def test_a_call_whose_worker_died_counts_until_the_run_is_over(desk: Desk) -> None:
    """It may have been made and paid for, and its repetition is a call of its own."""
    dead, heir = desk.budget(tokens=100), desk.budget(tokens=100)
    desk.move_fence(1)
    await reserve(desk, dead, "a", amount(40), fence=1)
    desk.move_fence(2)
    await reserve(desk, heir, "a", amount(40), fence=2)
    with pytest.raises(BudgetExceeded, match="80 of the run's 100"):
        await reserve(desk, heir, "b", amount(21), fence=2)
    await desk.record(heir, amount(7), ["a"], fence=2)
    assert desk.rows() == [("a", 1, 40, 0)]
    with pytest.raises(BudgetExceeded, match="47 of the run's 100"):
        await reserve(desk, heir, "b", amount(54), fence=2)
    finished = Commit(desk.org_id, fence=(desk.run_id, 2), finished=[FinishedRun(run_id=desk.run_id)])
    await desk.committer.submit(finished)
    assert desk.rows() == []


async def test_an_ended_call_whose_outcome_was_lost_counts_beside_its_repetition(desk: Desk) -> None:
    """Its usage had been written with the reservation of a later call, and the worker died before the outcome's commit."""
    dead, heir = desk.budget(tokens=100), desk.budget(tokens=100)
    desk.move_fence(1)
    await reserve(desk, dead, "a", amount(40), fence=1)
    dead.finish(desk.lease(1), "a", amount(30), lasting=False)
    await reserve(desk, dead, "b", amount(20), fence=1)
    desk.move_fence(2)
    await reserve(desk, heir, "a", amount(40), fence=2)
    heir.finish(desk.lease(2), "a", amount(25), lasting=False)
    await reserve(desk, heir, "b", amount(20), fence=2)
    assert desk.rows() == [("a", -2, 30, 0), ("a", 0, 25, 0), ("b", 1, 20, 0), ("b", 2, 20, 0)]
    await reserve(desk, heir, "a", amount(1), fence=2)  # made once more under the same lease
    assert desk.rows()[:2] == [("a", -2, 55, 0), ("a", 2, 1, 0)]
    await desk.record(heir, amount(25), ["a"], fence=2)
    assert desk.rows()[0] == ("a", -2, 55, 0)


async def test_a_call_lost_with_its_worker_counts_where_calls_need_no_row(desk: Desk) -> None:
    """The repetition sets it aside a second time; what comes after a durable commit of the new lease does not."""
    heir = desk.budget(shared=False, tokens=100)
    desk.move_fence(2)
    heir.lose(1)
    await reserve(desk, heir, "a", amount(30), fence=2)
    assert desk.rows() == [("a", 1, 30, 0), ("a", 2, 30, 0)]
    with pytest.raises(BudgetExceeded, match="60 of the run's 100"):
        await reserve(desk, heir, "b", amount(41), fence=2)
    heir.finish(desk.lease(2), "a", amount(10), lasting=False)
    heir.settle(amount(10), ["a"])
    await reserve(desk, heir, "b", amount(20), fence=2)  # the lost worker may have gone so far ahead of its commit
    assert [row[:3] for row in desk.rows()] == [("a", 0, 10), ("a", 1, 30), ("b", 1, 20), ("b", 2, 20)]
    await desk.record(heir, amount(10), ["a"], fence=2)
    heir.finish(desk.lease(2), "b", amount(5), lasting=False)
    heir.settle(amount(15), ["b"])
    await reserve(desk, heir, "c", amount(35), fence=2)
    assert desk.rows()[-1] == ("c", 2, 35, 0)
    assert [row for row in desk.rows() if row[0] == "c"] == [("c", 2, 35, 0)]


async def test_a_lost_call_that_leaves_no_room_is_not_repeated(desk: Desk) -> None:
    heir = desk.budget(shared=False, tokens=100)
    desk.move_fence(2)
    heir.lose(1)
    with pytest.raises(BudgetExceeded, match="60 of the run's 100"):
        await reserve(desk, heir, "a", amount(60), fence=2)
    free = desk.budget(shared=False)
    free.lose(1)
    await reserve(desk, free, "a", amount(10**9), fence=2)


async def test_a_call_in_the_background_is_the_same_for_every_worker(desk: Desk) -> None:
    first, second = desk.budget(tokens=100), desk.budget(tokens=100)
    await first.reserve(desk.lease(), "out", amount(60), lasting=True)
    desk.move_fence(3)
    await second.reserve(desk.lease(3), "out", amount(60), lasting=True)
    with pytest.raises(BudgetExceeded, match="60 of the run's 100"):
        await reserve(desk, second, "other", amount(41), fence=3)
    second.finish(desk.lease(3), "out", amount(10), lasting=True)
    await reserve(desk, second, "other", amount(90), fence=3)
    await desk.record(second, amount(10), ["out"], fence=3)
    assert desk.rows() == [("other", 3, 90, 0)]


async def test_an_abandoned_call_holds_nothing_before_its_row_is_gone(desk: Desk) -> None:
    budget = desk.budget(tokens=100)
    await budget.reserve(desk.lease(), "out", amount(60), lasting=True)
    budget.abandon(["out"])
    budget.settle(NOTHING, ["out"])
    await reserve(desk, budget, "other", amount(100))


async def test_only_the_lease_holder_reserves(desk: Desk) -> None:
    budget = desk.budget(tokens=100)
    desk.move_fence(2)
    with pytest.raises(LeaseLost):
        await reserve(desk, budget, "a", amount(1), fence=1)
    claim = "insert into claims (run_id, org_id, command, fence, event) values (%s, %s, %s, 7, %s)"
    desk.owner.execute(claim, (desk.run_id, desk.org_id, "perform:a:1", None))
    desk.owner.execute(claim, (desk.run_id, desk.org_id, "perform:b:1", "{}"))
    await budget.reserve(desk.lease(7, "perform:a:1"), "perform:a:1", amount(1), lasting=False)
    for lease in (desk.lease(6, "perform:a:1"), desk.lease(7, "perform:b:1"), desk.lease(7, "perform:c:1")):
        with pytest.raises(LeaseLost):
            await budget.reserve(lease, str(lease.command), amount(1), lasting=False)
    assert desk.rows() == [("perform:a:1", 7, 1, 0)]


async def test_an_expired_reservation_does_not_count(desk: Desk) -> None:
    budget = desk.budget(tokens=10)
    await reserve(desk, budget, "a", amount(10))
    desk.owner.execute("update reservations set until = now() - interval '1 second'")
    await reserve(desk, budget, "b", amount(10))


async def test_rows_are_exact_to_the_nano(desk: Desk) -> None:
    enormous = 2**53
    budget = desk.budget(cost=enormous + 2)
    await reserve(desk, budget, "a", amount(0, enormous + 1))
    with pytest.raises(BudgetExceeded):
        await reserve(desk, budget, "b", amount(0, 2))
    await reserve(desk, budget, "b", amount(0, 1))


# -- any interleaving ------------------------------------------------------------------------------------------------


@dataclass
class Bank:
    """The oracle: exact numbers, and a call either holds its worst case, or what it used, or is over."""

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


@pytest.mark.parametrize("seed", range(4))
async def test_parallel_calls_never_overspend_together(seed: int, desk: Desk) -> None:
    """Random reservations, uses and settlements, where no call uses more than its worst case; every answer is the oracle's."""
    dice = random.Random(seed)
    for number in range(12):
        desk.owner.execute("delete from reservations")
        desk.owner.execute("update runs set input_tokens = 0, nano_usd = 0")
        tokens, cents = dice.randint(1, 150), dice.randint(1, 150)
        budget, bank, used = (
            desk.budget(tokens=tokens, cost=cents * CENT),
            Bank(tokens, Fraction(cents, 100)),
            set[str](),
        )
        for step in range(30):
            move, name = dice.choice(["reserve", "use", "settle"]), f"{number}:{dice.randint(0, 4)}"
            wanted = (dice.randint(1, 60), Fraction(dice.randint(0, 60), 100))
            if move == "reserve" and name not in bank.held:
                fits = bank.fits(name, *wanted)
                try:
                    await reserve(desk, budget, name, _nano(wanted))
                except BudgetExceeded:
                    assert not fits, step
                else:
                    assert fits, step
                    bank.held[name] = wanted
            elif move == "use" and name in bank.held and name not in used:
                worst = bank.held[name]
                bank.held[name] = (min(wanted[0], worst[0]), min(wanted[1], worst[1]))
                budget.finish(desk.lease(), name, _nano(bank.held[name]), lasting=False)
                used.add(name)
            elif move == "settle" and name in used:
                gone = bank.held.pop(name)
                used.discard(name)
                bank.spent = (bank.spent[0] + gone[0], bank.spent[1] + gone[1])
                await desk.record(budget, _nano(bank.spent), [name])
                budget.settle(_nano(bank.spent), [name])
            assert bank.spent[0] + sum(one[0] for one in bank.held.values()) <= tokens
