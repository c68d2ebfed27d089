"""OpenAI dialect: `/chat/completions` of OpenAI and every compatible server (vLLM, Ollama, LiteLLM, …).

Source: https://platform.openai.com/docs/api-reference/chat. The local model uses the same format and shares
`wire_messages` and `read_completion`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from interlock.base.errors import FailureKind
from interlock.base.json import Json, JsonObject
from interlock.base.outbound import Outbound
from interlock.base.usage import Usage
from interlock.gateway.batches import OpenAIBatches
from interlock.gateway.failures import BilledError, count, not_the_protocol, scrub
from interlock.gateway.http import MAX_BODY, Endpoint
from interlock.gateway.provider import FinishReason, Message, ModelRequest, ModelResponse

TokenField = Literal["max_tokens", "max_completion_tokens"]

_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class OpenAIProvider:
    """Provider for any OpenAI-compatible endpoint, over one keep-alive session.

    Args:
        name: name of the provider in messages and records.
        base_url: the address to which `/chat/completions` is appended, such as `https://api.openai.com/v1`.
        api_key: sent as a bearer token; None for servers without keys.
        strict: send `strict` with a schema. None decides by the schema: True if it meets the two structural
            rules of strict mode (every object closed, every property required), because OpenAI refuses other schemas.
        token_field: the field of the output limit. None sends `max_completion_tokens` to api.openai.com,
            whose newer models refuse the old name, and `max_tokens` to all others, many of which support no other name.
        send_temperature: False for reasoning models, which refuse any temperature except their own.
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
        base_url: str,
        api_key: str | None,
        *,
        strict: bool | None = None,
        token_field: TokenField | None = None,
        send_temperature: bool = True,
        outbound: Outbound | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.name = name
        self._endpoint = Endpoint(name, base_url, headers=headers, secret=api_key, outbound=outbound, max_body=max_body)
        self._secret = api_key
        self._strict = strict
        official = self._endpoint.host == "api.openai.com"
        self._token_field = token_field or ("max_completion_tokens" if official else "max_tokens")
        self._send_temperature = send_temperature
        self.batches = OpenAIBatches(self._endpoint, self._body, self._read)

    async def complete(self, request: ModelRequest) -> ModelResponse:
        """Makes one call, without retries. Raises as documented at `Provider`; a refusal is a `BilledError`, kind PERMANENT."""
        reply = await self._endpoint.post("/chat/completions", self._body(request), timeout=request.timeout)
        return self._read(request, reply.body)

    async def close(self) -> None:
        """Close the session; may be called twice."""
        await self._endpoint.close()

    def _body(self, request: ModelRequest) -> dict[str, Json]:
        body: dict[str, Json] = {
            "model": request.model,
            "messages": wire_messages(request.messages),
            self._token_field: request.max_tokens,
        }
        if self._send_temperature:
            body["temperature"] = request.temperature
        if request.seed is not None:
            body["seed"] = request.seed
        if request.schema is not None:
            strict = fits_strict(request.schema) if self._strict is None else self._strict
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": schema_name(request.schema), "schema": dict(request.schema), "strict": strict},
            }
        return body

    def _read(self, request: ModelRequest, body: JsonObject) -> ModelResponse:
        return read_completion(self.name, request, body, secret=self._secret)


def wire_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The turns in the form that every compatible server accepts.

    `developer` is sent as `system`, which OpenAI maps back and other servers support. `tool` is sent as a `user` turn: the
    protocol's own `tool` role requires the id of a call made by the model, but here the workflow calls tools.
    """
    roles = {"developer": "system", "tool": "user"}
    return [{"role": roles.get(turn.role, turn.role), "content": turn.content} for turn in messages]


def schema_name(schema: JsonObject) -> str:
    """A name allowed by the protocol (letters, digits, `_`, `-`, at most 64), from the schema's title."""
    title = schema.get("title")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", title)[:64] if isinstance(title, str) and title.strip() else "answer"


