"""Every error Interlock raises, in one tree.

    InterlockError
    ├── InvalidInput            what came from outside does not fit; the message names the place and the mend
    │   ├── InvalidSpec         a workflow, prompt, tool or settings file (file:line: field: mend)
    │   ├── PayloadTooLarge     over the configured limit, refused at the door
    │   └── ContractViolation   a value does not fit a step's or a tool's schema
    ├── NotFound                no such run, workflow, tool, review, key
    ├── Conflict                the thing exists, or is in a state that does not allow this move
    ├── Unauthenticated         no key, or an unknown key
    ├── Denied                  known, and not allowed (role, allowlist, policy)
    ├── TooManyRequests         a bound on what one organisation or process may hold at once
    ├── BudgetExceeded          the run's tokens, money or retries are used up
    ├── StepError               a step's work failed; `kind` says whether trying again can help
    │   ├── ProviderError       a model provider refused, broke off or answered nonsense
    │   ├── ToolError           a tool crashed, hung or answered garbage
    │   │   └── NothingHappened a tool failed and declares that it changed nothing
    │   ├── SandboxError        the isolation itself could not be set up
    │   ├── Unpriced            a budget in USD, and a model without a known price; it was not called
    │   ├── TargetDown          a breaker is open: the tool or provider failed too often and was not called
    │   ├── ToolUnhealthy       the tool's own health check says that it cannot work; it was not called
    │   └── Deferred            no room now, or no answer yet: later again, and no attempt is counted
    ├── Unavailable             a part Interlock needs is down (database, provider, sandbox)
    ├── LeaseLost               another worker owns the run now; local state is void
    ├── IntegrityError          stored data is not what was stored (audit chain, artifact, weights)
    └── Erased                  the key of the value's subject was destroyed; the value is unreadable

Lower floors know neither HTTP nor exit codes beyond the two numbers each class carries; `api/errors.py`
and `cli/main.py` are the only readers of those.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class FailureKind(StrEnum):
    """Why a step failed, as far as the machine must know to decide what comes next."""

    TRANSIENT = "transient"  # try again with backoff
    RATE_LIMITED = "rate_limited"  # try again, not before `retry_after`
    PERMANENT = "permanent"  # the same call would fail again
    INVALID = "invalid"  # output not valid against its schema after all corrections
    DENIED = "denied"  # allowlist, policy or label check
    BUDGET = "budget"  # tokens or money used up: finish partially


class InterlockError(Exception):
    """Base of all. `str(error)` is one sentence fit for the user.

    Args:
        message: one sentence naming the place, what is wrong and the mend.
        detail: for the log only; never shown to a client.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidInput(InterlockError):
    code, http_status, exit_code = "invalid_input", 422, 2


class InvalidSpec(InvalidInput):
    code = "invalid_spec"


class PayloadTooLarge(InvalidInput):
    code, http_status = "payload_too_large", 413


class ContractViolation(InvalidInput):
    code = "contract_violation"


class NotFound(InterlockError):
    code, http_status, exit_code = "not_found", 404, 3


class Conflict(InterlockError):
    code, http_status, exit_code = "conflict", 409, 4


class Unauthenticated(InterlockError):
    code, http_status, exit_code = "unauthenticated", 401, 5


class Denied(InterlockError):
    code, http_status, exit_code = "denied", 403, 5


class TooManyRequests(InterlockError):
    code, http_status, exit_code = "too_many_requests", 429, 8


class BudgetExceeded(InterlockError):
    code, http_status, exit_code = "budget_exceeded", 402, 6


class StepError(InterlockError):
    """A step's work failed.

    Args:
        kind: what the machine may do about it.
        retry_after: seconds the far side asked us to wait, if it did.
        words: what the far side itself said. It may hold anybody's data, so it is kept as a value is: encrypted, and in no
            journal, audit entry or log.

    Attributes:
        counts_against_breaker: whether it says how the tool or provider is now; not if it was kept, or made by us.
    """

    code, http_status, exit_code = "step_failed", 502, 7
    counts_against_breaker: bool = True

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind = FailureKind.TRANSIENT,
        retry_after: float | None = None,
        detail: str | None = None,
        error_detail: str | None = None,
    ) -> None:
        super().__init__(message, detail=detail)
        self.kind = kind
        self.retry_after = retry_after
        self.error_detail = error_detail


class ProviderError(StepError):
    code = "provider_error"


class ToolError(StepError):
    code = "tool_error"


class NothingHappened(ToolError):
    code = "tool_failed"


class SandboxError(StepError):
    code = "sandbox_error"


class Unpriced(StepError):
    """The run has a budget in USD, and the price of the model is not known; the model was not called."""

    code = "unpriced"


class TargetDown(StepError):
    """A breaker is open; `retry_after` is the seconds until it lets calls through on trial."""

    code = "target_down"


class ToolUnhealthy(StepError):
    code = "tool_unhealthy"


class Deferred(StepError):
    """A limit has no room for the call, or its answer is not there yet. It is no attempt; `retry_after` says when to ask again.

    Args:
        pending: the call was dispatched and will cost what was reserved for it.
    """

    code = "deferred"

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind = FailureKind.RATE_LIMITED,
        retry_after: float | None = None,
        pending: bool = False,
    ) -> None:
        super().__init__(message, kind=kind, retry_after=retry_after)
        self.pending = pending


class Unavailable(InterlockError):
    code, http_status, exit_code = "unavailable", 503, 8


class LeaseLost(InterlockError):
    code, http_status, exit_code = "lease_lost", 409, 8


class IntegrityError(InterlockError):
    code, http_status, exit_code = "integrity", 500, 9


class Erased(InterlockError):
    code, http_status, exit_code = "erased", 410, 9
