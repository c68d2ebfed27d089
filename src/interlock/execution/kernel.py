"""The choke point. Every call passes the same five phases, in this module and nowhere else:

    admit    allowlist, policy, kept results, breaker  → refused, found, or ready
    reserve  budget, quota, effect ledger              → written down before it is done
    execute  isolated, with a deadline                 → a result, or an error that says what may be in doubt
    settle   guard, sealed result, facts, true usage   → what the caller gets
    record   audit entry, rows, span attributes        → committed by the caller together with what comes of the call

`call` and `compensate` never raise for what a model, a tool or a policy did: that is an outcome. They raise `LeaseLost` (another
worker owns the run) and `Unavailable` (no database), after which the caller lets go.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

from interlock.admission.gate import CallGate
from interlock.admission.quotas import CallQuotas
from interlock.base.accepted import Accepted
from interlock.base.clock import Clock
from interlock.base.errors import (
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
from interlock.base.json import Json
from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.base.usage import Usage
from interlock.budget.reservations import Amount
from interlock.execution.approvals import consumed_rows
from interlock.execution.attempt import Attempt, usage_detail
from interlock.execution.call import (
    Call,
    CallDeferred,
    CallFailed,
    CallOutcome,
    CallResult,
    CallSucceeded,
    ModelCall,
    ToolCall,
)
from interlock.execution.effects import Effect, EffectLedger, EffectSite, call_ends
from interlock.execution.executors.models import ModelExecutor
from interlock.execution.executors.tools import ToolExecutor
from interlock.execution.failures import failure_of
from interlock.execution.judge import Judge, LacksApproval
from interlock.execution.results import KeptResults
from interlock.guard.gate import Stage, composed, inspect
from interlock.store.artifacts import Sealed
from interlock.telemetry import names
from interlock.telemetry.tracing import Tracing
from interlock.workflows.facts import facts_of

_ASK_AGAIN = 1.0  # seconds, if a limit does not say when it will have room


class Kernel:
    """Takes calls through the five phases."""

    def __init__(
        self,
        *,
        models: ModelExecutor,
        tools: ToolExecutor,
        results: KeptResults,
        effects: EffectLedger,
        gate: CallGate,
        quotas: CallQuotas,
        tracing: Tracing,
        clock: Clock,
        judge: Judge,
    ) -> None:
        self._judge = judge
        self._models = models
        self._tools = tools
        self._results = results
        self._effects = effects
        self._gate = gate
        self._quotas = quotas
        self._tracing = tracing
        self._clock = clock

    async def in_doubt(self, site: EffectSite) -> bool:
        """True if an earlier attempt at a mutating call may have done its work; asked before its arguments are known."""
        return await self._effects.status(site) == "executing"

    async def call(self, call: Call) -> CallOutcome:
        """Makes a call, or finds its result."""
        attempt = Attempt(call, in_doubt=isinstance(call, ToolCall) and call.in_doubt)
        outcome: CallOutcome
        try:
            await self._admit(attempt)
            await self._reserve(attempt)
            outcome = await self._settle(attempt, await self._execute(attempt))
        except (LeaseLost, Unavailable):
            raise
        except Deferred as error:
            delay = error.retry_after if error.retry_after is not None else _ASK_AGAIN
            outcome = CallDeferred(at=self._clock.now(), delay=delay, in_doubt=attempt.in_doubt, pending=error.pending)
        except LacksApproval as lack:
            outcome = self._judge.lacking(attempt, lack)
        except Exception as error:  # noqa: BLE001  every exception of a call becomes its outcome; a bug must not kill the worker
            outcome = await self._failed(attempt, error)
        finally:
            self._gate.leave(attempt.admission)
            self._quotas.give_back(attempt.slot)
        outcome.attributes = attempt.attributes
        if not (isinstance(outcome, CallDeferred) and outcome.pending):
            usage = outcome.usage if isinstance(outcome, CallSucceeded | CallFailed) else None
            call.caller.finish(call, Amount.of(usage or Usage()))
        return outcome

    # -- admit -------------------------------------------------------------------------------------------------

    async def _admit(self, attempt: Attempt) -> None:
        call = attempt.call
        if isinstance(call, ToolCall) and call.tool.contract.name not in call.allow:
            raise Denied(f'tool "{call.tool.contract.name}" is not in this workflow\'s allow list')
        if call.stale:
            attempt.attributes[names.STALE_STEPS] = list(call.stale)
        await self._judge.judge(attempt)
        attempt.result, attempt.reused = await self._results.find(call)
        if attempt.reused is not None:
            attempt.attributes[names.REUSED] = attempt.reused
        if attempt.result is not None or call.answered:
            return
        bundle = (call.tool.contract.name, call.tool.bundle) if isinstance(call, ToolCall) else None
        try:
            attempt.admission = await self._gate.admit(call.caller.org_id, call.target, bundle, seconds=call.seconds)
        except TargetDown as error:
            if not call.lasting:
                raise
            raise Deferred(error.message, retry_after=error.retry_after, pending=True) from None

    # -- reserve -----------------------------------------------------------------------------------------------

    async def _reserve(self, attempt: Attempt) -> None:
        if attempt.result is not None:
            return  # costs nothing and changes nothing
        call = attempt.call
        await call.caller.reserve(call)
        if isinstance(call, ToolCall):
            tool = call.tool.contract.name
            attempt.slot = await self._quotas.take(call.caller.org_id, tool, call.seconds)
            if call.effect is not None:
                await self._intend(attempt, call, call.effect)

    async def _intend(self, attempt: Attempt, call: ToolCall, site: EffectSite) -> None:
        """Writes the intent down. If an earlier attempt may have been carried out, finds out first."""
        arguments = await attempt.sealed_arguments(call)
        effect = site.effect(arguments.ref)
        attempt.attributes[names.IDEMPOTENCY_KEY] = effect.idempotency_key
        if attempt.in_doubt:
            attempt.effect = effect
            await self._recover(attempt, call, effect)
        else:
            consumed = consumed_rows(attempt.standing.unused, effect.idempotency_key)
            entries = self._judge.consumptions(attempt)
            await self._effects.intend(call.caller, effect, arguments, consumed, entries)
            attempt.effect = effect

    async def _recover(self, attempt: Attempt, call: ToolCall, effect: Effect) -> None:
        contract = call.tool.contract
        if contract.honours_idempotency:
            return  # the same key again is harmless
        if not contract.probe:
            raise StepError(
                f'it is unknown whether tool "{contract.name}" did its work before it was cut off',
                kind=FailureKind.PERMANENT,
            )
        probing = self._tools.probe(call, effect.idempotency_key)
        attempt.result = await self._gate.ask(attempt.admission, probing)
        attempt.in_doubt = attempt.result is not None

    # -- execute -----------------------------------------------------------------------------------------------

    async def _execute(self, attempt: Attempt) -> CallResult:
        if attempt.result is not None:
            return attempt.result  # the probe found it done, or it was known already
        call = attempt.call
        kind, resource = (
            (self._models.span_name, call.alias)
            if isinstance(call, ModelCall)
            else (self._tools.span_name, call.tool.contract.name)
        )
        attributes = {**call.caller.attributes(), names.STEP_ID: call.name}
        with self._tracing.span(f"{kind} {resource}", attributes) as span:
            calling: Awaitable[CallResult]
            if isinstance(call, ModelCall):
                calling = self._models.execute(call)
            elif attempt.effect is None:
                calling = self._tools.execute(call)
            else:
                calling = await self._dispatch(attempt, call, attempt.effect)
            attempt.called = True
            attempt.result = await self._gate.watch(attempt.admission, calling)
            span.set_attributes(attempt.result.attributes)
        return attempt.result

    async def _dispatch(self, attempt: Attempt, call: ToolCall, effect: Effect) -> Awaitable[CallResult]:
        """The call of a mutating tool, ready to be made: planned, and on record that it is being made."""
        plan, contract = None, call.tool.contract
        if contract.commit:
            plan = await self._gate.ask(attempt.admission, self._tools.plan(call))
        await self._tools.fetch(call)  # what is not there is no call that was cut off
        await self._judge.judge_again(attempt)  # another policy may have been activated meanwhile
        until = call_ends(contract)
        await self._effects.executing(call.caller, effect)
        attempt.dispatched = True
        return self._tools.execute(call, key=effect.idempotency_key, plan=plan, until=until)

    # -- settle and record -------------------------------------------------------------------------------------

    async def _settle(self, attempt: Attempt, result: CallResult) -> CallSucceeded:
        call, caller = attempt.call, attempt.call.caller
        accepted, labels, findings = await self._accepted(attempt, result)
        sealed = await caller.artifacts.seal(caller.org_id, accepted, labels)
        output = sealed.ref
        caller.remember(output, result.value)
        attempt.attributes[names.OUTPUT_DIGEST] = output.digest
        facts = result.facts if result.facts is not None else facts_of(result.schema, result.value)
        request = await self._request(attempt)
        outcome = CallSucceeded(
            at=self._clock.now(), output=output, facts=facts, usage=result.usage, wanted=result.wanted
        )
        self._record_request(outcome, request)
        outcome.artifacts.insert(0, sealed.row)
        if attempt.effect is not None:
            outcome.effects.append(attempt.effect.succeeded(output))
        kept = None if attempt.reused else await self._results.row(call, output)
        if kept is not None:
            outcome.results.append(kept)
        detail: dict[str, Json] = {
            "output": output.digest,
            "attempt": call.attempt,
            "success": True,
            **usage_detail(result.usage),
        }
        if findings:
            detail["findings"] = findings
        outcome.audit.append(attempt.entry(detail, self._clock.now()))
        return outcome

    @staticmethod
    async def _accepted(attempt: Attempt, result: CallResult) -> tuple[Accepted, Labels, list[str]]:
        """A result past the guard gate, with its labels and the findings."""
        stage = Stage.MODEL_OUTPUT if isinstance(attempt.call, ModelCall) else Stage.TOOL_OUTPUT
        if attempt.reused in {"cache", "last_good"}:
            stage = Stage.RECALLED
        inspection = await inspect(result.value, stage, attempt.call.caller.org_id)
        labels = result.labels
        if inspection.personal:
            labels = replace(labels, sensitivity=max(labels.sensitivity, Sensitivity.PII))
        if inspection.findings:
            attempt.attributes[names.GUARD_FINDINGS] = inspection.findings
        return inspection.accepted, labels, inspection.findings

    async def _failed(self, attempt: Attempt, error: Exception) -> CallFailed:
        """A failure, with what was used and what may be in doubt."""
        call, usage = attempt.call, None
        if attempt.result is not None:
            usage = attempt.result.usage  # a good answer that could not be kept
        elif attempt.called and isinstance(call, ModelCall):
            usage = self._models.usage_in(error, call)
        error_detail = await self._error_detail(call, error)
        failure = failure_of(error, attempt.circumstances(), error_detail.ref if error_detail else None)
        request = await self._request(attempt)
        outcome = CallFailed(at=self._clock.now(), failure=failure, error=error, usage=usage)
        self._record_request(outcome, request)
        if error_detail is not None:
            outcome.artifacts.insert(0, error_detail.row)
        if attempt.effect is not None and not failure.ambiguous:
            outcome.effects.append(attempt.effect.failed())
        detail: dict[str, Json] = {
            "attempt": call.attempt,
            "success": False,
            "error": failure.code,
            "message": failure.message,
            "ambiguous": failure.ambiguous,
            **usage_detail(usage),
        }
        if isinstance(error, Denied):
            outcome.audit += self._judge.refusals(attempt)
        outcome.audit.append(attempt.entry(detail, self._clock.now()))
        return outcome

    @staticmethod
    async def _error_detail(call: Call, error: Exception) -> Sealed | None:
        """Seals the far side's text about its failure, with the labels of the call's input."""
        if not isinstance(error, StepError) or not error.error_detail:
            return None
        caller = call.caller
        # Text for people and for an agent's next turn; no step binds to it, so personal data leaves it for good.
        inspection = await inspect(error.error_detail.to_json(), Stage.HUMAN_TEXT, caller.org_id)
        try:
            sealed = await caller.artifacts.seal(
                caller.org_id, inspection.accepted, call.labels.passed(call.source, Trust.TOOL)
            )
        except Erased:
            return None
        caller.remember(sealed.ref, inspection.value)  # an agent's next turn may read it before it is durable
        return sealed

    @staticmethod
    async def _request(attempt: Attempt) -> Sealed | None:
        """The rendered request of a model that was asked, as a value about the same people as all that went into it.

        None if one of them was erased meanwhile, or if it is larger than a stored value may be: the outcome must not be lost
        over the record of its request.
        """
        call = attempt.call
        if not attempt.called or not isinstance(call, ModelCall):
            return None
        try:
            return await call.caller.artifacts.seal(call.caller.org_id, composed(call.plain), call.labels)
        except (Erased, PayloadTooLarge):
            return None

    @staticmethod
    def _record_request(outcome: CallSucceeded | CallFailed, request: Sealed | None) -> None:
        if request is not None:
            outcome.request = request.ref
            outcome.artifacts.append(request.row)

    # -- compensation ------------------------------------------------------------------------------------------

    async def compensate(self, call: ToolCall, output: Json) -> CallOutcome:
        """Undoes a completed mutating call, which gave `output`.

        Its key derives from the call's own, so a repetition is recognisable.
        """
        attempt = Attempt(call)
        try:
            assert call.effect is not None, "only a mutating call is undone"
            arguments = await attempt.sealed_arguments(call)
            effect = call.effect.effect(arguments.ref)
            await self._tools.compensate(call, output, key=f"{effect.idempotency_key}:compensate")
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001  as in `call`
            return await self._not_compensated(attempt, error)
        now = self._clock.now()
        entry = attempt.entry({"attempt": call.attempt, "success": True}, now, "tool.compensation")
        return CallSucceeded(
            at=now,
            output=arguments.ref,
            facts={},
            usage=None,
            effects=[effect.compensated()],
            audit=[entry],
        )

    async def _not_compensated(self, attempt: Attempt, error: Exception) -> CallFailed:
        error_detail = await self._error_detail(attempt.call, error)
        failure = failure_of(error, attempt.circumstances(), error_detail.ref if error_detail else None)
        now = self._clock.now()
        detail: dict[str, Json] = {
            "attempt": attempt.call.attempt,
            "success": False,
            "error": failure.code,
            "message": failure.message,
        }
        entry = attempt.entry(detail, now, "tool.compensation")
        rows = [error_detail.row] if error_detail else []
        return CallFailed(at=now, failure=failure, error=error, artifacts=rows, audit=[entry])
