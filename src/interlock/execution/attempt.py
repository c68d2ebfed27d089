"""One attempt at a call on its way through the kernel's phases: what is known so far, and its audit entry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interlock.admission.breakers import Admission
from interlock.admission.quotas import Slot
from interlock.base.json import Json
from interlock.base.usage import Usage, cost_json
from interlock.execution.approvals import NO_STANDING, Standing
from interlock.execution.call import Attributes, Call, Caller, CallResult, ModelCall, ToolCall
from interlock.execution.effects import Effect
from interlock.execution.failures import Circumstances
from interlock.guard.gate import composed
from interlock.policy.decision import Decision
from interlock.store.artifacts import Sealed
from interlock.store.entries import Entry, EventType
from interlock.telemetry import names
from interlock.telemetry.logs import log


@dataclass(slots=True)
class Attempt:
    """An attempt at a call, with everything known so far, so that a failure is recorded with it.

    Attributes:
        decision: the policy's answer.
        called: the far side was asked, or is being asked.
        in_doubt: an earlier attempt may have done its work.
        dispatched: the tool may have got the call.
        standing: the approvals of the call, as they stood when the policy was asked.
        arguments: of the call of a mutating tool, once they are sealed.
        reused: where a result that was not asked for comes from: `value`, `last_good` or `cache`.
    """

    call: Call
    decision: Decision | None = None
    admission: Admission | None = None
    slot: Slot | None = None
    effect: Effect | None = None
    called: bool = False
    in_doubt: bool = False
    dispatched: bool = False
    reused: str | None = None
    result: CallResult | None = None
    arguments: Sealed | None = None
    standing: Standing = NO_STANDING
    attributes: Attributes = field(default_factory=dict)

    def circumstances(self) -> Circumstances:
        """Circumstances by which a failure of the attempt is judged."""
        call = self.call
        knowable = isinstance(call, ToolCall) and call.knowable
        return Circumstances(call.name, self.in_doubt, self.dispatched, knowable, call.alternative)

    async def sealed_arguments(self, call: ToolCall) -> Sealed:
        """Arguments of the call, sealed once an attempt."""
        if self.arguments is None:
            caller = call.caller
            self.arguments = await caller.artifacts.seal(caller.org_id, composed(call.arguments), call.labels)
        return self.arguments

    def entry(self, detail: dict[str, Json], now: float, event_type: EventType | None = None) -> Entry:
        """The audit entry of what was done."""
        call = self.call
        if self.reused is not None:
            detail = {**detail, "reused": self.reused}
        kind, resource = ("model", f"model:{call.pin}") if isinstance(call, ModelCall) else ("tool", call.target)
        return entry_of(
            call.caller, kind, resource, call.name, detail, now, decision=self.decision, event_type=event_type
        )


def entry_of(
    caller: Caller,
    kind: str,
    resource: str,
    step: str,
    detail: dict[str, Json],
    now: float,
    *,
    decision: Decision | None = None,
    event_type: EventType | None = None,
) -> Entry:
    """The audit entry of a call, which is logged too.

    Args:
        kind: `model` or `tool`.
        event_type: `tool.compensation` for a compensation; None for a call.
    """
    extra: dict[str, Any] = detail
    log(
        names.LOG_STEP_FINISHED if detail["success"] else names.LOG_STEP_FAILED,
        level="info" if detail["success"] else "warning",
        run_id=caller.run_id,
        step=step,
        **extra,
    )
    return Entry(
        org_id=caller.org_id,
        event_type=event_type or ("model.call" if kind == "model" else "tool.call"),
        actor=caller.principal.actor,
        action="compensate" if event_type else f"call_{kind}",
        resource=resource,
        at=now,
        decision="none" if decision is None else ("allow" if decision.allowed else "deny"),
        run_id=caller.run_id,
        trace_id=caller.trace.trace_id,
        policy_version=None if decision is None else decision.version,
        detail={"step": step, **detail},
    )


def usage_detail(usage: Usage | None) -> dict[str, Json]:
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
