"""Reservations: what calls may use is set aside before they are made, and replaced by what they used.

A run whose calls come one after the other needs no row: nothing else can spend its budget meanwhile, so each call is compared with
what the run has used. Where two calls of a run may be under way at once, on one worker or on several, every reservation is a row of
the table `reservations`, counted under one lock. It is deleted in the commit that puts the call's usage into the run's row. A
reservation of a call whose outcome never got on record, because its worker died, counts until the run is over: the call may have
been made and paid for. A run without rows gets them when its lease is lost: each call that may have been made under the lost lease
is then set aside twice, for the lost worker and for the one that repeats it.

On both engines the holder of a reservation is the command (`perform:step:attempt`) with the fencing token of its lease, so the
repetition of a call that was cut off holds one of its own. A call that goes on in the background (a provider's batch) has
token 0: it is the same call for every worker of the run.
"""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from interlock.base.errors import BudgetExceeded, LeaseLost
from interlock.base.money import FREE, NanoUsd, usd_text
from interlock.base.usage import Usage
from interlock.base.values import value
from interlock.store.commit import LEASE_LOST
from interlock.store.database import Database
from interlock.store.rows import SettledReservation, UsedReservation

LASTING = 0
"""Fencing token of reservations that every worker of the run shares."""


@value(frozen=True, slots=True)
class Amount:
    """Tokens and nano-USD of a budget: used by calls, or reserved for one."""

    tokens: int = 0
    cost: NanoUsd = FREE

    @classmethod
    def of(cls, usage: Usage) -> Amount:
        """The amount that a usage takes from a budget. A budget in USD admits priced calls only, so it has no unpriced part."""
        return cls(usage.tokens, usage.known_cost)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, NanoUsd(self.cost + other.cost))


NOTHING = Amount()


@value(frozen=True, slots=True)
class BudgetLimit:
    """Limits of a scope, such as a run; None is no limit.

    Attributes:
        scope: name of what is limited.
        tokens: input and output tokens.
        cost: nano-USD.
    """

    scope: str
    tokens: int | None
    cost: NanoUsd | None

    @property
    def unlimited(self) -> bool:
        return self.tokens is None and self.cost is None

    def check(self, used: Amount, wanted: Amount) -> None:
        """Integers: a call that uses a limit up to its last nano-USD fits, and one nano-USD more does not.

        Raises:
            BudgetExceeded: used and wanted together are over a limit.
        """
        if self.tokens is not None and used.tokens + wanted.tokens > self.tokens:
            raise BudgetExceeded(
                f"the call could need {wanted.tokens} tokens, and {used.tokens} of the run's {self.tokens} are used"
            )
        if self.cost is not None and used.cost + wanted.cost > self.cost:
            raise BudgetExceeded(
                f"the call could cost {usd_text(wanted.cost)} USD, and {usd_text(used.cost)} of the run's "
                f"{usd_text(self.cost)} USD are used"
            )


@value(frozen=True, slots=True)
class Lease:
    """The lease under which a worker reserves.

    Attributes:
        command: the one command that is leased; None if the whole run is.
    """

    org_id: str
    run_id: str
    command: str | None
    fence: int


