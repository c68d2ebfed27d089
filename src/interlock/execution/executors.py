"""Executors: preparation and execution of model and tool calls. Called by the kernel between its phases only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from interlock.base.clock import Clock
from interlock.base.errors import ContractViolation, FailureKind, IntegrityError, ProviderError, ToolError, Unpriced
from interlock.base.json import InvalidJson, accept_json
from interlock.base.labels import Labels, Trust
from interlock.base.money import FREE, NANO_PER_USD
from interlock.base.usage import Usage
from interlock.budget.ledger import NOTHING, Amount
from interlock.budget.prices import cost_of
from interlock.execution.batch.calls import BatchedCalls
from interlock.execution.batch.reservations import is_batched
from interlock.execution.batch.values import plain_of
from interlock.execution.inputs.arguments import arguments_of
from interlock.execution.inputs.conversation import conversation
from interlock.execution.steps import StepExecution
from interlock.gateway.failures import BilledError
from interlock.gateway.provider import Message, ModelRequest, ModelResponse, Provider
from interlock.gateway.structured import complete_structured
from interlock.policy.decision import NO_APPROVAL, Question
from interlock.policy.schema import tool_attributes
from interlock.sandbox.environment import SandboxResult
from interlock.telemetry import names
from interlock.tools.registry import Function, Tools, error_of
from interlock.workflows.contracts import ToolContract
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import ModelStep, ToolStep

# Characters a token stands for at least, in the scripts and tokenizers we know; for reservations only.
_CHARACTERS_PER_TOKEN = 2.5
_CLOCKS_APART = 60.0  # seconds by which the clock of a far side may be ahead
CORRECTIONS = 2  # further calls to correct an invalid answer


class Models(Protocol):
    """Resolves a version's model pin to a provider and the provider's own name for the model."""

    def resolve(self, pin: str) -> tuple[Provider, str]: ...


@dataclass(frozen=True, slots=True)
class CallRequest:
    """Work that is ready to be judged and done.

    Attributes:
        question: what the policy is asked.
        payload: what the executor needs: provider and request, or the tool's arguments.
        request: the rendered request as JSON, for a model call.
        labels: of everything that goes in.
        worst: what the call may use, reserved from the budget.
        stale: steps whose values are older than their tools allow, and may be used all the same.
        answered: the answer is in the store; no call is made.
    """

    question: Question
    payload: Any
    labels: Labels
    worst: Amount = NOTHING
    request: Any = None
    stale: tuple[str, ...] = ()
    answered: bool = False


@dataclass(frozen=True, slots=True)
class CallResult:
    """A result.

    Attributes:
        schema: says which fields are facts.
        usage: of a model call; None if no model was asked.
        attributes: go on the span.
        calls: of an agent's turn, the tools it wants called.
        facts: instead of those that `schema` says.
    """

    value: Any
    schema: Mapping[str, Any]
    labels: Labels
    usage: Usage | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None


class ModelExecutor:
    """Model steps: a rendered prompt in, JSON valid against the step's schema out."""

    span_name = names.MODEL_CALL

    def __init__(self, models: Models, batched: BatchedCalls, clock: Clock) -> None:
        self._models = models
        self._batched = batched
        self._clock = clock

    async def prepare(self, execution: StepExecution) -> CallRequest:
        step = execution.step
        assert isinstance(step, ModelStep)
        version, agent = execution.run.version, execution.node.agent
        batch = is_batched(execution)
        # What a call under way was made with was fresh then.
        out = await self._batched.status(execution) if batch else None
        bound = await arguments_of(execution, now=self._clock.now() if out is None else None)
        labels = bound.labels
        turns = version.prompts[step.prompt].render(bound.value)
        if agent is not None:
            messages, message_labels = await conversation(execution, agent)
            turns, labels = [*turns, *messages], labels.join(message_labels)
        provider, model = self._models.resolve(version.models[step.model])
        schema = version.answer_schemas[execution.path]
        request = ModelRequest(
            model=model,
            messages=[Message(role, content) for role, content in turns],  # type: ignore[arg-type]
            max_tokens=step.max_tokens,
            schema=schema,
            temperature=step.temperature,
            seed=0,
            timeout=step.timeout,
        )
        characters = sum(len(content) for _, content in turns)
        tokens = int(characters / _CHARACTERS_PER_TOKEN) + step.max_tokens
        incoming = tokens - step.max_tokens
        cost = cost_of(provider.name, model, input_tokens=incoming, output_tokens=step.max_tokens, batch=batch)
        if version.workflow.budget.usd is not None and cost is None:
            raise Unpriced(
                f'model "{model}" was not called: its price is not known, so the run\'s budget in USD cannot hold; '
                "use budget.tokens instead of budget.usd, or a model with a known price",
                kind=FailureKind.PERMANENT,
            )
        question = _question(execution, "call_model", step.model, {"provider": provider.name, "model": model}, labels)
        worst, stale = Amount(tokens, FREE if cost is None else cost), tuple(bound.stale)
        return CallRequest(question, (provider, request), labels, worst, plain_of(request), stale, out == "done")

    async def execute(self, execution: StepExecution, prepared: CallRequest, *, key: str | None = None) -> CallResult:  # noqa: ARG002  a model call has no key
        provider, request = prepared.payload
        step = execution.step
        assert isinstance(step, ModelStep)
        validator = execution.run.version.output_validators[execution.path]
        answered = await self._answered(execution, prepared) if is_batched(execution) else None
        answer = await complete_structured(
            provider, request, validator=validator, max_corrections=CORRECTIONS, answered=answered
        )
        usage = answer.usage
        attributes = {
            names.GEN_AI_OPERATION: "chat",
            names.GEN_AI_PROVIDER: provider.name,
            names.GEN_AI_REQUEST_MODEL: request.model,
            names.GEN_AI_RESPONSE_MODEL: answer.response.model,
            names.MODEL_NAME: request.model,
            names.GEN_AI_INPUT_TOKENS: usage.input_tokens,
            names.GEN_AI_OUTPUT_TOKENS: usage.output_tokens,
            names.TOKENS_INPUT: usage.input_tokens,
            names.TOKENS_OUTPUT: usage.output_tokens,
            **cost_attributes(usage),
            names.MODEL_ATTEMPTS: usage.attempts,
            names.MODEL_BATCH: answered is not None,
        }
        # What a model says is as trustworthy as the least trusted thing it read.
        labels = prepared.labels.join(Labels(origins=frozenset({f"model:{request.model}"})))
        if execution.node.agent is None:
            return CallResult(answer.value, step.output, labels, usage, attributes)
        calls = tuple(call["tool"] for call in answer.value["calls"])
        value = answer.value if calls else answer.value["answer"]
        return CallResult(value, {} if calls else step.output, labels, usage, attributes, calls)

    async def _answered(self, execution: StepExecution, prepared: CallRequest) -> ModelResponse:
        provider, request = prepared.payload
        return await self._batched.answer(execution, provider, request, labels=prepared.labels, reserved=prepared.worst)

    def usage_in(self, error: Exception, prepared: CallRequest) -> Usage | None:
        """Usage of a failed call; None if the failure is not the provider's."""
        if isinstance(error, BilledError):
            return error.usage
        provider, _ = prepared.payload
        return Usage(provider.name, attempts=1) if isinstance(error, ProviderError) else None


