"""One passage of a piece of work through the kernel's phases: what it has gathered so far, and what can be read off it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interlock.admission.breakers import Admission
from interlock.admission.quotas import Slot
from interlock.audit.log import Entry, EventType
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
from interlock.base.refs import Ref
from interlock.execution.effects import Effect
from interlock.execution.executors import CORRECTIONS, Done, Prepared
from interlock.execution.steps import Work
from interlock.machine.events import Failure, Spent
from interlock.policy.decision import Answer
from interlock.store.artifacts import Sealed
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.workflows.spec import ModelStep, ToolStep


@dataclass(slots=True)
class Passage:
    """What failed is recorded with what was known by then.

    Attributes:
        in_doubt: an earlier attempt may have done its work.
        handed_over: the tool may have got the call.
        reused: the answer was not asked for but found: in the cache, or by a fallback.
    """

    work: Work
    prepared: Prepared | None = None
    answer: Answer | None = None
    admission: Admission | None = None
    slot: Slot | None = None
    effect: Effect | None = None
    in_doubt: bool = False
    handed_over: bool = False
    reused: str | None = None
    done: Done | None = None
    sealed: Sealed | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def mutates(work: Work) -> bool:
    """Whether the work may change something outside."""
    tool = work.run.version.tools.get(work.step.tool) if isinstance(work.step, ToolStep) else None
    return tool is not None and tool.contract.mutating and not is_found(work)


def is_found(work: Work) -> bool:
    """Whether the work is a fallback that asks nobody: a fixed answer, or the newest good one."""
    return work.fallback is not None and (work.fallback.last_good or work.fallback.value is not None)


def target_of(work: Work) -> tuple[str, tuple[str, str] | None]:
    """What a breaker guards, and for a tool its name and bundle."""
    if isinstance(work.step, ModelStep):
        return f"provider:{work.run.version.models[work.step.model]}", None
    assert isinstance(work.step, ToolStep)
    return f"tool:{work.step.tool}", (work.step.tool, work.run.version.tools[work.step.tool].bundle)


def longest(work: Work) -> float:
    """Seconds that the work may take outside: a call with its corrections, or all that may be asked of its tool in turn."""
    if isinstance(work.step, ModelStep):
        return work.step.timeout * (1 + CORRECTIONS)
    assert isinstance(work.step, ToolStep)
    contract = work.run.version.tools[work.step.tool].contract
    return contract.call_seconds * (1 + contract.commit + contract.probe)


def failure_of(passage: Passage, error: Exception, words: Ref | None) -> Failure:
    """A failure as the machine sees it: whether another attempt can help, and whether an effect is in doubt."""
    if isinstance(error, InterlockError):
        code, message = error.code, error.message
    else:
        code, message = "internal", f"an internal error in {type(error).__name__}; the log has the details"
        log(names.LOG_INTERNAL, str(error), level="error", step=passage.work.name, exc_info=error)
    kind, retry_after = _kind_of(passage.work, error), getattr(error, "retry_after", None)
    # That this attempt surely did nothing says nothing about an earlier one.
    ambiguous = passage.in_doubt or (passage.handed_over and not isinstance(error, SandboxError | NothingHappened))
    if ambiguous:
        # What is not the tool's failure (a broken contract, a refusal, an erased value) comes again in every
        # attempt; only a person can say what it means.
        hopeless = not isinstance(error, StepError) or not _knowable(passage.work)
        kind = (
            FailureKind.PERMANENT if hopeless else (kind if kind is FailureKind.RATE_LIMITED else FailureKind.TRANSIENT)
        )
    return Failure(kind, code, message, retry_after, ambiguous, words)


def _kind_of(work: Work, error: Exception) -> FailureKind:
    step = work.node.step
    if (
        isinstance(error, TargetDown)
        and isinstance(step, ModelStep | ToolStep)
        and work.here.variant < len(step.fallback)
    ):
        return FailureKind.PERMANENT  # there is another way: no waiting for this one to come back
    if isinstance(error, StepError):
        return error.kind
    if isinstance(error, BudgetExceeded):
        return FailureKind.BUDGET
    if isinstance(error, Denied):
        return FailureKind.DENIED
    return FailureKind.INVALID if isinstance(error, InvalidInput) else FailureKind.PERMANENT


def _knowable(work: Work) -> bool:
    """Whether the tool can tell, or does not care, if its work was done before."""
    assert isinstance(work.step, ToolStep)
    contract = work.run.version.tools[work.step.tool].contract
    return contract.honours_idempotency or contract.probe


def entry_of(passage: Passage, detail: dict[str, Any], now: float, event_type: EventType | None = None) -> Entry:
    """The audit entry of what was done, which is logged too."""
    work, answer = passage.work, passage.answer
    step = work.step
    model = isinstance(step, ModelStep)
    resource = f"model:{work.run.version.models[step.model]}" if isinstance(step, ModelStep) else f"tool:{_tool(work)}"
    if passage.reused is not None:
        detail = {**detail, "reused": passage.reused}
    log(
        names.LOG_STEP_FINISHED if detail["success"] else names.LOG_STEP_FAILED,
        level="info" if detail["success"] else "warning",
        run_id=work.run.run_id,
        step=work.name,
        **detail,
    )
    return Entry(
        org_id=work.run.org_id,
        event_type=event_type or ("model.call" if model else "tool.call"),
        actor=work.run.principal.actor,
        action="call_model" if model else ("compensate" if event_type else "call_tool"),
        resource=resource,
        at=now,
        decision="none" if answer is None else ("allow" if answer.allowed else "deny"),
        run_id=work.run.run_id,
        trace_id=work.run.trace.trace_id,
        policy_version=work.run.version.policy.version,
        detail={"step": work.name, **detail},
    )


def tokens(spent: Spent) -> dict[str, Any]:
    """What an audit entry says about cost; nothing if there was none."""
    if not spent.input_tokens and not spent.output_tokens:
        return {}
    return {"input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens, "usd": f"{spent.usd:.6f}"}


def _tool(work: Work) -> str:
    return work.step.tool if isinstance(work.step, ToolStep) else work.name