def fits_strict(schema: Json) -> bool:
    """True if every object in the schema is closed and requires all of its properties.

    Source: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas.
    """
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return all(fits_strict(item) for item in schema)
    if not isinstance(schema, Mapping):
        return True
    properties = schema.get("properties")
    if isinstance(properties, Mapping) or schema.get("type") == "object":
        names = set(properties) if isinstance(properties, Mapping) else set()
        required = schema.get("required", ())
        if (
            schema.get("additionalProperties") is not False
            or not isinstance(required, Sequence)
            or set(required) != names
        ):
            return False
    # enum and const contain values, not schemas: an object among them is not an object schema.
    return all(fits_strict(value) for key, value in schema.items() if key not in {"enum", "const", "default"})


def read_completion(name: str, request: ModelRequest, body: JsonObject, *, secret: str | None = None) -> ModelResponse:
    """Parses a chat completion.

    Raises:
        BilledError: the model refused, or the provider's filter removed the answer.
        ProviderError: the body is not a chat completion.
    """
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise not_the_protocol(name, "no choices")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise not_the_protocol(name, "a choice without a message")
    content, refusal = message.get("content"), message.get("refusal")
    if content is not None and not isinstance(content, str):
        raise not_the_protocol(name, "content that is not text")
    model, response_id = body.get("model"), body.get("id")
    model = model if isinstance(model, str) and model else request.model
    usage, estimated = _usage(request, body.get("usage"), content or "")
    usage = replace(usage, provider=name, model=model, attempts=1)
    finish = _FINISH.get(str(choice.get("finish_reason")), "other")
    if isinstance(refusal, str) and refusal.strip():
        raise refused(name, scrub(refusal, secret), usage)
    if finish == "content_filter":
        raise refused(name, "its content filter removed the answer (finish_reason content_filter)", usage)
    if content is None and finish != "length":
        # A reasoning model may use its whole limit for reasoning; its empty, cut answer is reported as such by the caller.
        raise refused(name, f"no content (finish_reason {finish})", usage)
    return ModelResponse(
        text=content or "",
        model=model,
        usage=usage,
        finish_reason=finish,
        response_id=response_id if isinstance(response_id, str) else None,
        metadata={"usage_estimated": True} if estimated else {},
    )


def refused(name: str, why: str, usage: Usage) -> BilledError:
    """The error for an answer that the provider withheld and charged for."""
    return BilledError(f'provider "{name}" refused to answer: {why}', kind=FailureKind.PERMANENT, usage=usage)


def _usage(request: ModelRequest, reported: object, text: str) -> tuple[Usage, bool]:
    """The reported counts, or an estimate (second item True) if the server reports none."""
    reported = reported if isinstance(reported, dict) else {}
    incoming, outgoing = count(reported.get("prompt_tokens")), count(reported.get("completion_tokens"))
    cached = _detail(reported, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(reported, "completion_tokens_details", "reasoning_tokens")
    if incoming is not None and outgoing is not None:
        usage = Usage(input_tokens=incoming, output_tokens=outgoing)
        return replace(usage, cached_tokens=min(cached, incoming), reasoning_tokens=min(reasoning, outgoing)), False
    # Four characters per token, and four tokens of overhead per turn: OpenAI's own rule of thumb for English.
    # https://help.openai.com/en/articles/4936856. An estimate, because a missing cost would count as 0.
    guess = sum(_tokens(turn.content) + 4 for turn in request.messages)
    incoming = guess if incoming is None else incoming
    outgoing = _tokens(text) if outgoing is None else outgoing
    return Usage(input_tokens=incoming, output_tokens=outgoing), True


def _detail(reported: JsonObject, group: str, name: str) -> int:
    """A count of a group of details; 0 if the server reports none."""
    details = reported.get(group)
    return (count(details.get(name)) or 0) if isinstance(details, dict) else 0


def _tokens(text: str) -> int:
    return -(-len(text) // 4)
