"""Errors of Interlock: one tree.

    InterlockError
    ├── InvalidInput            external input is not valid; the message names the place and the correction
    │   ├── InvalidSpec         a workflow, prompt, tool or settings file (file:line: field: correction)
    │   ├── PayloadTooLarge     over the configured limit, refused on arrival
    │   └── ContractViolation   a value does not fit a step's or a tool's schema
    ├── NotFound                no such run, workflow, tool, review, key
    ├── Conflict                the object exists already, or its state does not allow this operation
    ├── Unauthenticated         no key, or an unknown key
    ├── Denied                  a known principal or tool that is not allowed (role, allowlist, policy)
    │   ├── SelfApproval        the requester of a run must not approve its acts
    │   ├── ApprovalRejected    a person rejected this act
    │   └── ApprovalInvalid     the approval is used, revoked, expired, or belongs to another act
    ├── TooManyRequests         a limit of concurrent use by one organisation or process
    ├── BudgetExceeded          the run's tokens, money or retries are used up
    ├── StepError               a step's work failed; `kind` tells whether a retry can help
    │   ├── ProviderError       a model provider refused, disconnected or sent an invalid answer
    │   ├── ToolError           a tool crashed, hung or returned an invalid answer
    │   │   └── NothingHappened a tool failed and declares that it changed nothing
    │   ├── SandboxError        the isolation itself could not be set up
    │   ├── Unpriced            a model without a known price in a run with a budget in USD; it was not called
    │   ├── TargetDown          a breaker is open: the tool or provider failed too often and was not called
    │   ├── ToolUnhealthy       the tool's own health check failed; it was not called
    │   └── Deferred            no capacity now, or no answer yet: the call is repeated later, and no attempt is counted
    ├── Unavailable             a required component is down (database, provider, sandbox)
    ├── LeaseLost               another worker drives the run now; local state is invalid
    ├── IntegrityError          stored data was changed (audit chain, artifact, weights)
    └── Erased                  the key of the value's subject was destroyed; the value is unreadable

Lower layers use neither HTTP nor exit codes, except the two numbers of each class; only `api/errors.py` and
`cli/main.py` read them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from interlock.base.error_detail import ErrorDetail


class FailureKind(StrEnum):
    """Reason of a failure, as far as the state machine needs it to choose the next step."""

    TRANSIENT = "transient"  # retry with backoff
    RATE_LIMITED = "rate_limited"  # retry, not before `retry_after`
    PERMANENT = "permanent"  # the same call would fail again
    INVALID = "invalid"  # output not valid against its schema after all corrections
    DENIED = "denied"  # allowlist, policy or label check
    BUDGET = "budget"  # tokens or money used up: the run ends as partial


class InterlockError(Exception):
    """Base class. `str(error)` is one sentence for the user.

    Args:
        message: one sentence with the place, the fault and the correction.
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


class SelfApproval(Denied):
    code = "self_approval"


class ApprovalRejected(Denied):
    code = "approval_rejected"


class ApprovalInvalid(Denied):
    code = "approval_invalid"


class TooManyRequests(InterlockError):
    code, http_status, exit_code = "too_many_requests", 429, 8


class BudgetExceeded(InterlockError):
    code, http_status, exit_code = "budget_exceeded", 402, 6


class StepError(InterlockError):
    """A step's work failed.

    Args:
        kind: reason, from which the state machine chooses the next step.
        retry_after: seconds to wait, if the remote side asked for a pause.
        error_detail: the remote side's own words, see `ErrorDetail`.

    Attributes:
        counts_against_breaker: True if the failure shows the present state of the tool or provider; False for a stored answer
            and for a failure on our side.
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
        error_detail: ErrorDetail | None = None,
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
    """A model without a known price in a run with a budget in USD; the model was not called."""

    code = "unpriced"


class TargetDown(StepError):
    """An open circuit breaker; `retry_after` is the seconds until it admits trial calls."""

    code = "target_down"


class ToolUnhealthy(StepError):
    code = "tool_unhealthy"


class Deferred(StepError):
    """A call without capacity under a limit, or without an answer yet. It counts as no attempt; `retry_after` is the delay.

    Args:
        pending: the call was dispatched, so its reservation must be kept.
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
