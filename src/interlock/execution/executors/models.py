"""Execution of model calls: a rendered request out, JSON that is valid against the call's schema back.

The two transports differ in the way of the first answer only: directly, or through a provider's batch API. Corrections of an
invalid answer always go directly.
"""

from __future__ import annotations

from typing import Protocol

from interlock.base.errors import ProviderError
from interlock.base.labels import Trust
from interlock.base.money import NANO_PER_USD
from interlock.base.usage import Usage
from interlock.execution.call import Attributes, CallResult, ModelCall
from interlock.gateway.failures import BilledError
from interlock.gateway.provider import ModelResponse
from interlock.gateway.structured import complete_priced, complete_structured
from interlock.telemetry import names

CORRECTIONS = 2
"""Further calls to correct an invalid answer."""


class ModelTransport(Protocol):
    """The way of a call to its provider."""

    async def send(self, call: ModelCall) -> ModelResponse:
        """The first answer; its usage has its cost.

        Raises:
            ProviderError: the call failed.
            Deferred: the answer comes later; the same call is to be made again then.
        """
        ...


class DirectTransport:
    """Asks the provider, and waits for its answer."""

    async def send(self, call: ModelCall) -> ModelResponse:
        return await complete_priced(call.provider, call.request)


class ModelExecutor:
    """Executes model calls."""

    span_name = names.MODEL_CALL

    def __init__(self, *, direct: ModelTransport, batch: ModelTransport) -> None:
        self._transports = {"direct": direct, "batch": batch}

    async def execute(self, call: ModelCall) -> CallResult:
        first = await self._transports[call.transport].send(call)
        answer = await complete_structured(
            call.provider, call.request, validator=call.validator, max_corrections=CORRECTIONS, answered=first
        )
        # Output of a model is as trusted as the least trusted value that it read, and at most as its prompt.
        labels = call.labels.passed(call.source, Trust.DEVELOPER)
        attributes = _attributes(call, answer.response.model, answer.usage)
        if not call.agent:
            return CallResult(answer.value, call.schema, labels, answer.usage, attributes)
        turn = answer.value
        assert isinstance(turn, dict)  # as the schema of a turn says
        wanted = tuple(one["tool"] for one in turn["calls"])
        value = turn if wanted else turn["answer"]
        return CallResult(value, {} if wanted else call.schema, labels, answer.usage, attributes, wanted)

    @staticmethod
    def usage_in(error: Exception, call: ModelCall) -> Usage | None:
        """Usage of a failed call; None if the failure is not the provider's."""
        if isinstance(error, BilledError):
            return error.usage
        return Usage(call.provider.name, attempts=1) if isinstance(error, ProviderError) else None


def _attributes(call: ModelCall, answering: str, usage: Usage) -> Attributes:
    return {
        names.GEN_AI_OPERATION: "chat",
        names.GEN_AI_PROVIDER: call.provider.name,
        names.GEN_AI_REQUEST_MODEL: call.request.model,
        names.GEN_AI_RESPONSE_MODEL: answering,
        names.MODEL_NAME: call.request.model,
        names.GEN_AI_INPUT_TOKENS: usage.input_tokens,
        names.GEN_AI_OUTPUT_TOKENS: usage.output_tokens,
        names.TOKENS_INPUT: usage.input_tokens,
        names.TOKENS_OUTPUT: usage.output_tokens,
        **cost_attributes(usage),
        names.MODEL_ATTEMPTS: usage.attempts,
        names.MODEL_BATCH: call.transport == "batch",
    }


def cost_attributes(usage: Usage) -> Attributes:
    """Cost as attributes of a span: USD as a number, for sums and charts; absent if it is not known."""
    if usage.cost is None:
        return {names.COST_UNPRICED: usage.unpriced}
    return {names.COST_USD: usage.cost / NANO_PER_USD}
