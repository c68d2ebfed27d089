"""A run's budget: reserved before a call, settled after it. The run's worker is the only spender, so its state is the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from interlock.base.errors import BudgetExceeded

_ROUNDING = 1e-9  # USD; three calls of 0.10 must fit into 0.30, and in floating point they are a little more


@dataclass(frozen=True, slots=True)
class Spending:
    """What a run has spent and what calls under way have reserved: tokens and USD."""

    tokens: int
    usd: float


class RunLedger:
    """Reservations of the calls one run has under way on this worker.

    `limit` fields None mean no limit. Reserve-then-settle keeps parallel steps from overspending together.
    """

    def __init__(self, *, tokens: int | None, usd: float | None) -> None:
        self._tokens = tokens
        self._usd = usd
        self._reserved: dict[str, Spending] = {}
        self._held: dict[str, Spending] = {}

    def reserve(self, key: str, spent: Spending, *, tokens: int, usd: float) -> None:
        """Sets `tokens` and `usd` aside for a call.

        Raises:
            BudgetExceeded: spent, reserved and wanted together are over a limit.
        """
        others = [one for part in (self._reserved, self._held) for name, one in part.items() if name != key]
        held_tokens, held_usd = sum(one.tokens for one in others), sum(one.usd for one in others)
        if self._tokens is not None and spent.tokens + held_tokens + tokens > self._tokens:
            raise BudgetExceeded(
                f"the call could need {tokens} tokens, and {spent.tokens + held_tokens} of the run's {self._tokens} are used"
            )
        if self._usd is not None and spent.usd + held_usd + usd > self._usd + _ROUNDING:
            raise BudgetExceeded(
                f"the call could cost {usd:.4f} USD, and {spent.usd + held_usd:.4f} of the run's {self._usd:.2f} USD are used"
            )
        self._held.pop(key, None)
        self._reserved[key] = Spending(tokens, usd)

    def hold(self, key: str, reserved: Spending | None = None) -> None:
        """The call is in a provider's hands, with nobody waiting for it: `settle` leaves what it reserved where it is.

        Args:
            reserved: what it had reserved, if another ledger did that; None: what it has reserved here.
        """
        reserved = reserved or self._reserved.pop(key, None)
        if reserved is not None:
            self._held[key] = reserved

    @property
    def held(self) -> list[str]:
        """The keys for which something is held."""
        return list(self._held)

    def use(self, key: str, used: Spending) -> None:
        """The call is over and used this much, more or less than was set aside; it counts here until `settle`."""
        self._held.pop(key, None)
        self._reserved[key] = used

    def settle(self, key: str) -> None:
        """Releases a reservation; the true usage is in the run's state by then. What is held stays."""
        self._reserved.pop(key, None)

    def release(self, key: str) -> None:
        """Releases all of it: the call is over, or nobody waits for it."""
        self._reserved.pop(key, None)
        self._held.pop(key, None)
