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

from typing import Any

from interlock.admission.gate import Health
from interlock.admission.quotas import CallQuotas
from interlock.base.clock import Clock
from interlock.base.errors import (
    ContractViolation,
    Deferred,
    Denied,
    Erased,
    FailureKind,
    LeaseLost,
    StepError,
    TargetDown,
    Unavailable,
)
from interlock.base.labels import Labels, Trust
from interlock.budget.ledger import Spending
from interlock.execution.attempt import Passage, entry_of, failure_of, is_found, longest, mutates, target_of, tokens
from interlock.execution.batch.reservations import is_batched
from interlock.execution.effects import Effect, EffectLedger, call_ends, idempotency_key
from interlock.execution.executors import ModelExecutor, Prepared, ToolExecutor
from interlock.execution.lookups import Lookups
from interlock.execution.steps import Outcome, Work
from interlock.guard.injection import scan
from interlock.machine.events import (
    CompensationFailed,
    CompensationSucceeded,
    Spent,
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
        health: Health,
        quotas: CallQuotas,
        tracing: Tracing,
        clock: Clock,
    ) -> None:
        self._models = models
        self._tools = tools
        self._lookups = lookups
        self._effects = effects
        self._health = health
        self._quotas = quotas
        self._tracing = tracing
        self._clock = clock

    async def perform(self, work: Work) -> Outcome:
        """One attempt at a step."""
        passage, pending = Passage(work), False
        attributes = {
            **work.run.attributes(),
            names.STEP_ID: work.name,
            names.STEP_KIND: work.step.kind,
            names.STEP_ATTEMPT: work.attempt,
        }
        with self._tracing.span(f"{names.STEP} {work.path}", attributes, parent=work.run.trace) as span:
            try:
                if isinstance(work.step, MapStep | SubworkflowStep):
                    passage.done = await self._lookups.inside(work)  # reaches nothing outside the run
                else:
                    await self._look_back(passage)
                    await self._admit(passage)
                    await self._reserve(passage)
                    await self._execute(passage)
                outcome = await self._settle(passage)
            except (LeaseLost, Unavailable):
                raise
            except Deferred as error:
                delay = error.retry_after if error.retry_after is not None else _ASK_AGAIN
                event = StepDeferred(work.name, work.attempt, self._clock.now(), delay, passage.in_doubt)
                outcome, pending = Outcome(event), error.pending
            except Exception as error:  # noqa: BLE001  whatever a step's work can raise becomes an event; a bug must not kill the worker
                mark_failed(span, error)
                outcome = await self._failed(passage, error)
            finally:
                self._health.leave(passage.admission)
                self._quotas.give_back(passage.slot)
                span.set_attributes(passage.attributes)
        if pending:
            work.run.ledger.hold(work.name)
            return outcome
        spent = getattr(outcome.event, "spent", Spent())
        work.run.ledger.use(work.name, Spending(spent.input_tokens + spent.output_tokens, spent.usd))
        return outcome

    async def _look_back(self, passage: Passage) -> None:
        """Whether an earlier attempt left the effect in doubt: known before anything of this one can fail."""
        work = passage.work
        if mutates(work) and (work.attempt > 1 or work.run.resumed or work.here.deferrals):
            passage.in_doubt = await self._effects.status(work) == "executing"

    # -- admit -------------------------------------------------------------------------------------------------

    async def _admit(self, passage: Passage) -> None:
        work = passage.work
        if isinstance(work.step, ToolStep) and work.step.tool not in work.run.version.workflow.allow:
            raise Denied(f'tool "{work.step.tool}" is not in this workflow\'s allow list')
        try:
            prepared = passage.prepared = await self._executor(work).prepare(work)
        except (StepError, ContractViolation):
            if work.fallback is None or work.fallback.value is None:
                raise
            passage.done, passage.reused = self._lookups.fixed(work, work.fallback.value), "value"
            return  # a fixed answer needs no arguments, whatever is wrong with them
        if prepared.stale:
            passage.attributes[names.STALE_STEPS] = list(prepared.stale)
        passage.answer = work.run.version.policy.decide(prepared.question)
        passage.attributes |= {
            names.POLICY_DECISION: "allow" if passage.answer.allowed else "deny",
            names.POLICY_VERSION: passage.answer.version,
            names.POLICY_REASONS: list(passage.answer.reasons),
        }
        if not passage.answer.allowed:
            question = prepared.question
            raise Denied(
                f"policy {passage.answer.version} denies {question.action} {question.resource}: {passage.answer.reasons[0]}"
            )
        await self._find(passage, prepared)
        if passage.done is None and not prepared.answered:
            try:
                target, tool = target_of(work)
                passage.admission = await self._health.admit(work.run.org_id, target, tool, seconds=longest(work))
            except TargetDown as error:
                if not is_batched(work):
                    raise
                raise Deferred(error.message, retry_after=error.retry_after, pending=True) from None

    async def _find(self, passage: Passage, prepared: Prepared) -> None:
        """An answer that is there already: allowed like the call it saves, but nobody is called."""
        work = passage.work
        if work.fallback is not None and is_found(work):
            passage.done = await self._lookups.found(work, work.fallback, prepared)
            passage.reused = "value" if work.fallback.value is not None else "last_good"
        else:
            passage.done = await self._lookups.cached(work, prepared)
            passage.reused = "cache" if passage.done is not None else None
        if passage.reused is not None:
            passage.attributes[names.REUSED] = passage.reused

    # -- reserve -----------------------------------------------------------------------------------------------

    async def _reserve(self, passage: Passage) -> None:
        if passage.done is not None:
            return  # costs nothing and changes nothing
        work, prepared = passage.work, _known(passage.prepared)
        spent = work.run.spent
        work.run.ledger.reserve(
            work.name,
            Spending(spent.input_tokens + spent.output_tokens, spent.usd),
            tokens=prepared.tokens,
            usd=prepared.usd,
        )
        if work.run.set_aside is not None:
            await work.run.set_aside(prepared.tokens, prepared.usd)
        if isinstance(work.step, ToolStep):
            passage.slot = await self._quotas.take(work.run.org_id, work.step.tool, longest(work))
            if mutates(work):
                await self._intend(passage, work.step, prepared)

    async def _intend(self, passage: Passage, step: ToolStep, prepared: Prepared) -> None:
        """Writes the intent down. If an earlier attempt may have been carried out, finds out first."""
        work = passage.work
        arguments = await work.run.artifacts.seal(work.run.org_id, prepared.payload, prepared.labels)
        effect = passage.effect = self._effect(work, step, arguments)
        passage.attributes[names.IDEMPOTENCY_KEY] = effect.idempotency_key
        if passage.in_doubt:
            await self._recover(passage, step, prepared, effect.idempotency_key)
        else:
            await self._effects.intend(work, effect, arguments)

    def _effect(self, work: Work, step: ToolStep, arguments: Sealed) -> Effect:
        key = idempotency_key(work.run.run_id, work.effect_name, arguments.ref.digest)
        return Effect(work.run.run_id, work.effect_name, work.run.org_id, step.tool, key, work.attempt, arguments.ref)

    async def _recover(self, passage: Passage, step: ToolStep, prepared: Prepared, key: str) -> None:
        contract = passage.work.run.version.tools[step.tool].contract
        if contract.honours_idempotency:
            return  # the same key again is harmless
        if not contract.probe:
            raise StepError(
                f'nobody can say whether tool "{step.tool}" did its work before it was cut off',
                kind=FailureKind.PERMANENT,
            )
        probing = self._tools.probe(passage.work, prepared, key)
        passage.done = await self._health.ask(passage.admission, probing)
        passage.in_doubt = passage.done is not None

    # -- execute -----------------------------------------------------------------------------------------------

    async def _execute(self, passage: Passage) -> None:
        if passage.done is not None:
            return  # the probe found it done, or it was known already
        work, prepared, effect = passage.work, _known(passage.prepared), passage.effect
        executor = self._executor(work)
        name = f"{executor.span_name} {prepared.question.resource}"
        with self._tracing.span(name, {**work.run.attributes(), names.STEP_ID: work.name}) as span:
            if effect is None:
                calling = executor.execute(work, prepared)
            else:
                calling = await self._hand_over(passage, prepared, effect)
            passage.done = await self._health.watch(passage.admission, calling)
            span.set_attributes(passage.done.attributes)

    async def _hand_over(self, passage: Passage, prepared: Prepared, effect: Effect) -> Any:
        """The call of a mutating tool, ready to be made: planned, and on record that it is being made."""
        work, plan = passage.work, None
        contract = work.run.version.tools[effect.tool].contract
        if contract.commit:
            plan = await self._health.ask(passage.admission, self._tools.plan(work, prepared))
        await self._tools.fetch(work)  # what is not there is no call that was cut off
        until = call_ends(contract)
        await self._effects.executing(work, effect)
        passage.handed_over = True
        return self._tools.execute(work, prepared, key=effect.idempotency_key, plan=plan, until=until)

    # -- settle ------------------------------------------------------------------------------------------------

    async def _settle(self, passage: Passage) -> Outcome:
        work, done = passage.work, _known(passage.done)
        findings = scan(done.value) if isinstance(work.step, ToolStep) else []
        if findings:
            passage.attributes[names.GUARD_FINDINGS] = findings
        passage.sealed = await work.run.artifacts.seal(work.run.org_id, done.value, done.labels)
        output = passage.sealed.ref
        work.run.remember(output, done.value)
        passage.attributes[names.OUTPUT_DIGEST] = output.digest
        facts = done.facts if done.facts is not None else facts_of(done.schema, done.value)
        event = StepSucceeded(work.name, work.attempt, self._clock.now(), output, facts, done.spent, done.calls)
        outcome = Outcome(event, artifacts=[passage.sealed.row])
        if passage.effect is not None:
            outcome.effects.append(passage.effect.row("succeeded", output))
        if passage.prepared is None:
            return outcome  # a look inside the run is in the journal; the record is of what reaches outside
        kept = None if passage.reused else await self._lookups.row(work, passage.prepared, output)
        if kept is not None:
            outcome.results.append(kept)
        detail = {"output": output.digest, "attempt": work.attempt, "success": True, **tokens(done.spent)}
        if findings:
            detail["findings"] = findings
        outcome.audit.append(entry_of(passage, detail, self._clock.now()))
        return outcome

    async def _failed(self, passage: Passage, error: Exception) -> Outcome:
        """A failure as the machine sees it, with what was spent and what may be in doubt."""
        work = passage.work
        spent = Spent()
        if passage.done is not None:
            spent = passage.done.spent  # a good answer that could not be kept
        elif passage.prepared and isinstance(work.step, ModelStep):
            spent = self._models.spent_in(error, passage.prepared)
        words = await self._words(passage, error)
        failure = failure_of(passage, error, words.ref if words else None)
        event = StepFailed(work.name, work.attempt, self._clock.now(), failure, spent)
        outcome = Outcome(event, artifacts=[words.row] if words else [])
        if passage.effect is not None and not failure.ambiguous:
            outcome.effects.append(passage.effect.row("failed"))
        detail = {
            "attempt": work.attempt,
            "success": False,
            "error": failure.code,
            "message": failure.message,
            "ambiguous": failure.ambiguous,
            **tokens(spent),
        }
        if isinstance(work.step, ModelStep | ToolStep):
            outcome.audit.append(entry_of(passage, detail, self._clock.now()))
        return outcome

    async def _words(self, passage: Passage, error: Exception) -> Sealed | None:
        """What the far side said about its failure, as a value about the same people as what it was given."""
        if not isinstance(error, StepError) or not error.words or passage.prepared is None:
            return None
        labels = passage.prepared.labels.join(Labels(trust=Trust.TOOL))
        run = passage.work.run
        try:
            sealed = await run.artifacts.seal(run.org_id, error.words, labels)
        except Erased:
            return None
        run.remember(sealed.ref, error.words)  # an agent's next turn may read it before it is durable
        return sealed

    # -- compensation ------------------------------------------------------------------------------------------

    async def compensate(self, work: Work) -> Outcome:
        """Undoes a completed mutating step; its key derives from the step's own, so a repetition is recognisable."""
        assert isinstance(work.step, ToolStep)
        passage = Passage(work)
        attributes = {**work.run.attributes(), names.STEP_ID: work.name, names.STEP_ATTEMPT: work.attempt}
        with self._tracing.span(f"{names.COMPENSATION} {work.path}", attributes, parent=work.run.trace) as span:
            try:
                return await self._undo(passage, work.step)
            except (LeaseLost, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001  as in perform
                mark_failed(span, error)
                words = await self._words(passage, error)
                failure = failure_of(passage, error, words.ref if words else None)
                now = self._clock.now()
                detail = {"attempt": work.attempt, "success": False, "error": failure.code, "message": failure.message}
                entry = entry_of(passage, detail, now, "tool.compensation")
                event = CompensationFailed(work.name, work.attempt, now, failure)
                return Outcome(event, artifacts=[words.row] if words else [], audit=[entry])

    async def _undo(self, passage: Passage, step: ToolStep) -> Outcome:
        work = passage.work
        prepared = passage.prepared = await self._tools.prepare(work, undo=True)
        arguments = await work.run.artifacts.seal(work.run.org_id, prepared.payload, prepared.labels)
        effect = self._effect(work, step, arguments)
        output = await work.run.value(_known(work.here.output))
        await self._tools.compensate(work, prepared.payload, output, key=f"{effect.idempotency_key}:undo")
        now = self._clock.now()
        entry = entry_of(passage, {"attempt": work.attempt, "success": True}, now, "tool.compensation")
        event = CompensationSucceeded(work.name, work.attempt, now)
        return Outcome(event, effects=[effect.row("compensated")], audit=[entry])

    def _executor(self, work: Work) -> ModelExecutor | ToolExecutor:
        return self._models if isinstance(work.step, ModelStep) else self._tools


def _known(value: Any) -> Any:
    assert value is not None, "phases run in order"
    return value
