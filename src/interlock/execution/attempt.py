"""One passage of a piece of work through the kernel's phases: what it has gathered so far, and what can be read off it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from interlock.admission.breakers import Admission
from interlock.admission.quotas import Slot
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
from interlock.base.usage import Usage, cost_json
from interlock.execution.approvals import NO_STANDING, Standing
from interlock.execution.effects import Effect
from interlock.execution.executors import CORRECTIONS, CallRequest, CallResult
from interlock.execution.steps import StepExecution, StepOutcome
from interlock.machine.events import CompensationFailed, CompensationSucceeded, Failure, StepFailed, StepSucceeded
from interlock.policy.decision import Decision
from interlock.store.artifacts import Sealed
from interlock.store.entries import Entry, EventType
from interlock.telemetry import names
from interlock.telemetry.logs import log, stack_of
from interlock.workflows.spec import ModelStep, ToolStep

MAX_MESSAGE = 500
"""Characters of a failure's message: it goes into the journal, the run's reason, audit entries and webhooks."""


@dataclass(slots=True)
class Attempt:
    """An attempt at a call, with everything known so far, so that a failure is recorded with it.

    Attributes:
        began: when the kernel began with it, seconds since the epoch by the database's clock.
        called: the far side was asked, or is being asked.
        in_doubt: an earlier attempt may have done its work.
        dispatched: the tool may have got the call.
        standing: the approvals of the call, as they stood when the policy was asked.
        arguments: of the call of a mutating tool, once they are sealed.
        reused: the answer was not asked for but found: in the cache, or by a fallback.
    """

    execution: StepExecution
    began: float
    prepared: CallRequest | None = None
    answer: Decision | None = None
    admission: Admission | None = None
    slot: Slot | None = None
    effect: Effect | None = None
    called: bool = False
    in_doubt: bool = False
    dispatched: bool = False
    reused: str | None = None
    done: CallResult | None = None
    sealed: Sealed | None = None
    arguments: Sealed | None = None
    standing: Standing = NO_STANDING
    attributes: dict[str, Any] = field(default_factory=dict)


def mutates(execution: StepExecution) -> bool:
    """True if the step may change something outside."""
    tool = execution.run.version.tools.get(execution.step.tool) if isinstance(execution.step, ToolStep) else None
    return tool is not None and tool.contract.mutating and not is_found(execution)


def is_found(execution: StepExecution) -> bool:
    """True if the step is a fallback without a call: a fixed answer, or the newest good one."""
    return execution.fallback is not None and (execution.fallback.last_good or execution.fallback.value is not None)


def target_of(execution: StepExecution) -> tuple[str, tuple[str, str] | None]:
    """The breaker's target, and for a tool its name and bundle."""
    if isinstance(execution.step, ModelStep):
        return f"provider:{execution.run.version.models[execution.step.model]}", None
    assert isinstance(execution.step, ToolStep)
    return f"tool:{execution.step.tool}", (execution.step.tool, execution.run.version.tools[execution.step.tool].bundle)


def longest(execution: StepExecution) -> float:
    """Seconds that the work may take outside: a call with its corrections, or all that may be asked of its tool in turn."""
    if isinstance(execution.step, ModelStep):
        return execution.step.timeout * (1 + CORRECTIONS)
    assert isinstance(execution.step, ToolStep)
    contract = execution.run.version.tools[execution.step.tool].contract
    return contract.call_seconds * (1 + contract.commit + contract.probe)


def failure_of(attempt: Attempt, error: Exception, error_detail: Ref | None) -> Failure:
    """A failure as the machine sees it: whether another attempt can help, and whether an effect is in doubt."""
    if isinstance(error, InterlockError):
        code, message = error.code, error.message
    else:
        code, message = "internal", f"an internal error in {type(error).__name__}; the log has the details"
        log(names.LOG_INTERNAL, message, level="error", step=attempt.execution.name, stack=stack_of(error))
    kind, retry_after = _kind_of(attempt.execution, error), getattr(error, "retry_after", None)
    # That this attempt surely did nothing says nothing about an earlier one.
    ambiguous = attempt.in_doubt or (attempt.dispatched and not isinstance(error, SandboxError | NothingHappened))
    if ambiguous:
        # What is not the tool's failure (a broken contract, a refusal, an erased value) comes again in every
        # attempt; only a person can say what it means.
        hopeless = not isinstance(error, StepError) or not _knowable(attempt.execution)
        kind = (
            FailureKind.PERMANENT if hopeless else (kind if kind is FailureKind.RATE_LIMITED else FailureKind.TRANSIENT)
        )
    return Failure(kind, code, sentence(message, MAX_MESSAGE), retry_after, ambiguous, error_detail)