class ToolExecutor:
    """Tool steps: arguments that fit the contract in, a value that fits it out; in a fresh sandbox."""

    span_name = names.TOOL_CALL

    def __init__(self, tools: Tools, clock: Clock) -> None:
        self._tools = tools
        self._clock = clock

    async def prepare(self, execution: StepExecution, *, compensate: bool = False) -> CallRequest:
        """The call's arguments; for `undo` those it was made with, however old they are by now."""
        step = execution.step
        assert isinstance(step, ToolStep)
        version = execution.run.version
        tool = version.tools.get(step.tool)
        if tool is None:
            raise IntegrityError(f'version {version.version} has no tool "{step.tool}"; deploy the workflow again')
        bound = await arguments_of(execution, now=None if compensate else self._clock.now())
        arguments, labels = bound.value, bound.labels
        check_value(version.tool_input_validators[step.tool], arguments, what=f'tool "{step.tool}": arguments')
        question = _question(execution, "call_tool", step.tool, tool_attributes(tool.contract), labels)
        return CallRequest(question, arguments, labels, stale=tuple(bound.stale))

    async def fetch(self, execution: StepExecution) -> None:
        """Makes sure that the tool's code is at hand."""
        assert isinstance(execution.step, ToolStep)
        await self._tools.fetch(execution.run.version.tools[execution.step.tool])

    async def plan(self, execution: StepExecution, prepared: CallRequest) -> Any:
        """Plan of a tool with an explicit commit: the result of its `run`, which changes nothing."""
        result = await self._call(execution, "run", prepared.payload, key=None)
        return result.output

    async def execute(
        self,
        execution: StepExecution,
        prepared: CallRequest,
        *,
        key: str | None = None,
        plan: Any = None,
        until: float | None = None,
    ) -> CallResult:
        """The call. With an explicit commit it is `commit` with the plan; else `run` with the arguments."""
        step = execution.step
        assert isinstance(step, ToolStep)
        if execution.run.version.tools[step.tool].contract.commit:
            result = await self._call(execution, "commit", {"plan": plan}, key=key, until=until)
        else:
            result = await self._call(execution, "run", prepared.payload, key=key, until=until)
        return self._done(execution, prepared, result.output, result.start_seconds)

    async def _call(
        self,
        execution: StepExecution,
        function: Function,
        arguments: Any,
        *,
        key: str | None,
        until: float | None = None,
    ) -> SandboxResult:
        step, version = execution.step, execution.run.version
        assert isinstance(step, ToolStep)
        tool, allowed = version.tools[step.tool], frozenset(version.workflow.allow)
        context = _context(execution, key)
        result = await self._tools.call(tool, function, arguments, context=context, allowed=allowed, until=until)
        if result.ending != "ok":
            raise error_of(tool.contract, result)
        try:
            accept_json(result.output)
        except InvalidJson as error:
            raise ContractViolation(f'tool "{step.tool}": its answer: {error.message}') from error
        return result

    def _done(self, execution: StepExecution, prepared: CallRequest, output: Any, start_seconds: float) -> CallResult:
        step = execution.step
        assert isinstance(step, ToolStep)
        version = execution.run.version
        contract = version.tools[step.tool].contract
        check_value(version.tool_output_validators[step.tool], output, what=f'tool "{step.tool}": its answer')
        as_of = _age(contract, output, self._clock.now())
        labels = prepared.labels.join(Labels(trust=Trust.TOOL, origins=frozenset({f"tool:{step.tool}"})))
        # As old as the tool says, else as the call: how old its arguments were was looked at when it was made.
        labels = replace(labels, as_of=as_of)
        most = execution.fallback.max_age if execution.fallback is not None else None
        if most is not None and self._clock.now() - as_of > most:
            raise ToolError(
                f'tool "{step.tool}": its answer is {self._clock.now() - as_of:.0f} s old, and as a fallback it may be {most:g} s',
                kind=FailureKind.PERMANENT,
            )
        attributes = {
            names.GEN_AI_TOOL_NAME: step.tool,
            names.TOOL_EFFECT: contract.effect,
            names.TOOL_SANDBOX: self._tools.sandbox_name,
            names.TOOL_START_MS: round(start_seconds * 1000, 3),
        }
        return CallResult(output, contract.output, labels, attributes=attributes)

    async def probe(self, execution: StepExecution, prepared: CallRequest, key: str) -> CallResult | None:
        """Asks the tool whether the effect with this key happened: None if not, else what it gave.

        Raises:
            ContractViolation: it happened, and the tool cannot say what it gave.
        """
        step = execution.step
        assert isinstance(step, ToolStep)
        result = await self._call(execution, "probe", {"input": prepared.payload}, key=key)
        if not isinstance(result.output, dict) or not isinstance(result.output.get("happened"), bool):
            raise ToolError(
                f'tool "{step.tool}": probe must return {{"happened": true|false, "output": …}}',
                kind=FailureKind.PERMANENT,
            )
        if not result.output["happened"]:
            return None
        return self._done(execution, prepared, result.output.get("output"), result.start_seconds)

    async def compensate(self, execution: StepExecution, arguments: Any, output: Any, *, key: str) -> None:
        """Undoes a completed call."""
        await self._call(execution, "compensate", {"input": arguments, "output": output}, key=key)


