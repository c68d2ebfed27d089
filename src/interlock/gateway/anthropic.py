"""Anthropic dialect: the Messages API, with structured output through a forced tool call.

Source: https://docs.anthropic.com/en/api/messages and https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from interlock.base.json import Json, JsonObject
from interlock.base.outbound import Outbound
from interlock.base.usage import Usage
from interlock.gateway.batches import AnthropicBatches
from interlock.gateway.failures import count, not_the_protocol
from interlock.gateway.http import MAX_BODY, Endpoint
from interlock.gateway.openai import refused, schema_name
from interlock.gateway.provider import FinishReason, Message, ModelRequest, ModelResponse

API_VERSION = "2023-06-01"
BASE_URL = "https://api.anthropic.com"

_FINISH: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}

# Name of the only property of the object that wraps a schema of another type: a tool's input is always an object.
_WRAPPED = "value"


class AnthropicProvider:
    """Anthropic's Messages API, over one keep-alive session.

    The API takes no seed, so `ModelRequest.seed` is dropped; temperature is capped at its maximum, 1.

    Args:
        name: name of the provider in messages and records.
        api_key: sent as `x-api-key`; None for servers without keys.
        base_url: the address to which `/v1/messages` is appended.
        outbound: decides about the addresses that `base_url` leads to; by default public ones and those written in it.
        max_body: maximum bytes of an answer.

    Attributes:
        batches: the batch API for the same calls.

    Raises:
        InvalidInput: the address or the key cannot be used.
    """

    def __init__(
        self,
        name: str,
        api_key: str | None,
        *,
        base_url: str = BASE_URL,
        outbound: Outbound | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        headers = {"anthropic-version": API_VERSION} | ({} if api_key is None else {"x-api-key": api_key})
        self.name = name
        self._endpoint = Endpoint(name, base_url, headers=headers, secret=api_key, outbound=outbound, max_body=max_body)
        self.batches = AnthropicBatches(self._endpoint, _body, self._read)

    async def complete(self, request: ModelRequest) -> ModelResponse:
        """Makes one call, without retries. Raises as documented at `Provider`; a refusal is a `BilledError`, kind PERMANENT."""
        reply = await self._endpoint.post("/v1/messages", _body(request), timeout=request.timeout)
        return self._read(request, reply.body, request_id=reply.headers.get("request-id"))

    async def close(self) -> None:
        """Close the session; may be called twice."""
        await self._endpoint.close()

    def _read(self, request: ModelRequest, body: JsonObject, *, request_id: str | None = None) -> ModelResponse:
        return _read(self.name, request, body, request_id)


def _body(request: ModelRequest) -> dict[str, Json]:
    system = "\n\n".join(turn.content for turn in request.messages if turn.role in {"system", "developer"})
    turns = _turns(request.messages)
    if not turns:
        # The API requires a user turn, OpenAI's does not; a single system message is sent as a user turn.
        turns, system = [{"role": "user", "content": system}], ""
    body: dict[str, Json] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": turns,
        "temperature": min(request.temperature, 1.0),
    }
    if system:
        body["system"] = system
    if request.schema is not None:
        name = schema_name(request.schema)
        tool: Json = {"name": name, "description": "Give the answer.", "input_schema": _input_schema(request.schema)}
        body["tools"] = [tool]
        body["tool_choice"] = {"type": "tool", "name": name, "disable_parallel_tool_use": True}
    return body


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """User and assistant turns in strict alternation: consecutive turns of one role are joined."""
    turns: list[dict[str, str]] = []
    for message in messages:
        if message.role in {"system", "developer"}:
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + message.content
        else:
            turns.append({"role": role, "content": message.content})
    return turns


def _is_object(schema: JsonObject) -> bool:
    return schema.get("type") == "object"


def _input_schema(schema: JsonObject) -> dict[str, Json]:
    if _is_object(schema):
        return dict(schema)
    inner = dict(schema)
    wrapper: dict[str, Json] = {"type": "object", "required": [_WRAPPED], "additionalProperties": False}
    for key in ("$defs", "definitions"):
        # References start at the root, so the definitions must stay at the root.
        if key in inner:
            wrapper[key] = inner.pop(key)
    return {**wrapper, "properties": {_WRAPPED: inner}}


def _read(name: str, request: ModelRequest, body: JsonObject, request_id: str | None) -> ModelResponse:
    content = body.get("content")
    if not isinstance(content, list):
        raise not_the_protocol(name, "no content list")
    model, response_id = body.get("model"), body.get("id")
    model = model if isinstance(model, str) and model else request.model
    usage = replace(_usage(name, body.get("usage")), provider=name, model=model, attempts=1)
    finish = _FINISH.get(str(body.get("stop_reason")), "other")
    if body.get("stop_reason") == "refusal":
        raise refused(name, "the model declined (stop_reason refusal)", usage)
    text = _text(request, content)
    if text is None:
        if finish != "length":
            raise refused(name, f"no content (stop_reason {finish})", usage)
        text = ""
    if request.schema is not None and finish == "tool_calls":
        finish = "stop"  # the forced call is the answer itself, not a request for a tool call
    return ModelResponse(
        text=text,
        model=model,
        usage=usage,
        finish_reason=finish,
        response_id=response_id if isinstance(response_id, str) else None,
        metadata={"request_id": request_id} if request_id else {},
    )


def _text(request: ModelRequest, content: list[object]) -> str | None:
    """The answer in the content blocks: the forced call's input as JSON, else the text; None if there is neither."""
    blocks = [block for block in content if isinstance(block, dict)]
    if request.schema is not None:
        for block in blocks:
            if block.get("type") == "tool_use" and isinstance(block.get("input"), dict):
                value = block["input"] if _is_object(request.schema) else block["input"].get(_WRAPPED)
                return json.dumps(value, ensure_ascii=False)
    texts = [block["text"] for block in blocks if block.get("type") == "text" and isinstance(block.get("text"), str)]
    return "".join(texts) if texts else None


def _usage(name: str, reported: object) -> Usage:
    """Token counts as `Usage`: the API's `input_tokens` exclude the cache, ours include it. The API reports no reasoning."""
    reported = reported if isinstance(reported, dict) else {}
    incoming, outgoing = count(reported.get("input_tokens")), count(reported.get("output_tokens"))
    if incoming is None or outgoing is None:
        raise not_the_protocol(name, "no usage")
    written = count(reported.get("cache_creation_input_tokens")) or 0
    read = count(reported.get("cache_read_input_tokens")) or 0
    return Usage(
        input_tokens=incoming + written + read, output_tokens=outgoing, cached_tokens=read, cache_write_tokens=written
    )
