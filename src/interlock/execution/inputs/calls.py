"""Calls of steps: what a model or tool step asks for, with all that the kernel needs to know about it."""

from __future__ import annotations

from typing import Any, Protocol

from interlock.base.clock import Clock
from interlock.base.errors import FailureKind, IntegrityError, Unpriced
from interlock.base.money import FREE
from interlock.budget.prices import cost_of
from interlock.budget.reservations import Amount
from interlock.execution.batch.calls import BatchedCalls
from interlock.execution.batch.outstanding import is_batched
from interlock.execution.batch.values import plain_of
from interlock.execution.call import Call, ModelCall, Reuse, ToolCall
from interlock.execution.executors.models import CORRECTIONS
from interlock.execution.inputs.arguments import arguments_of
from interlock.execution.inputs.conversation import conversation
from interlock.execution.run import StepExecution
from interlock.gateway.provider import Message, ModelRequest, Provider
from interlock.machine.names import DEADLINE
from interlock.machine.state import limit_key
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import ModelStep, ToolStep

# Characters a token stands for at least, in the scripts and tokenizers we know; for reservations only.
_CHARACTERS_PER_TOKEN = 2.5


class Models(Protocol):
    """Resolves a version's model pin to a provider and the provider's own name for the model."""

    def resolve(self, pin: str) -> tuple[Provider, str]: ...


class StepCalls:
    """Makes the calls of steps."""

    def __init__(self, models: Models, batched: BatchedCalls, clock: Clock) -> None:
        self._models = models
        self._batched = batched
        self._clock = clock

    async def of(self, execution: StepExecution, *, in_doubt: bool = False) -> Call:
        """The call of a model or tool step.

        Args:
            in_doubt: an earlier attempt at the step may have done its work.

        Raises:
            ContractViolation: the input does not fit, reads a step that did not run, or something too old.
            StepError, Erased, IntegrityError: the call cannot be made.
        """
        if isinstance(execution.step, ModelStep):
            return await self._model(execution, execution.step)
        return await self.tool(execution, in_doubt=in_doubt)

    async def tool(self, execution: StepExecution, *, in_doubt: bool = False, compensate: bool = False) -> ToolCall:
        """The call of a tool step; to compensate it, with the arguments it was made with, however old they are by now."""
        step, version, fallback = execution.step, execution.run.version, execution.fallback
        assert isinstance(step, ToolStep)
        tool = version.tools.get(step.tool)
        if tool is None:
            raise IntegrityError(f'version {version.version} has no tool "{step.tool}"; deploy the workflow again')
        contract = tool.contract
        bound = await arguments_of(execution, now=None if compensate else self._clock.now())
        check_value(version.tool_input_validators[step.tool], bound.value, what=f'tool "{step.tool}": arguments')
        return ToolCall(
            caller=execution.run,
            name=execution.name,
            path=execution.path,
            attempt=execution.attempt,
            labels=bound.labels,
            schema=contract.output,
            seconds=contract.call_seconds * (1 + contract.commit + contract.probe),
            stale=tuple(bound.stale),
            reuse=_reuse(execution, contract.cache),
            kept=_is_kept(execution, contract.cache),
            fixed=fallback.value if fallback is not None else None,
            alternative=_has_alternative(execution),
            tool=tool,
            arguments=bound.value,
            allow=frozenset(version.workflow.allow),
            checks=version.tool_output_validators[step.tool],
            max_age=fallback.max_age if fallback is not None else None,
            effect=execution.effect,
            in_doubt=in_doubt,
            approvable=execution.here.asked > 0 or execution.path in version.covered.values(),
        )

    async def _model(self, execution: StepExecution, step: ModelStep) -> ModelCall:
        version, fallback, batch = execution.run.version, execution.fallback, is_batched(execution)
        path, here = execution.path, execution.here
        # What a call under way was made with was fresh then.
        run = execution.run
        status = (
            await self._batched.status(run.run_id, execution.name, execution.attempt, run.org_id) if batch else None
        )
        request, labels, stale = await self._request(execution, step, now=self._clock.now() if status is None else None)
        provider, rendered = request
        return ModelCall(
            caller=execution.run,
            name=execution.name,
            path=path,
            attempt=execution.attempt,
            labels=labels,
            schema=step.output,
            seconds=step.timeout * (1 + CORRECTIONS),
            worst=_worst(provider, rendered, batch=batch, priced=version.workflow.budget.usd is not None),
            stale=stale,
            reuse=_reuse(execution, step.cache),
            kept=_is_kept(execution, step.cache),
            fixed=fallback.value if fallback is not None else None,
            alternative=_has_alternative(execution),
            alias=step.model,
            pin=version.models[step.model],
            provider=provider,
            request=rendered,
            plain=plain_of(rendered, version.answer_schema_texts[path]),
            validator=version.output_validators[path],
            agent=execution.node.agent is not None,
            transport="batch" if batch else "direct",
            answered=status == "done",
            until=_until(execution) if batch else None,
            deferrals=here.deferrals,
        )

    async def _request(
        self, execution: StepExecution, step: ModelStep, *, now: float | None
    ) -> tuple[tuple[Provider, ModelRequest], Any, tuple[str, ...]]:
        version, agent = execution.run.version, execution.node.agent
        bound = await arguments_of(execution, now=now)
        labels = bound.labels
        turns = version.prompts[step.prompt].render(bound.value)
        if agent is not None:
            messages, message_labels = await conversation(execution, agent)
            turns, labels = [*turns, *messages], labels.join(message_labels)
        provider, model = self._models.resolve(version.models[step.model])
        request = ModelRequest(
            model=model,
            messages=[Message(role, content) for role, content in turns],  # type: ignore[arg-type]
            max_tokens=step.max_tokens,
            schema=version.answer_schemas[execution.path],
            temperature=step.temperature,
            seed=0,
            timeout=step.timeout,
        )
        return (provider, request), labels, tuple(bound.stale)