def cost_attributes(usage: Usage) -> dict[str, Any]:
    """Cost as attributes of a span: USD as a number, for sums and charts; absent if it is not known."""
    if usage.cost is None:
        return {names.COST_UNPRICED: usage.unpriced}
    return {names.COST_USD: usage.cost / NANO_PER_USD}


def _question(
    execution: StepExecution, action: Any, resource: str, attributes: dict[str, Any], labels: Labels
) -> Question:
    principal = execution.run.principal
    return Question(
        user_id=principal.user_id,
        org_id=principal.org_id,
        roles=principal.roles,
        action=action,
        resource=resource,
        attributes=attributes,
        context={
            "workflow": execution.run.version.name,
            "step": execution.path,
            "trust": labels.trust.name.lower(),
            "sensitivity": labels.sensitivity.name.lower(),
            "approval": NO_APPROVAL.to_json(),
        },
    )


def _context(execution: StepExecution, key: str | None) -> dict[str, Any]:
    context: dict[str, Any] = {"run_id": execution.run.run_id, "step": execution.name, "attempt": execution.attempt}
    if key is not None:
        context["idempotency_key"] = key
    return context


def _age(contract: ToolContract, output: Any, now: float) -> float:
    """When the answer was true, seconds since the epoch: as the tool says, else now."""
    said = output.get(contract.as_of) if contract.as_of is not None and isinstance(output, dict) else None
    if isinstance(said, str):
        try:
            moment: datetime | None = datetime.fromisoformat(said)
        except ValueError:
            moment = None
        when = moment.timestamp() if moment is not None and moment.tzinfo is not None else 0.0
    elif isinstance(said, int | float) and not isinstance(said, bool):
        when = float(said)
    else:
        when = now if contract.as_of is None else 0.0
    # What says no moment, or one to come (milliseconds, say), is older than anything may be, not fresh for ever.
    return min(when, now) if when <= now + _CLOCKS_APART else 0.0
