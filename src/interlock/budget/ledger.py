"""Budget of a run: reserved before a call, settled after it. Only the run's worker spends, so the ledger is in its memory."""

from __future__ import annotations

from dataclasses import dataclass

from interlock.base.errors import BudgetExceeded
from interlock.base.money import FREE, NanoUsd, usd_text
from interlock.base.usage import Usage


@dataclass(frozen=True, slots=True)
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


class RunLedger:
    """Reservations of the calls that one run has under way on this worker.

    A limit of None means no limit. Parallel steps reserve before they spend, so they cannot exceed the budget together. Integers:
    a call that uses a limit up to its last nano-USD fits, and one nano-USD more does not.

    Args:
        tokens: limit of input and output tokens.
        cost: limit in nano-USD.
    """

    def __init__(self, *, tokens: int | None, cost: NanoUsd | None) -> None:
        self._tokens = tokens
        self._cost = cost
        self._reserved: dict[str, Amount] = {}
        self._held: dict[str, Amount] = {}

    def reserve(self, key: str, used: Amount, wanted: Amount) -> None:
        """Sets `wanted` aside for a call.

        Args:
            used: by the calls that the run's state has.

        Raises:
            BudgetExceeded: used, reserved and wanted together are over a limit.
        """
        for part in (self._reserved, self._held):
            for name, amount in part.items():
                if name != key:
                    used += amount
        if self._tokens is not None and used.tokens + wanted.tokens > self._tokens:
            raise BudgetExceeded(
                f"the call could need {wanted.tokens} tokens, and {used.tokens} of the run's {self._tokens} are used"
            )
        if self._cost is not None and used.cost + wanted.cost > self._cost:
            raise BudgetExceeded(
                f"the call could cost {usd_text(wanted.cost)} USD, and {usd_text(used.cost)} of the run's "
                f"{usd_text(self._cost)} USD are used"
            )
        self._held.pop(key, None)
        self._reserved[key] = wanted

    def hold(self, key: str, reserved: Amount | None = None) -> None:
        """Keeps the reservation of a call that a provider works on while no step waits for it: `settle` leaves it in place.

        Args:
            reserved: what another ledger had reserved for it; None: what it has reserved here.
        """
        reserved = reserved or self._reserved.pop(key, None)
        if reserved is not None:
            self._held[key] = reserved

    @property
    def held(self) -> list[str]:
        """Keys of held reservations."""
        return list(self._held)

    def use(self, key: str, used: Amount) -> None:
        """Replaces a reservation by the actual usage of a finished call, which may be more or less; it counts until `settle`."""
        self._held.pop(key, None)
        self._reserved[key] = used

    def settle(self, key: str) -> None:
        """Releases a reservation, because the actual usage is in the run's state by then. Held reservations stay."""
        self._reserved.pop(key, None)

    def release(self, key: str) -> None:
        """Releases a reservation, held or not: the call is over, or no step waits for it."""
        self._reserved.pop(key, None)
        self._held.pop(key, None)
