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

from dataclasses import dataclass, field
from typing import Any

from interlock.audit.log import Entry, EventType
from interlock.base.clock import Clock
from interlock.base.errors import (
    BudgetExceeded,
    Denied,
    Erased,
    FailureKind,
    InterlockError,
    InvalidInput,
    LeaseLost,
    NothingHappened,
    SandboxError,
    StepError,
    Unavailable,
)
from interlock.base.labels import Labels, Trust
from interlock.base.refs import Ref
from interlock.budget.ledger import Spending
from interlock.guard.injection import scan
from interlock.policy.decision import Answer
from interlock.runtime.effects import Effect, EffectLedger, idempotency_key
from interlock.runtime.executors import Done, ModelExecutor, Prepared, ToolExecutor
from interlock.runtime.work import Outcome, Work
from interlock.store.artifacts import Sealed
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.telemetry.tracing import Tracing, mark_failed
from interlock.workflows.events import (
    CompensationFailed,
    CompensationSucceeded,
    Failure,
    Spent,
    StepFailed,
    StepSucceeded,
)
from interlock.workflows.facts import facts_of
from interlock.workflows.spec import ModelStep, ToolStep


@dataclass(slots=True)
class _Passage:
    """What one passage through the phases has gathered so far; what failed is recorded with what was known."""

    work: Work
    prepared: Prepared | None = None
    answer: Answer | None = None
    effect: Effect | None = None
    in_doubt: bool = False  # an earlier attempt may have done its work
    handed_over: bool = False  # the tool may have got the call
    done: Done | None = None
    sealed: Sealed | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


