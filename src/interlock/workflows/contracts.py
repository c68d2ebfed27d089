"""Tool contracts: data, read without executing the tool's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from interlock.workflows.spec import Identifier, JsonSchema, Part, Seconds

MIB = 1024 * 1024


class ToolLimits(Part):
    """Resources of one call; enforced as `sandbox.environment.SandboxLimits`."""

    cpu_seconds: int = Field(default=30, ge=1, le=3600)
    memory_mib: int = Field(default=512, ge=64, le=65536)
    disk_mib: int = Field(default=64, ge=1, le=65536)
    processes: int = Field(default=64, ge=1, le=4096)


class HealthCheckSpec(Part):
    """The tool's own health check: main.py has `health(context) → {healthy: true|false, detail: text}`."""

    every: float = Field(default=30.0, ge=5.0, le=3600.0, description="seconds from one check to the next")


class Batch(Part):
    """Batching of concurrent calls of one run: main.py has `run_batch(calls, context)`, and the calls share a sandbox.

    `calls` is a list of `{arguments, context}`, each context with its own idempotency key; the answer is a list of the
    same length and order, of `{output}` or `{error, retryable, retry_after, nothing_happened}`. The contract's timeout and
    limits apply to the whole batch. A single call uses `run`.
    """

    max: int = Field(ge=2, le=1000, description="maximum number of calls in one batch")
    wait: float = Field(
        default=0.05, ge=0.0, le=5.0, description="seconds that the first call waits for others of its run"
    )


class ToolContract(Part):
    """`tool.yaml` beside a tool's `main.py`.

    A mutating tool is always called with an idempotency key, which derives from run, step and input and is the
    same in every attempt. After a crash or a timeout during a call, Interlock retries with that key if
    `honours_idempotency`, calls `probe` if there is one, and otherwise asks a person.
    """

    name: Identifier
    description: str
    effect: Literal["pure", "mutating"]
    input: JsonSchema
    output: JsonSchema
    timeout: Seconds = Field(default=30.0, description="seconds for one call")
    limits: ToolLimits = ToolLimits()
    egress: list[str] = Field(
        default_factory=list, description="host:port pairs the tool may reach; none means no network"
    )
    honours_idempotency: bool = False
    batch: Batch | None = Field(
        default=None,
        description="main.py has run_batch(calls, context) for concurrent calls of one run",
    )
    commit: bool = Field(
        default=False,
        description="main.py has commit(plan, context): run(…) only plans and changes nothing, and commit executes the plan",
    )
    scopes: list[str] = Field(
        default_factory=list,
        description="the tool's permissions in other systems, such as read:users; the policy sees them",
    )
    max_age: Seconds | None = Field(default=None, description="seconds for which an answer may be used")
    on_stale: Literal["refuse", "flag"] = Field(
        default="refuse", description="reaction to a step that receives an older answer"
    )
    as_of: Identifier | None = Field(
        default=None,
        description="field of the output with the time of the data: seconds since 1970, or ISO 8601; absent: the time of the call",
    )
    cache: Seconds | None = Field(
        default=None, description="pure tools: seconds for which the answer to an identical call is reused"
    )
    compensate: bool = Field(default=False, description="main.py has compensate(input, output, context)")
    probe: bool = Field(default=False, description="main.py has probe(input, context) → {happened, output}")
    health: HealthCheckSpec | None = Field(
        default=None, description="main.py has health(context); after two bad answers in a row the tool is not called"
    )

    @model_validator(mode="after")
    def _pure_tools_have_no_compensation(self) -> Self:
        if self.effect == "pure" and (self.compensate or self.probe or self.honours_idempotency):
            raise ValueError(
                "a pure tool has nothing to compensate, probe or repeat; make it mutating or remove these fields"
            )
        return self

    @model_validator(mode="after")
    def _effects_fit(self) -> Self:
        if self.effect == "pure" and self.commit:
            raise ValueError("a pure tool has nothing to commit; make it mutating or remove commit")
        if self.effect == "mutating" and self.cache is not None:
            raise ValueError("a mutating tool must be called to take effect; remove cache")
        return self

    @model_validator(mode="after")
    def _batches_can_be_repeated(self) -> Self:
        if self.batch is None:
            return self
        if self.commit:
            raise ValueError("a tool with commit is called one by one, with the plan it made; remove batch or commit")
        if self.mutating and not self.honours_idempotency:
            raise ValueError(
                "when a batch is interrupted, only the keys tell which of its calls took effect; "
                "declare honours_idempotency if the remote service supports keys, or remove batch"
            )
        return self

    @model_validator(mode="after")
    def _context_is_ours(self) -> Self:
        properties = self.input.get("properties")  # `check` reports an invalid schema
        if isinstance(properties, dict) and "context" in properties:
            raise ValueError(
                'an argument cannot be called "context": Interlock passes its own under that name; rename it'
            )
        return self

    @property
    def mutating(self) -> bool:
        return self.effect == "mutating"

    @property
    def call_seconds(self) -> float:
        """Maximum seconds of one call: the wait for other calls, if it is batched, plus the timeout."""
        return self.timeout + (self.batch.wait if self.batch is not None else 0.0)

    @property
    def functions(self) -> Mapping[str, str]:
        """Functions that main.py must define: function → the contract field that requires it; `run` is always required."""
        fields = ("commit", "compensate", "probe", "health")
        named = {name: name for name in fields if getattr(self, name)}
        return {"run": "name", **named, **({"run_batch": "batch"} if self.batch is not None else {})}
