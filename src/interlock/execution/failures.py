"""Failures of calls as the machine sees them: whether another attempt can help, and whether an effect is in doubt."""

from __future__ import annotations

from interlock.base.errors import (
    BudgetExceeded,
    Denied,
    FailureKind,
    InterlockError,
    InvalidInput,
    NothingHappened,
    SandboxError,
    StepError,
    TargetDown,
)
from interlock.base.json import sentence
from interlock.base.refs import Ref
from interlock.base.values import value
from interlock.machine.events import Failure
from interlock.telemetry import names
from interlock.telemetry.logs import log, stack_of

MAX_MESSAGE = 500
"""Characters of a failure's message: it goes into the journal, the run's reason, audit entries and webhooks."""


@value(frozen=True, slots=True)
class Circumstances:
    """Circumstances of a call that failed.

    Attributes:
        name: of the step or other caller, for the log.
        in_doubt: an earlier attempt may have done its work.
        dispatched: the tool may have got the call.
        knowable: it can be found out whether the call was carried out.
        alternative: the caller has another way to go if the target is down.
    """

    name: str
    in_doubt: bool = False
    dispatched: bool = False
    knowable: bool = False
    alternative: bool = False


def failure_of(error: Exception, about: Circumstances, error_detail: Ref | None = None) -> Failure:
    """The failure that an error is.

    Args:
        error_detail: the far side's own text about it, sealed.
    """
    if isinstance(error, InterlockError):
        code, message = error.code, error.message
    else:
        code, message = "internal", f"an internal error in {type(error).__name__}; the log has the details"
        log(names.LOG_INTERNAL, message, level="error", step=about.name, stack=stack_of(error))
    kind, retry_after = _kind_of(error, about), getattr(error, "retry_after", None)
    # That this attempt surely did nothing says nothing about an earlier one.
    ambiguous = about.in_doubt or (about.dispatched and not isinstance(error, SandboxError | NothingHappened))
    if ambiguous:
        # What is not the tool's failure (a broken contract, a refusal, an erased value) comes again in every
        # attempt; only a person can say what it means.
        hopeless = not isinstance(error, StepError) or not about.knowable
        kind = (
            FailureKind.PERMANENT if hopeless else (kind if kind is FailureKind.RATE_LIMITED else FailureKind.TRANSIENT)
        )
    return Failure(kind, code, sentence(message, MAX_MESSAGE), retry_after, ambiguous, error_detail)


def _kind_of(error: Exception, about: Circumstances) -> FailureKind:
    if isinstance(error, TargetDown) and about.alternative:
        return FailureKind.PERMANENT  # there is another way: no waiting for this one to come back
    if isinstance(error, StepError):
        return error.kind
    if isinstance(error, BudgetExceeded):
        return FailureKind.BUDGET
    if isinstance(error, Denied):
        return FailureKind.DENIED
    return FailureKind.INVALID if isinstance(error, InvalidInput) else FailureKind.PERMANENT
