"""Budget of a run: reserved before a call, settled after it. Only the run's worker spends, so the ledger is in its memory."""

from __future__ import annotations

from dataclasses import dataclass

from interlock.base.errors import BudgetExceeded

_ROUNDING = 1e-9  # USD; three calls of 0.10 must fit into 0.30, and their sum in floating point is slightly more


@dataclass(frozen=True, slots=True)
class Spending:
    """Tokens and USD spent by a run, or reserved by calls under way."""

    tokens: int
    usd: float


class RunLedger:
    """Reservations of the calls that one run has under way on this worker.

    A limit of None means no limit. Parallel steps reserve before they spend, so they cannot exceed the budget together.
    """

    def __init__(self, *, tokens: int | None, usd: float | None) -> None:
        self._tokens = tokens
        self._usd = usd
        self._reserved: dict[str, Spending] = {}
        self._held: dict[str, Spending] = {}

    def reserve(self, key: str, spent: Spending, *, tokens: int, usd: float) -> None:
        """Sets `tokens` and `usd` aside for a call.

        Raises:
            BudgetExceeded: spent, reserved and requested amounts together exceed a limit.
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
        """Keeps the reservation of a call that a provider works on although no attempt waits for it; `settle` does not release it.

        Args:
            reserved: the amount, if another ledger made the reservation; None for the amount reserved here.
        """
        reserved = reserved or self._reserved.pop(key, None)
        if reserved is not None:
            self._held[key] = reserved

    @property
    def held(self) -> list[str]:
        """Keys of held reservations."""
        return list(self._held)

    def use(self, key: str, used: Spending) -> None:
        """Replaces a reservation by the actual usage of a finished call, which may be more or less; it counts until `settle`."""
        self._held.pop(key, None)
        self._reserved[key] = used

    def settle(self, key: str) -> None:
        """Releases a reservation, because the actual usage is in the run's state by then. Held reservations stay."""
        self._reserved.pop(key, None)

    def release(self, key: str) -> None:
        """Releases a reservation, held or not: the call is over, or its run no longer needs the answer."""
        self._reserved.pop(key, None)
        self._held.pop(key, None)
