"""Port of the model providers, and its data types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Literal, Protocol

from interlock.base.json import JsonObject
from interlock.base.usage import Usage
from interlock.base.values import value

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]


@value(frozen=True, slots=True)
class Message:
    """One message of a conversation. `content` is plain text."""

    role: Role
    content: str


@value(frozen=True, slots=True)
class ModelRequest:
    """A call to one model.

    Attributes:
        model: the provider's pinned model name.
        messages: at least one; system and developer turns come first.
        max_tokens: upper bound on output tokens.
        schema: JSON Schema the answer must fit; None asks for plain text.
        temperature: 0 is greedy.
        seed: sent if the provider supports one.
        timeout: seconds for the whole call, connection included.
    """

    model: str
    messages: Sequence[Message]
    max_tokens: int = 512
    schema: JsonObject | None = None
    temperature: float = 0.0
    seed: int | None = None
    timeout: float = 60.0


@value(frozen=True, slots=True)
class ModelResponse:
    """A provider's answer.

    Attributes:
        model: the name reported by the provider.
        usage: the counts reported by the provider; the caller adds the cost.
    """

    text: str
    model: str
    usage: Usage
    finish_reason: FinishReason = "stop"
    response_id: str | None = None
    metadata: JsonObject = field(default_factory=dict)


class Provider(Protocol):
    """A model provider.

    `complete` raises only `ProviderError` for a failure of the provider: kind
    `RATE_LIMITED` with `retry_after` for 429 (and 529), `TRANSIENT` for 5xx, broken connections and timeouts,
    `PERMANENT` for other 4xx and for answers outside the protocol. The message never contains a key.
    Cancelling the task cancels the call. `close` frees connections and processes and may be called twice.
    """

    name: str

    async def complete(self, request: ModelRequest) -> ModelResponse: ...

    async def close(self) -> None: ...
