"""Stored values of a batched call: its request and its answer, with the same subjects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from interlock.base.errors import Erased, FailureKind, PayloadTooLarge, ProviderError
from interlock.base.json import Json
from interlock.base.labels import Labels, Trust
from interlock.base.usage import Usage
from interlock.budget.prices import priced
from interlock.gateway.batches import BatchAnswer
from interlock.gateway.failures import BilledError
from interlock.gateway.provider import Message, ModelRequest, ModelResponse
from interlock.guard.gate import Stage, composed, inspect
from interlock.store.artifacts import Artifacts, Sealed


@dataclass(frozen=True, slots=True)
class BatchCall:
    """A call of a batch, of whichever run; labels are its request's."""

    request: ModelRequest
    labels: Labels


def plain_of(request: ModelRequest, schema: str) -> dict[str, Any]:
    """The request as JSON; `request_of` makes it again.

    Args:
        schema: the request's schema as a JSON text, because the order of its fields is part of the call.
    """
    return {
        "model": request.model,
        "messages": [[turn.role, turn.content] for turn in request.messages],
        "max_tokens": request.max_tokens,
        "schema": schema,
        "temperature": request.temperature,
        "seed": request.seed,
    }


def request_of(plain: Json) -> ModelRequest:
    assert isinstance(plain, dict)  # `plain_of` made it
    messages = [Message(role, content) for role, content in plain["messages"]]
    return ModelRequest(**{**plain, "messages": messages, "schema": json.loads(plain["schema"])})


async def seal_answer(artifacts: Artifacts, org: str, call: BatchCall, answer: BatchAnswer) -> Sealed | None:
    """A call's answer as a value about the same people as the call; None if one of them was erased."""
    labels = call.labels.passed(f"model:{call.request.model}", Trust.DEVELOPER)
    try:
        try:
            # The answer passes the gate again as the output of its step, once it is parsed.
            kept = await inspect(_kept(answer), Stage.MODEL_OUTPUT, org)
            return await artifacts.seal(org, kept.accepted, labels)
        except PayloadTooLarge as error:
            refused = ProviderError(error.message, kind=FailureKind.PERMANENT)
            return await artifacts.seal(org, composed(_kept(refused)), labels)
    except Erased:
        return None


def _kept(answer: BatchAnswer) -> dict[str, Any]:
    usage = answer.usage if isinstance(answer, ModelResponse | BilledError) else None
    kept: dict[str, Any] = {"usage": usage.to_json() if usage else None}
    if isinstance(answer, ProviderError):
        return {**kept, "error": answer.message, "kind": answer.kind.value, "retry_after": answer.retry_after}
    said = {"text": answer.text, "model": answer.model, "finish_reason": answer.finish_reason}
    return {**kept, **said, "response_id": answer.response_id}


def delivered(kept: Json, provider: str, model: str) -> ModelResponse:
    """The answer that was kept, its usage at the price of a batch; raises the error that was. Neither says how the provider is now.

    Args:
        provider, model: who was asked, and for which model.
    """
    assert isinstance(kept, dict)  # `_kept` made it
    usage = priced(Usage(**kept["usage"]), provider, model, batch=True) if kept["usage"] is not None else None
    if "error" not in kept:
        said = {name: kept[name] for name in ("text", "model", "finish_reason", "response_id")}
        return ModelResponse(usage=usage or Usage(), **said)
    kind = FailureKind(kept["kind"])
    if usage is not None:
        error: ProviderError = BilledError(kept["error"], kind=kind, usage=usage, retry_after=kept["retry_after"])
    else:
        error = ProviderError(kept["error"], kind=kind, retry_after=kept["retry_after"])
    error.counts_against_breaker = False
    raise error