def _worst(provider: Provider, request: ModelRequest, *, batch: bool, priced: bool) -> Amount:
    """The most that a call may use.

    Args:
        priced: the run has a budget in USD.

    Raises:
        Unpriced: the price is not known, and the budget could not hold.
    """
    characters = sum(len(turn.content) for turn in request.messages)
    tokens = int(characters / _CHARACTERS_PER_TOKEN) + request.max_tokens
    cost = cost_of(
        provider.name,
        request.model,
        input_tokens=tokens - request.max_tokens,
        output_tokens=request.max_tokens,
        batch=batch,
    )
    if priced and cost is None:
        raise Unpriced(
            f'model "{request.model}" was not called: its price is not known, so the run\'s budget in USD cannot hold; '
            "use budget.tokens instead of budget.usd, or a model with a known price",
            kind=FailureKind.PERMANENT,
        )
    return Amount(tokens, FREE if cost is None else cost)


def _reuse(execution: StepExecution, cache: float | None) -> Reuse | None:
    """Kept results that may stand in for the call: those of the cache, or as a fallback the newest good one."""
    fallback = execution.fallback
    if fallback is not None and fallback.last_good:
        return Reuse(fallback.max_age, required=True)
    if cache is None:
        return None
    if fallback is not None and fallback.max_age is not None:
        return Reuse(min(cache, fallback.max_age))
    return Reuse(cache)


def _is_kept(execution: StepExecution, cache: float | None) -> bool:
    step = execution.node.step
    ladder = step.fallback if isinstance(step, ModelStep | ToolStep) else []
    return execution.here.variant == 0 and (cache is not None or any(one.last_good for one in ladder))


def _has_alternative(execution: StepExecution) -> bool:
    """True if the step has a fallback left."""
    step = execution.node.step
    return isinstance(step, ModelStep | ToolStep) and execution.here.variant < len(step.fallback)


def _until(execution: StepExecution) -> float | None:
    """Moment after which no step waits, seconds since the epoch: the step's deadline or the run's."""
    timers = execution.state.timers
    keys = (limit_key(execution.name, execution.here), DEADLINE)
    return min((timers[key] for key in keys if key in timers), default=None)
