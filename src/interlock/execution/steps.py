"""Steps: calls are made of what the machine commands, and events of how the calls ended.

Engines carry the machine's commands out with `Steps`; all that reaches outside passes the kernel. A map's items, a subworkflow's
input and a fixed answer in the place of a call that cannot even be prepared are looked up inside the run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interlock.base.clock import Clock
from interlock.base.errors import ContractViolation, FailureKind, LeaseLost, StepError, Unavailable
from interlock.base.json import Json
from interlock.base.labels import DEFINED
from interlock.execution.attempt import entry_of
from interlock.execution.call import (
    Attributes,
    CallDeferred,
    CallFailed,
    CallOutcome,
    CallResult,
    CallSucceeded,
)
from interlock.execution.failures import Circumstances, failure_of
from interlock.execution.inputs.binding import bind
from interlock.execution.inputs.calls import StepCalls
from interlock.execution.kernel import Kernel
from interlock.execution.run import StepExecution, StepOutcome
from interlock.guard.gate import composed
from interlock.machine.events import (
    ApprovalNeeded,
    CompensationFailed,
    CompensationSucceeded,
    Failure,
    StepDeferred,
    StepFailed,
    StepSucceeded,
)
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.telemetry.spans import Span, mark_failed
from interlock.telemetry.tracing import Tracing
from interlock.workflows.facts import facts_of
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import MapStep, ModelStep, SubworkflowStep, ToolStep

_COUNT: dict[str, Json] = {"type": "object", "properties": {"count": {"type": "integer"}}}


class Steps:
    """Performs and compensates steps."""

    def __init__(self, kernel: Kernel, calls: StepCalls, tracing: Tracing, clock: Clock) -> None:
        self._kernel = kernel
        self._calls = calls
        self._tracing = tracing
        self._clock = clock

    async def perform(self, execution: StepExecution) -> StepOutcome:
        """One attempt at a step; raises LeaseLost and Unavailable, all else is an event."""
        began, run = self._clock.now(), execution.run
        attributes: Attributes = {
            **run.attributes(),
            names.STEP_ID: execution.name,
            names.STEP_KIND: execution.step.kind,
            names.STEP_ATTEMPT: execution.attempt,
        }
        with self._tracing.span(f"{names.STEP} {execution.path}", attributes, parent=run.trace) as span:
            in_doubt = False
            try:
                if isinstance(execution.step, MapStep | SubworkflowStep):
                    return await self._kept(execution, began, await self._inside(execution))
                in_doubt = await self._in_doubt(execution)
                try:
                    call = await self._calls.of(execution, in_doubt=in_doubt)
                except (StepError, ContractViolation):
                    fixed = _fixed(execution)
                    if fixed is None:
                        raise
                    # A fixed answer needs no arguments, so wrong ones do not matter.
                    return await self._kept(execution, began, fixed)
            except (LeaseLost, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001  every exception of a step becomes an event; a bug must not kill the worker
                mark_failed(span, error)
                return self._not_called(execution, began, error, in_doubt=in_doubt)
            return self._performed(execution, began, await self._kernel.call(call), span)

    async def compensate(self, execution: StepExecution) -> StepOutcome:
        """One attempt at undoing a completed mutating step; raises as `perform`."""
        began, run = self._clock.now(), execution.run
        attributes: Attributes = {
            **run.attributes(),
            names.STEP_ID: execution.name,
            names.STEP_ATTEMPT: execution.attempt,
        }
        with self._tracing.span(f"{names.COMPENSATION} {execution.path}", attributes, parent=run.trace) as span:
            try:
                call = await self._calls.tool(execution, compensate=True)
                assert execution.here.output is not None, "a completed step has an output"
                output = await run.value(execution.here.output)
            except (LeaseLost, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001  as in perform
                mark_failed(span, error)
                return self._not_called(execution, began, error, compensate=True)
            outcome = await self._kernel.compensate(call, output)
            times = (began, outcome.at)
            if not isinstance(outcome, CallFailed):
                event = CompensationSucceeded(execution.name, execution.attempt, *times)
                return _with_rows(StepOutcome(event), outcome)
            mark_failed(span, outcome.error)
            failed = CompensationFailed(execution.name, execution.attempt, *times, outcome.failure)
            return _with_rows(StepOutcome(failed), outcome)

    # -- before a call -----------------------------------------------------------------------------------------

    async def _in_doubt(self, execution: StepExecution) -> bool:
        """Finds out whether an earlier attempt left the outcome unknown, before anything of this attempt can fail."""
        site = execution.effect
        if site is None or not (execution.attempt > 1 or execution.run.resumed or execution.here.deferrals):
            return False
        return await self._kernel.in_doubt(site)

    async def _inside(self, execution: StepExecution) -> CallResult:
        """A map's items or a subworkflow's input.

        Raises:
            ContractViolation: no list, too long a list, or an input that does not fit the subworkflow's schema.
        """
        step, version, now = execution.step, execution.run.version, self._clock.now()
        if isinstance(step, MapStep):
            bound = await bind(execution.run, step.items, execution.state, execution.name, now=now)
            if not isinstance(bound.value, list):
                raise ContractViolation(f'"{step.items}" is no list, so step "{execution.name}" has no items')
            if len(bound.value) > step.max_items:
                raise ContractViolation(
                    f'"{step.items}" has {len(bound.value)} items, and step "{execution.name}" takes {step.max_items}; '
                    "raise max_items"
                )
            return CallResult(bound.value, _COUNT, bound.labels, facts={"count": len(bound.value)})
        assert isinstance(step, SubworkflowStep)
        bound = await bind(execution.run, step.input, execution.state, execution.name, now=now)
        child = version.program.subworkflows[execution.path]
        required = set(child.input.get("required", ()))
        value = {name: one for name, one in bound.value.items() if one is not None or name in required}
        check_value(version.subworkflow_validators[execution.path], value, what=f'workflow "{child.name}": input')
        return CallResult(value, child.input, bound.labels)

    async def _kept(self, execution: StepExecution, began: float, found: CallResult) -> StepOutcome:
        """The outcome of a step that is only looked up. Its parts have passed the guard gate before; the journal is its record."""
        run = execution.run
        sealed = await run.artifacts.seal(run.org_id, composed(found.value), found.labels)
        run.remember(sealed.ref, found.value)
        facts = dict(found.facts) if found.facts is not None else facts_of(found.schema, found.value)
        event = StepSucceeded(execution.name, execution.attempt, began, self._clock.now(), sealed.ref, facts)
        return StepOutcome(event, artifacts=[sealed.row])

    def _not_called(
        self,
        execution: StepExecution,
        began: float,
        error: Exception,
        *,
        in_doubt: bool = False,
        compensate: bool = False,
    ) -> StepOutcome:
        """The outcome of a step whose call could not be prepared."""
        now, step, version = self._clock.now(), execution.step, execution.run.version
        tool = version.tools.get(step.tool) if isinstance(step, ToolStep) else None
        knowable = tool is not None and (tool.contract.honours_idempotency or tool.contract.probe)
        failure = failure_of(error, Circumstances(execution.name, in_doubt=in_doubt, knowable=knowable))
        event: StepFailed | CompensationFailed = StepFailed(execution.name, execution.attempt, began, now, failure)
        if compensate:
            event = CompensationFailed(execution.name, execution.attempt, began, now, failure)
        outcome = StepOutcome(event)
        if isinstance(step, ModelStep | ToolStep):
            model = isinstance(step, ModelStep)
            resource = f"model:{version.models[step.model]}" if isinstance(step, ModelStep) else f"tool:{step.tool}"
            detail: dict[str, Json] = {
                "attempt": execution.attempt,
                "success": False,
                "error": failure.code,
                "message": failure.message,
            }
            if not compensate:
                detail["ambiguous"] = failure.ambiguous
            entry = entry_of(
                execution.run,
                "model" if model else "tool",
                resource,
                execution.name,
                detail,
                now,
                event_type="tool.compensation" if compensate else None,
            )
            outcome.audit.append(entry)
        return outcome

    # -- after a call ------------------------------------------------------------------------------------------

    @staticmethod
    def _performed(execution: StepExecution, began: float, outcome: CallOutcome, span: Span) -> StepOutcome:
        """The event of a call's outcome, with its rows."""
        span.set_attributes(outcome.attributes)
        name, attempt, times = execution.name, execution.attempt, (began, outcome.at)
        event: StepSucceeded | StepFailed | StepDeferred | ApprovalNeeded
        if isinstance(outcome, CallSucceeded):
            event = StepSucceeded(
                name,
                attempt,
                *times,
                outcome.output,
                dict(outcome.facts),
                outcome.usage,
                outcome.wanted,
                outcome.request,
            )
        elif isinstance(outcome, CallFailed):
            mark_failed(span, outcome.error)
            event = StepFailed(name, attempt, *times, outcome.failure, outcome.usage, outcome.request)
        elif isinstance(outcome, CallDeferred):
            event = StepDeferred(name, attempt, *times, outcome.delay, outcome.in_doubt)
        else:
            arguments = outcome.arguments.ref
            event = ApprovalNeeded(name, attempt, *times, outcome.act, arguments, outcome.policy, outcome.role)
        return _with_rows(StepOutcome(event), outcome)


def _fixed(execution: StepExecution) -> CallResult | None:
    """The declared answer of a fallback; None if the step is no such fallback."""
    if execution.fallback is None or execution.fallback.value is None:
        return None
    step = execution.step
    assert isinstance(step, ModelStep | ToolStep)
    schema = execution.run.version.tools[step.tool].contract.output if isinstance(step, ToolStep) else step.output
    return CallResult(execution.fallback.value, schema, DEFINED)


def _with_rows(step: StepOutcome, call: CallOutcome) -> StepOutcome:
    step.artifacts, step.effects, step.audit, step.results = call.artifacts, call.effects, call.audit, call.results
    return step


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