class Kernel:
    """Takes work through the five phases."""

    def __init__(
        self, *, models: ModelExecutor, tools: ToolExecutor, effects: EffectLedger, tracing: Tracing, clock: Clock
    ) -> None:
        self._models = models
        self._tools = tools
        self._effects = effects
        self._tracing = tracing
        self._clock = clock

    async def perform(self, work: Work) -> Outcome:
        """One attempt at a model or tool step."""
        passage = _Passage(work)
        attributes = {
            **work.run.attributes(),
            names.STEP_ID: work.step.id,
            names.STEP_KIND: work.step.kind,
            names.STEP_ATTEMPT: work.attempt,
        }
        with self._tracing.span(f"{names.STEP} {work.step.id}", attributes, parent=work.run.trace) as span:
            try:
                await self._look_back(passage)
                await self._admit(passage)
                await self._reserve(passage)
                await self._execute(passage)
                outcome = await self._settle(passage)
            except (LeaseLost, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001  whatever a step's work can raise becomes an event; a bug must not kill the worker
                mark_failed(span, error)
                outcome = await self._failed(passage, error)
            finally:
                span.set_attributes(passage.attributes)
        spent = outcome.event.spent
        work.run.ledger.use(work.step.id, Spending(spent.input_tokens + spent.output_tokens, spent.usd))
        return outcome

    async def _look_back(self, passage: _Passage) -> None:
        """Whether an earlier attempt left the effect in doubt: known before anything of this one can fail."""
        work = passage.work
        if _mutates(work) and (work.attempt > 1 or work.run.resumed):
            passage.in_doubt = await self._effects.status(work) == "executing"

    # -- admit -------------------------------------------------------------------------------------------------

    async def _admit(self, passage: _Passage) -> None:
        work = passage.work
        if isinstance(work.step, ToolStep) and work.step.tool not in work.run.version.workflow.allow:
            raise Denied(f'tool "{work.step.tool}" is not in this workflow\'s allow list')
        passage.prepared = await self._executor(work).prepare(work)
        passage.answer = work.run.version.policy.decide(passage.prepared.question)
        passage.attributes |= {
            names.POLICY_DECISION: "allow" if passage.answer.allowed else "deny",
            names.POLICY_VERSION: passage.answer.version,
            names.POLICY_REASONS: list(passage.answer.reasons),
        }
        if not passage.answer.allowed:
            question = passage.prepared.question
            raise Denied(
                f"policy {passage.answer.version} denies {question.action} {question.resource}: {passage.answer.reasons[0]}"
            )

    # -- reserve -----------------------------------------------------------------------------------------------

    async def _reserve(self, passage: _Passage) -> None:
        work, prepared = passage.work, _known(passage.prepared)
        spent = work.run.spent
        work.run.ledger.reserve(
            work.step.id,
            Spending(spent.input_tokens + spent.output_tokens, spent.usd),
            tokens=prepared.tokens,
            usd=prepared.usd,
        )
        if isinstance(work.step, ToolStep) and _mutates(work):
            await self._intend(passage, work.step, prepared)

    async def _intend(self, passage: _Passage, step: ToolStep, prepared: Prepared) -> None:
        """Writes the intent down. If an earlier attempt may have been carried out, finds out first."""
        work = passage.work
        arguments = await work.run.artifacts.seal(work.run.org_id, prepared.payload, prepared.labels)
        key = idempotency_key(work.run.run_id, step.id, arguments.ref.digest)
        passage.effect = Effect(work.run.run_id, step.id, work.run.org_id, step.tool, key, work.attempt, arguments.ref)
        passage.attributes[names.IDEMPOTENCY_KEY] = key
        if passage.in_doubt:
            await self._recover(passage, step, prepared, key)
        else:
            await self._effects.intend(work, passage.effect, arguments)

    async def _recover(self, passage: _Passage, step: ToolStep, prepared: Prepared, key: str) -> None:
        contract = passage.work.run.version.tools[step.tool].contract
        if contract.honours_idempotency:
            return  # the same key again is harmless
        if not contract.probe:
            raise StepError(
                f'nobody can say whether tool "{step.tool}" did its work before it was cut off',
                kind=FailureKind.PERMANENT,
            )
        passage.done = await self._tools.probe(passage.work, prepared, key)
        passage.in_doubt = passage.done is not None

    # -- execute -----------------------------------------------------------------------------------------------

    async def _execute(self, passage: _Passage) -> None:
        work, prepared = passage.work, _known(passage.prepared)
        if passage.done is not None:
            return  # the probe found it done
        if passage.effect is not None:
            await self._effects.executing(work, passage.effect)
            passage.handed_over = True
        key = passage.effect.idempotency_key if passage.effect is not None else None
        executor = self._executor(work)
        name = f"{executor.span_name} {prepared.question.resource}"
        with self._tracing.span(name, {**work.run.attributes(), names.STEP_ID: work.step.id}) as span:
            passage.done = await executor.execute(work, prepared, key=key)
            span.set_attributes(passage.done.attributes)

    # -- settle ------------------------------------------------------------------------------------------------

    async def _settle(self, passage: _Passage) -> Outcome:
        work, done = passage.work, _known(passage.done)
        findings = scan(done.value) if isinstance(work.step, ToolStep) else []
        if findings:
            passage.attributes[names.GUARD_FINDINGS] = findings
        passage.sealed = await work.run.artifacts.seal(work.run.org_id, done.value, done.labels)
        output = passage.sealed.ref
        work.run.remember(output, done.value)
        passage.attributes[names.OUTPUT_DIGEST] = output.digest
        event = StepSucceeded(
            work.step.id, work.attempt, self._clock.now(), output, facts_of(done.schema, done.value), done.spent
        )
        outcome = Outcome(event, artifacts=[passage.sealed.row])
        if passage.effect is not None:
            outcome.effects.append(passage.effect.row("succeeded", output))
        detail = {"output": output.digest, "attempt": work.attempt, "success": True, **_tokens(done.spent)}
        if findings:
            detail["findings"] = findings
        outcome.audit.append(self._entry(passage, detail))
        return outcome

    async def _failed(self, passage: _Passage, error: Exception) -> Outcome:
        """A failure as the machine sees it, with what was spent and what may be in doubt."""
        work = passage.work
        spent = Spent()
        if passage.done is not None:
            spent = passage.done.spent  # a good answer that could not be kept
        elif passage.prepared and isinstance(work.step, ModelStep):
            spent = self._models.spent_in(error, passage.prepared)
        words = await self._words(passage, error)
        failure = self._failure(passage, error, words)
        event = StepFailed(work.step.id, work.attempt, self._clock.now(), failure, spent)
        outcome = Outcome(event, artifacts=[words.row] if words else [])
        if passage.effect is not None and not failure.ambiguous:
            outcome.effects.append(passage.effect.row("failed"))
        detail = {
            "attempt": work.attempt,
            "success": False,
            "error": failure.code,
            "message": failure.message,
            "ambiguous": failure.ambiguous,
            **_tokens(spent),
        }
        outcome.audit.append(self._entry(passage, detail))
        return outcome

    async def _words(self, passage: _Passage, error: Exception) -> Sealed | None:
        """What the far side said about its failure, as a value about the same people as what it was given."""
        if not isinstance(error, StepError) or not error.words or passage.prepared is None:
            return None
        labels = passage.prepared.labels.join(Labels(trust=Trust.TOOL))
        try:
            return await passage.work.run.artifacts.seal(passage.work.run.org_id, error.words, labels)
        except Erased:
            return None

    def _failure(self, passage: _Passage, error: Exception, words: Sealed | None) -> Failure:
        if isinstance(error, InterlockError):
            code, message = error.code, error.message
        else:
            code, message = "internal", f"an internal error in {type(error).__name__}; the log has the details"
            log(names.LOG_INTERNAL, str(error), level="error", step=passage.work.step.id, exc_info=error)
        kind, retry_after = FailureKind.PERMANENT, None
        if isinstance(error, StepError):
            kind, retry_after = error.kind, error.retry_after
        elif isinstance(error, BudgetExceeded):
            kind = FailureKind.BUDGET
        elif isinstance(error, Denied):
            kind = FailureKind.DENIED
        elif isinstance(error, InvalidInput):
            kind = FailureKind.INVALID
        # That this attempt surely did nothing says nothing about an earlier one.
        ambiguous = passage.in_doubt or (passage.handed_over and not isinstance(error, SandboxError | NothingHappened))
        if ambiguous:
            # What is not the tool's failure (a broken contract, a refusal, an erased value) comes again in every
            # attempt; only a person can say what it means.
            hopeless = not isinstance(error, StepError) or not _knowable(passage.work)
            kind = (
                FailureKind.PERMANENT
                if hopeless
                else (kind if kind is FailureKind.RATE_LIMITED else FailureKind.TRANSIENT)
            )
        return Failure(kind, code, message, retry_after, ambiguous, words.ref if words else None)

    # -- compensation ------------------------------------------------------------------------------------------

    async def compensate(self, work: Work) -> Outcome:
        """Undoes a completed mutating step; its key derives from the step's own, so a repetition is recognisable."""
        assert isinstance(work.step, ToolStep)
        passage = _Passage(work)
        attributes = {**work.run.attributes(), names.STEP_ID: work.step.id, names.STEP_ATTEMPT: work.attempt}
        with self._tracing.span(f"{names.COMPENSATION} {work.step.id}", attributes, parent=work.run.trace) as span:
            try:
                return await self._undo(passage, work.step)
            except (LeaseLost, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001  as in perform
                mark_failed(span, error)
                words = await self._words(passage, error)
                failure = self._failure(passage, error, words)
                event = CompensationFailed(work.step.id, work.attempt, self._clock.now(), failure)
                detail = {"attempt": work.attempt, "success": False, "error": failure.code, "message": failure.message}
                entry = self._entry(passage, detail, "tool.compensation")
                return Outcome(event, artifacts=[words.row] if words else [], audit=[entry])

    async def _undo(self, passage: _Passage, step: ToolStep) -> Outcome:
        work = passage.work
        prepared = passage.prepared = await self._tools.prepare(work)
        arguments = await work.run.artifacts.seal(work.run.org_id, prepared.payload, prepared.labels)
        key = idempotency_key(work.run.run_id, step.id, arguments.ref.digest)
        ref: Ref = work.state.outputs[step.id]
        await self._tools.compensate(work, prepared.payload, await work.run.value(ref), key=f"{key}:undo")
        effect = Effect(work.run.run_id, step.id, work.run.org_id, step.tool, key, work.attempt, arguments.ref)
        entry = self._entry(passage, {"attempt": work.attempt, "success": True}, "tool.compensation")
        event = CompensationSucceeded(step.id, work.attempt, self._clock.now())
        return Outcome(event, effects=[effect.row("compensated")], audit=[entry])

    # -- record ------------------------------------------------------------------------------------------------

    def _entry(self, passage: _Passage, detail: dict[str, Any], event_type: EventType | None = None) -> Entry:
        work, answer = passage.work, passage.answer
        step = work.step
        model = isinstance(step, ModelStep)
        resource = (
            f"model:{work.run.version.models[step.model]}" if isinstance(step, ModelStep) else f"tool:{step.tool}"
        )
        log(
            names.LOG_STEP_FINISHED if detail["success"] else names.LOG_STEP_FAILED,
            level="info" if detail["success"] else "warning",
            run_id=work.run.run_id,
            step=step.id,
            **detail,
        )
        return Entry(
            org_id=work.run.org_id,
            event_type=event_type or ("model.call" if model else "tool.call"),
            actor=work.run.principal.actor,
            action="call_model" if model else ("compensate" if event_type else "call_tool"),
            resource=resource,
            at=self._clock.now(),
            decision="none" if answer is None else ("allow" if answer.allowed else "deny"),
            run_id=work.run.run_id,
            trace_id=work.run.trace.trace_id,
            policy_version=work.run.version.policy.version,
            detail={"step": step.id, **detail},
        )

    def _executor(self, work: Work) -> ModelExecutor | ToolExecutor:
        return self._models if isinstance(work.step, ModelStep) else self._tools


def _mutates(work: Work) -> bool:
    tool = work.run.version.tools.get(work.step.tool) if isinstance(work.step, ToolStep) else None
    return tool is not None and tool.contract.mutating


def _knowable(work: Work) -> bool:
    """Whether the tool can tell, or does not care, if its work was done before."""
    assert isinstance(work.step, ToolStep)
    contract = work.run.version.tools[work.step.tool].contract
    return contract.honours_idempotency or contract.probe


def _known(value: Any) -> Any:
    assert value is not None, "phases run in order"
    return value


def _tokens(spent: Spent) -> dict[str, Any]:
    if not spent.input_tokens and not spent.output_tokens:
        return {}
    return {"input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens, "usd": f"{spent.usd:.6f}"}