def unrecordable(outcome: StepOutcome) -> StepOutcome | None:
    """Replacement of an outcome that the store refused: a failure without any text from outside.

    It keeps what the step cost. If the effect may have happened, the ledger's row stays as it was before the outcome, and the
    failure is ambiguous. None for an event that is no outcome of work; nothing can stand for that.
    """
    event = outcome.event
    if not isinstance(event, StepSucceeded | StepFailed | CompensationSucceeded | CompensationFailed):
        return None
    failed = event.failure if isinstance(event, StepFailed | CompensationFailed) else None
    ambiguous = failed.ambiguous if failed is not None else bool(outcome.effects)
    kind = FailureKind.PERMANENT if ambiguous else FailureKind.INVALID
    message = "the database refused the outcome: a number is out of range or a text holds a NUL character"
    failure = Failure(kind, "unrecordable", message, ambiguous=ambiguous)
    what: dict[str, Any] = {"attempt": event.attempt, "success": False, "error": failure.code, "message": message}
    audit = [replace(entry, detail={"step": event.step, **what}) for entry in outcome.audit[-1:]]
    log(names.LOG_STEP_FAILED, level="warning", step=event.step, **what)
    if isinstance(event, CompensationSucceeded | CompensationFailed):
        return StepOutcome(CompensationFailed(event.step, event.attempt, event.began, event.at, failure), audit=audit)
    effects = outcome.effects if failed is not None and not ambiguous else []
    return StepOutcome(
        StepFailed(event.step, event.attempt, event.began, event.at, failure, event.usage), effects=effects, audit=audit
    )


def _kind_of(execution: StepExecution, error: Exception) -> FailureKind:
    step = execution.node.step
    if (
        isinstance(error, TargetDown)
        and isinstance(step, ModelStep | ToolStep)
        and execution.here.variant < len(step.fallback)
    ):
        return FailureKind.PERMANENT  # there is another way: no waiting for this one to come back
    if isinstance(error, StepError):
        return error.kind
    if isinstance(error, BudgetExceeded):
        return FailureKind.BUDGET
    if isinstance(error, Denied):
        return FailureKind.DENIED
    return FailureKind.INVALID if isinstance(error, InvalidInput) else FailureKind.PERMANENT


def _knowable(execution: StepExecution) -> bool:
    """True if the tool honours idempotency keys or has a probe."""
    assert isinstance(execution.step, ToolStep)
    contract = execution.run.version.tools[execution.step.tool].contract
    return contract.honours_idempotency or contract.probe


def entry_of(attempt: Attempt, detail: dict[str, Any], now: float, event_type: EventType | None = None) -> Entry:
    """The audit entry of what was done, which is logged too."""
    execution, answer = attempt.execution, attempt.answer
    step = execution.step
    model = isinstance(step, ModelStep)
    resource = (
        f"model:{execution.run.version.models[step.model]}"
        if isinstance(step, ModelStep)
        else f"tool:{_tool(execution)}"
    )
    if attempt.reused is not None:
        detail = {**detail, "reused": attempt.reused}
    log(
        names.LOG_STEP_FINISHED if detail["success"] else names.LOG_STEP_FAILED,
        level="info" if detail["success"] else "warning",
        run_id=execution.run.run_id,
        step=execution.name,
        **detail,
    )
    return Entry(
        org_id=execution.run.org_id,
        event_type=event_type or ("model.call" if model else "tool.call"),
        actor=execution.run.principal.actor,
        action="call_model" if model else ("compensate" if event_type else "call_tool"),
        resource=resource,
        at=now,
        decision="none" if answer is None else ("allow" if answer.allowed else "deny"),
        run_id=execution.run.run_id,
        trace_id=execution.run.trace.trace_id,
        policy_version=None if answer is None else answer.version,
        detail={"step": execution.name, **detail},
    )


def usage_detail(usage: Usage | None) -> dict[str, Any]:
    """Usage and cost for an audit entry; empty if no model was called."""
    if usage is None:
        return {}
    return {
        "provider": usage.provider,
        "model": usage.model,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "calls": usage.attempts,
        **cost_json(usage.known_cost, usage.unpriced),
    }


def _tool(execution: StepExecution) -> str:
    return execution.step.tool if isinstance(execution.step, ToolStep) else execution.name