class Reservations:
    """Writes reservations of a run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(
        self,
        lease: Lease,
        budget: BudgetLimit,
        holder: str,
        wanted: Amount,
        *,
        fence: int,
        finished: Iterable[UsedReservation] = (),
    ) -> None:
        """Sets an amount aside for a holder, instead of what it has under the same fencing token.

        Args:
            fence: fencing token of the reservation; `LASTING` if it belongs to the run, whichever worker drives it.
            finished: reservations whose calls have ended, with what they used; they are updated first.

        Raises:
            BudgetExceeded: used, reserved and wanted together are over a limit; nothing is set aside.
            LeaseLost: another worker holds the lease.
        """
        try:
            row = await self._database.row(
                "reserve",
                lease.org_id,
                lease.run_id,
                lease.command,
                lease.fence,
                budget.scope,
                holder,
                fence,
                wanted.tokens,
                wanted.cost,
                budget.tokens,
                budget.cost,
                list(finished),
                org=lease.org_id,
            )
        except asyncpg.PostgresError as error:
            if error.sqlstate != LEASE_LOST:
                raise
            raise LeaseLost("the lease of this call's run went to another worker") from error
        assert row is not None, "a function without a set gives one row"
        if not row["fits"]:
            budget.check(Amount(row["used_tokens"], row["used_nano_usd"]), wanted)


class RunBudget:
    """Budget of one run, as the worker that drives it knows it.

    Args:
        shared: two calls of the run may be under way at once.

    Attributes:
        used: by the calls whose outcomes are in the run's state.
    """

    def __init__(self, budget: BudgetLimit, *, shared: bool, reservations: Reservations) -> None:
        self._budget = budget
        self._reservations = reservations
        self.shared = shared and not budget.unlimited
        self.used = NOTHING
        self._finished: dict[tuple[str, int], Amount] = {}
        self._recorded: set[str] = set()
        self._lost: dict[str | None, int] = {}
        self._states = 0  # that followed the loss of a whole run's lease

    async def reserve(self, lease: Lease, holder: str, wanted: Amount, *, lasting: bool) -> None:
        """Sets the most that a call may use aside.

        Raises:
            BudgetExceeded: there is not as much left. LeaseLost: another worker holds the lease.
        """
        if self._budget.unlimited or wanted == NOTHING:
            return
        self._finished.pop((holder, LASTING if lasting else lease.fence), None)  # of an earlier call under this name
        if not self.shared:
            self._budget.check(sum(self._finished.values(), self.used), wanted)
            return
        finished = [self._row(key, amount) for key, amount in self._finished.items()]
        fence = LASTING if lasting else lease.fence
        lost = None if lasting else self._lost.pop(holder, self._lost.get(None))
        for one in (lost, fence):
            if one is not None:
                await self._reservations.reserve(lease, self._budget, holder, wanted, fence=one, finished=finished)

    def lose(self, fence: int, holder: str | None = None) -> None:
        """Has calls counted that may have been made under an earlier lease, whose worker was lost, and are not on record.

        Args:
            fence: fencing token of that lease.
            holder: the one call in question. None for those of a whole run: a worker is at most one commit ahead of the journal,
                so these are the calls that are made before a commit of the new lease is durable.
        """
        if not self._budget.unlimited:
            self.shared = True
            self._lost[holder] = fence

    def finish(self, lease: Lease, holder: str, used: Amount, *, lasting: bool) -> None:
        """Notes what a call used, which may be more or less than it reserved; it counts until `settle`."""
        if not self._budget.unlimited:
            self._finished[holder, LASTING if lasting else lease.fence] = used

    def abandon(self, holders: Iterable[str]) -> None:
        """Ends the reservations of calls in the background that the run no longer waits for, before their rows are deleted."""
        if self.shared:
            self._finished |= {(holder, LASTING): NOTHING for holder in holders}

    def settle(self, used: Amount, holders: Iterable[str]) -> None:
        """Moves on to a later state of the run, which contains the usage of these holders' calls.

        The commit that records it may still be under way, so in a shared budget their rows may still be there: they
        are known until the next state, which comes after that commit.
        """
        self.used = used
        ended = set(holders)
        if ended and None in self._lost:
            self._states += 1
            if self._states > 1:  # the commit of the first one is durable
                del self._lost[None]
        gone, self._recorded = (self._recorded, ended) if self.shared else (ended, self._recorded)
        if gone and self._finished:
            self._finished = {key: amount for key, amount in self._finished.items() if key[0] not in gone}

    def used_rows(self, lease: Lease, holder: str, used: Amount) -> list[UsedReservation]:
        """Row that replaces a reservation by what its call used, whichever worker records it."""
        return [self._row((holder, lease.fence), used)] if self.shared else []

    def settled_rows(self, holders: Iterable[str], fence: int) -> list[SettledReservation]:
        """Rows that delete the reservations of holders, under this fencing token and under none."""
        if not self.shared:
            return []
        return [SettledReservation(scope=self._budget.scope, holder=holder, fence=fence) for holder in holders]

    def _row(self, key: tuple[str, int], used: Amount) -> UsedReservation:
        holder, fence = key
        scope = self._budget.scope
        return UsedReservation(scope=scope, holder=holder, fence=fence, tokens=used.tokens, nano_usd=used.cost)
