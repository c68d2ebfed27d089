"""The choke point. Every effect passes the same five phases, in this module and nowhere else:

    admit    allowlist, schema, labels, policy         → refused, or ready
    reserve  budget, idempotency key, effect ledger    → written down before it is done
    execute  isolated, with a deadline                 → a result, or an error that says what may be in doubt
    settle   true usage, sealed output, facts          → what the machine will see
    record   audit entry and span                      → committed with the step by the engine

`perform` and `compensate` never raise for what a model, a tool or a policy did: that is an event for the machine. They
raise `LeaseLost` (another worker owns the run) and `Unavailable` (no database), after which the engine lets go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interlock.admission.gate import CallGate
from interlock.admission.quotas import CallQuotas
from interlock.base.accepted import Accepted
from interlock.base.clock import Clock
from interlock.base.errors import (
    ContractViolation,
    Deferred,
    Denied,
    Erased,
    FailureKind,
    LeaseLost,
    PayloadTooLarge,
    StepError,
    TargetDown,
    Unavailable,
)
from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.base.usage import Usage
from interlock.budget.ledger import Amount
from interlock.execution.approvals import consumed_rows
from interlock.execution.attempt import (
    Attempt,
    entry_of,
    failure_of,
    is_found,
    longest,
    mutates,
    target_of,
    usage_detail,
)
from interlock.execution.batch.reservations import is_batched
from interlock.execution.effects import Effect, EffectLedger, call_ends, idempotency_key
from interlock.execution.executors import CallRequest, CallResult, ModelExecutor, ToolExecutor
from interlock.execution.judge import Judge, LacksApproval, arguments_for
from interlock.execution.lookups import Lookups
from interlock.execution.steps import StepExecution, StepOutcome
from interlock.guard.gate import Stage, composed, inspect
from interlock.machine.events import (
    CompensationFailed,
    CompensationSucceeded,
    StepDeferred,
    StepFailed,
    StepSucceeded,
)
from interlock.store.artifacts import Sealed
from interlock.telemetry import names
from interlock.telemetry.spans import mark_failed
from interlock.telemetry.tracing import Tracing
from interlock.workflows.facts import facts_of
from interlock.workflows.spec import MapStep, ModelStep, SubworkflowStep, ToolStep

_ASK_AGAIN = 1.0  # seconds, if a limit does not say when it will have room


class Kernel:
    """Takes work through the five phases."""

    def __init__(
        self,
        *,
        models: ModelExecutor,
        tools: ToolExecutor,
        lookups: Lookups,
        effects: EffectLedger,
        health: CallGate,
        quotas: CallQuotas,
        tracing: Tracing,
        clock: Clock,
        judge: Judge,
    ) -> None:
        self._judge = judge
        self._models = models
        self._tools = tools
        self._lookups = lookups
        self._effects = effects
        self._health = health
        self._quotas = quotas
        self._tracing = tracing
        self._clock = clock

    async def perform(self, execution: StepExecution) -> StepOutcome:
        """One attempt at a step."""
        attempt, pending = Attempt(execution, self._clock.now()), False
        attributes = {
            **execution.run.attributes(),
            names.STEP_ID: execution.name,
            names.STEP_KIND: execution.step.kind,
            names.STEP_ATTEMPT: execution.attempt,
        }
        with self._tracing.span(f"{names.STEP} {execution.path}", attributes, parent=execution.run.trace) as span:
            try:
                if isinstance(execution.step, MapStep | SubworkflowStep):
                    attempt.done = await self._lookups.inside(execution)  # reaches nothing outside the run
                else:
                    await self._look_back(attempt)
                    await self._admit(attempt)
                    await self._reserve(attempt)
                    await self._execute(attempt)
                outcome = await self._settle(attempt)
            except (LeaseLost, Unavailable):
                raise
            except Deferred as error:
                delay = error.retry_after if error.retry_after is not None else _ASK_AGAIN
                times = (attempt.began, self._clock.now())
                event = StepDeferred(execution.name, execution.attempt, *times, delay, attempt.in_doubt)
                outcome, pending = StepOutcome(event), error.pending
            except LacksApproval as lack:
                outcome = self._judge.lacking(attempt, lack)
            except Exception as error:  # noqa: BLE001  every exception of a step becomes an event; a bug must not kill the worker
                mark_failed(span, error)
                outcome = await self._failed(attempt, error)
            finally:
                self._health.leave(attempt.admission)
                self._quotas.give_back(attempt.slot)
                span.set_attributes(attempt.attributes)
        if pending:
            execution.run.ledger.hold(execution.name)
            return outcome
        usage = outcome.event.usage if isinstance(outcome.event, StepSucceeded | StepFailed) else None
        execution.run.ledger.use(execution.name, Amount.of(usage or Usage()))
        return outcome

    async def _look_back(self, attempt: Attempt) -> None:
        """Finds out whether an earlier attempt left the outcome unknown, before anything of this attempt can fail."""
        execution = attempt.execution
        if mutates(execution) and (execution.attempt > 1 or execution.run.resumed or execution.here.deferrals):
            attempt.in_doubt = await self._effects.status(execution) == "executing"

    # -- admit -------------------------------------------------------------------------------------------------

    async def _admit(self, attempt: Attempt) -> None:
        execution = attempt.execution
        if isinstance(execution.step, ToolStep) and execution.step.tool not in execution.run.version.workflow.allow:
            raise Denied(f'tool "{execution.step.tool}" is not in this workflow\'s allow list')
        try:
            prepared = attempt.prepared = await self._executor(execution).prepare(execution)
        except (StepError, ContractViolation):
            if execution.fallback is None or execution.fallback.value is None:
                raise
            attempt.done, attempt.reused = self._lookups.fixed(execution, execution.fallback.value), "value"
            return  # a fixed answer needs no arguments, so wrong ones do not matter
        if prepared.stale:
            attempt.attributes[names.STALE_STEPS] = list(prepared.stale)
        await self._judge.judge(attempt, prepared)
        await self._find(attempt, prepared)
        if attempt.done is None and not prepared.answered:
            try:
                target, tool = target_of(execution)
                attempt.admission = await self._health.admit(
                    execution.run.org_id, target, tool, seconds=longest(execution)
                )
            except TargetDown as error:
                if not is_batched(execution):
                    raise
                raise Deferred(error.message, retry_after=error.retry_after, pending=True) from None

    async def _find(self, attempt: Attempt, prepared: CallRequest) -> None:
        """Looks up a stored answer: admitted like the call it replaces, but no call is made."""
        execution = attempt.execution
        if execution.fallback is not None and is_found(execution):
            attempt.done = await self._lookups.found(execution, execution.fallback, prepared)
            attempt.reused = "value" if execution.fallback.value is not None else "last_good"
        else:
            attempt.done = await self._lookups.cached(execution, prepared)
            attempt.reused = "cache" if attempt.done is not None else None
        if attempt.reused is not None:
            attempt.attributes[names.REUSED] = attempt.reused

    # -- reserve -----------------------------------------------------------------------------------------------

    async def _reserve(self, attempt: Attempt) -> None:
        if attempt.done is not None:
            return  # costs nothing and changes nothing
        execution, prepared = attempt.execution, _known(attempt.prepared)
        execution.run.ledger.reserve(execution.name, Amount.of(execution.run.usage), prepared.worst)
        if execution.run.set_aside is not None:
            await execution.run.set_aside(prepared.worst)
        if isinstance(execution.step, ToolStep):
            attempt.slot = await self._quotas.take(execution.run.org_id, execution.step.tool, longest(execution))
            if mutates(execution):
                await self._intend(attempt, execution.step, prepared)

    async def _intend(self, attempt: Attempt, step: ToolStep, prepared: CallRequest) -> None:
        """Writes the intent down. If an earlier attempt may have been carried out, finds out first."""
        execution = attempt.execution
        arguments = await arguments_for(attempt, prepared)
        effect = self._effect(execution, step, arguments)
        attempt.attributes[names.IDEMPOTENCY_KEY] = effect.idempotency_key
        if attempt.in_doubt:
            attempt.effect = effect
            await self._recover(attempt, step, prepared, effect.idempotency_key)
        else:
            consumed = consumed_rows(attempt.standing.unused, effect.idempotency_key)
            await self._effects.intend(execution, effect, arguments, consumed, self._judge.consumptions(attempt))
            attempt.effect = effect

    def _effect(self, execution: StepExecution, step: ToolStep, arguments: Sealed) -> Effect:
        key = idempotency_key(execution.run.run_id, execution.effect_name, arguments.ref.digest)
        return Effect(
            execution.run.run_id,
            execution.effect_name,
            execution.run.org_id,
            step.tool,
            key,
            execution.attempt,
            arguments.ref,
        )

    async def _recover(self, attempt: Attempt, step: ToolStep, prepared: CallRequest, key: str) -> None:
        contract = attempt.execution.run.version.tools[step.tool].contract
        if contract.honours_idempotency:
            return  # the same key again is harmless
        if not contract.probe:
            raise StepError(
                f'it is unknown whether tool "{step.tool}" did its work before it was cut off',
                kind=FailureKind.PERMANENT,
            )
        probing = self._tools.probe(attempt.execution, prepared, key)
        attempt.done = await self._health.ask(attempt.admission, probing)
        attempt.in_doubt = attempt.done is not None

    # -- execute -----------------------------------------------------------------------------------------------

    async def _execute(self, attempt: Attempt) -> None:
        if attempt.done is not None:
            return  # the probe found it done, or it was known already
        execution, prepared, effect = attempt.execution, _known(attempt.prepared), attempt.effect
        executor = self._executor(execution)
        name = f"{executor.span_name} {prepared.question.resource}"
        with self._tracing.span(name, {**execution.run.attributes(), names.STEP_ID: execution.name}) as span:
            if effect is None:
                calling = executor.execute(execution, prepared)
            else:
                calling = await self._dispatch(attempt, prepared, effect)
            attempt.called = True
            attempt.done = await self._health.watch(attempt.admission, calling)
            span.set_attributes(attempt.done.attributes)

    async def _dispatch(self, attempt: Attempt, prepared: CallRequest, effect: Effect) -> Any:
        """The call of a mutating tool, ready to be made: planned, and on record that it is being made."""
        execution, plan = attempt.execution, None
        contract = execution.run.version.tools[effect.tool].contract
        if contract.commit:
            plan = await self._health.ask(attempt.admission, self._tools.plan(execution, prepared))
        await self._tools.fetch(execution)  # what is not there is no call that was cut off
        await self._judge.judge_again(attempt, prepared)  # another policy may have been activated meanwhile
        until = call_ends(contract)
        await self._effects.executing(execution, effect)
        attempt.dispatched = True
        return self._tools.execute(execution, prepared, key=effect.idempotency_key, plan=plan, until=until)

    # -- settle ------------------------------------------------------------------------------------------------

    async def _settle(self, attempt: Attempt) -> StepOutcome:
        execution, done = attempt.execution, _known(attempt.done)
        accepted, labels, findings = await self._accepted(attempt, done)
        attempt.sealed = await execution.run.artifacts.seal(execution.run.org_id, accepted, labels)
        output = attempt.sealed.ref
        execution.run.remember(output, done.value)
        attempt.attributes[names.OUTPUT_DIGEST] = output.digest
        facts = done.facts if done.facts is not None else facts_of(done.schema, done.value)
        request = await self._request(attempt)
        times = (attempt.began, self._clock.now())
        asked = request.ref if request else None
        event = StepSucceeded(execution.name, execution.attempt, *times, output, facts, done.usage, done.calls, asked)
        outcome = StepOutcome(event, artifacts=[attempt.sealed.row, *([request.row] if request else [])])
        if attempt.effect is not None:
            outcome.effects.append(attempt.effect.row("succeeded", output))
        if attempt.prepared is None:
            return outcome  # a look inside the run is in the journal; the record is of what reaches outside
        kept = None if attempt.reused else await self._lookups.row(execution, attempt.prepared, output)
        if kept is not None:
            outcome.results.append(kept)
        detail = {"output": output.digest, "attempt": execution.attempt, "success": True, **usage_detail(done.usage)}
        if findings:
            detail["findings"] = findings
        outcome.audit.append(entry_of(attempt, detail, self._clock.now()))
        return outcome

    async def _accepted(self, attempt: Attempt, done: CallResult) -> tuple[Accepted, Labels, list[str]]:
        """A result past the gate, with its labels and the findings. What is only a look inside the run has passed it before."""
        if attempt.prepared is None:
            return composed(done.value), done.labels, []
        stage = Stage.MODEL_OUTPUT if isinstance(attempt.execution.step, ModelStep) else Stage.TOOL_OUTPUT
        if attempt.reused in {"cache", "last_good"}:
            stage = Stage.RECALLED
        inspection = await inspect(done.value, stage, attempt.execution.run.org_id)
        labels = done.labels
        if inspection.personal:
            labels = replace(labels, sensitivity=max(labels.sensitivity, Sensitivity.PII))
        if inspection.findings:
            attempt.attributes[names.GUARD_FINDINGS] = inspection.findings
        return inspection.accepted, labels, inspection.findings

    async def _failed(self, attempt: Attempt, error: Exception) -> StepOutcome:
        """A failure as the machine sees it, with what was used and what may be in doubt."""
        execution, usage = attempt.execution, None
        if attempt.done is not None:
            usage = attempt.done.usage  # a good answer that could not be kept
        elif attempt.called and attempt.prepared and isinstance(execution.step, ModelStep):
            usage = self._models.usage_in(error, attempt.prepared)
        error_detail = await self._words(attempt, error)
        failure = failure_of(attempt, error, error_detail.ref if error_detail else None)
        request = await self._request(attempt)
        times = (attempt.began, self._clock.now())
        event = StepFailed(execution.name, execution.attempt, *times, failure, usage, request.ref if request else None)
        outcome = StepOutcome(event, artifacts=[one.row for one in (error_detail, request) if one is not None])
        if attempt.effect is not None and not failure.ambiguous:
            outcome.effects.append(attempt.effect.row("failed"))
        detail = {
            "attempt": execution.attempt,
            "success": False,
            "error": failure.code,
            "message": failure.message,
            "ambiguous": failure.ambiguous,
            **usage_detail(usage),
        }
        if isinstance(error, Denied):
            outcome.audit += self._judge.refusals(attempt)
        if isinstance(execution.step, ModelStep | ToolStep):
            outcome.audit.append(entry_of(attempt, detail, self._clock.now()))
        return outcome

    async def _words(self, attempt: Attempt, error: Exception) -> Sealed | None:
        """Seals the far side's error detail, with the labels of the call's input."""
        if not isinstance(error, StepError) or not error.error_detail or attempt.prepared is None:
            return None
        labels = attempt.prepared.labels.join(Labels(trust=Trust.TOOL))
        run = attempt.execution.run
        # Text for people and for an agent's next turn; no step binds to it, so personal data leaves it for good.
        inspection = await inspect(error.error_detail, Stage.HUMAN_TEXT, run.org_id)
        try:
            sealed = await run.artifacts.seal(run.org_id, inspection.accepted, labels)
        except Erased:
            return None
        run.remember(sealed.ref, inspection.value)  # an agent's next turn may read it before it is durable
        return sealed

    async def _request(self, attempt: Attempt) -> Sealed | None:
        """The rendered request of a model that was asked, as a value about the same people as all that went into it.

        None if one of them was erased meanwhile, or if it is larger than a stored value may be: the outcome must not be lost
        over the record of its request.
        """
        prepared = attempt.prepared
        if not attempt.called or prepared is None or prepared.request is None:
            return None
        run = attempt.execution.run
        try:
            return await run.artifacts.seal(run.org_id, composed(prepared.request), prepared.labels)
        except (Erased, PayloadTooLarge):
            return None

    # -- compensation ------------------------------------------------------------------------------------------

    async def compensate(self, execution: StepExecution) -> StepOutcome:
        """Undoes a completed mutating step; its key derives from the step's own, so a repetition is recognisable."""
        assert isinstance(execution.step, ToolStep)
        attempt = Attempt(execution, self._clock.now())
        attributes = {
            **execution.run.attributes(),
            names.STEP_ID: execution.name,
            names.STEP_ATTEMPT: execution.attempt,
        }
        with self._tracing.span(
            f"{names.COMPENSATION} {execution.path}", attributes, parent=execution.run.trace
        ) as span:
            try:
                return await self._compensate(attempt, execution.step)
            except (LeaseLost, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001  as in perform
                mark_failed(span, error)
                error_detail = await self._words(attempt, error)
                failure = failure_of(attempt, error, error_detail.ref if error_detail else None)
                now = self._clock.now()
                detail = {
                    "attempt": execution.attempt,
                    "success": False,
                    "error": failure.code,
                    "message": failure.message,
                }
                entry = entry_of(attempt, detail, now, "tool.compensation")
                event = CompensationFailed(execution.name, execution.attempt, attempt.began, now, failure)
                return StepOutcome(event, artifacts=[error_detail.row] if error_detail else [], audit=[entry])

    async def _compensate(self, attempt: Attempt, step: ToolStep) -> StepOutcome:
        execution = attempt.execution
        prepared = attempt.prepared = await self._tools.prepare(execution, compensate=True)
        arguments = await execution.run.artifacts.seal(
            execution.run.org_id, composed(prepared.payload), prepared.labels
        )
        effect = self._effect(execution, step, arguments)
        output = await execution.run.value(_known(execution.here.output))
        await self._tools.compensate(execution, prepared.payload, output, key=f"{effect.idempotency_key}:compensate")
        now = self._clock.now()
        entry = entry_of(attempt, {"attempt": execution.attempt, "success": True}, now, "tool.compensation")
        event = CompensationSucceeded(execution.name, execution.attempt, attempt.began, now)
        return StepOutcome(event, effects=[effect.row("compensated")], audit=[entry])

    def _executor(self, execution: StepExecution) -> ModelExecutor | ToolExecutor:
        return self._models if isinstance(execution.step, ModelStep) else self._tools


def _known(value: Any) -> Any:
    assert value is not None, "phases run in order"
    return value
