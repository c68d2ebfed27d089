"""Calls, the unit of the kernel: one request to a model or a tool, made for a caller, and how it ended.

A call is complete before the kernel gets it: who makes it, with which payload and labels, what it may use, and which kept result
may stand in for it. Workflow steps make calls (`steps.py`); an endpoint or a judge can make them in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from interlock.base.json import Json
from interlock.base.labels import Labels
from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.base.values import value
from interlock.budget.reservations import NOTHING, Amount
from interlock.execution.effects import EffectSite
from interlock.gateway.provider import ModelRequest, Provider
from interlock.identity.principal import Principal
from interlock.machine.events import Failure
from interlock.policy.decision import PolicyEngine
from interlock.store.artifacts import Artifacts, Sealed
from interlock.store.commit import Commit
from interlock.store.entries import Entry
from interlock.store.rows import ArtifactRow, EffectRow, KeptResult
from interlock.telemetry.spans import TraceIds
from interlock.tools.registry import Tool
from interlock.workflows.schemas import Validator

Attributes = dict[str, Json]
"""Attributes of a span."""


class Caller(Protocol):
    """On whose behalf a call is made: the organisation, the principal, and the stores, budget and lease that hold for them.

    Attributes:
        run_id: the run that the call belongs to.
        workflow, version: name and version of its workflow.
        policy: the policy that is in force for the organisation now.
    """

    @property
    def org_id(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def principal(self) -> Principal: ...
    @property
    def trace(self) -> TraceIds: ...
    @property
    def workflow(self) -> str: ...
    @property
    def version_id(self) -> str: ...
    @property
    def policy(self) -> PolicyEngine: ...
    @property
    def artifacts(self) -> Artifacts: ...

    def commit(self) -> Commit:
        """An empty commit that is refused once the caller has lost its lease."""
        ...

    def attributes(self) -> Attributes:
        """Attributes of every span of the caller."""
        ...

    async def value(self, ref: Ref) -> Json:
        """A stored value."""
        ...

    def remember(self, ref: Ref, value: Json) -> None:
        """Keeps a value at hand until its commit is durable, and longer."""
        ...

    async def reserve(self, call: Call) -> None:
        """Sets the most that a call may use aside.

        Raises:
            BudgetExceeded: there is not as much left. LeaseLost: the caller has lost its lease.
        """
        ...

    def finish(self, call: Call, used: Amount) -> None:
        """Replaces the reservation of a call by what it used."""
        ...


@value(frozen=True, slots=True)
class Reuse:
    """Kept results that may stand in for a call.

    Attributes:
        max_age: seconds that a result may be old; None for any age.
        required: no call is made: without such a result it fails.
    """

    max_age: float | None
    required: bool = False


@value(frozen=True, slots=True, kw_only=True)
class _Call:
    """Attributes of calls of every kind.

    Attributes:
        name, attempt: what journal, ledger and audit log call it: a step's instance and its attempt.
        path: the name without numbers, which a policy sees.
        labels: of everything that goes in.
        schema: of the result; says which of its fields are facts.
        seconds: that the call may take outside, with all that belongs to it.
        worst: the most that it may use, reserved before it is made.
        stale: steps whose values are older than their tools allow, and may be used all the same.
        reuse: kept results that may stand in for it; None if none may.
        kept: its result is kept for later calls.
        fixed: a declared result that stands in for it; None if there is none.
        alternative: if its target is down, the caller has another way to go instead of waiting for the target.
    """

    caller: Caller
    name: str
    path: str
    attempt: int
    labels: Labels
    schema: Mapping[str, Json]
    seconds: float
    worst: Amount = NOTHING
    stale: tuple[str, ...] = ()
    reuse: Reuse | None = None
    kept: bool = False
    fixed: Mapping[str, Json] | None = None
    alternative: bool = False

    @property
    def is_found(self) -> bool:
        """True if the result is looked up, and no call is made in any case."""
        return self.fixed is not None or (self.reuse is not None and self.reuse.required)


@value(frozen=True, slots=True, kw_only=True)
class ModelCall(_Call):
    """A call of a model: a rendered request in, JSON valid against a schema out.

    Attributes:
        alias: the model's name in the workflow, which a policy sees; `pin` names the version of it that answers.
        plain: the request as JSON.
        agent: the answer is an agent's turn: tool calls that it wants made, or its answer.
        transport: `direct`, or `batch` for a provider's batch API, where the answer comes much later.
        answered: the answer of the batch is in the store already.
        until: the moment after which no step needs the answer, seconds since the epoch; None if there is none.
        deferrals: how often the call was deferred.
    """

    alias: str
    pin: str
    provider: Provider
    request: ModelRequest
    plain: Mapping[str, Json]
    validator: Validator
    agent: bool = False
    transport: Literal["direct", "batch"] = "direct"
    answered: bool = False
    until: float | None = None
    deferrals: int = 0

    @property
    def target(self) -> str:
        """Name of the far side, for its breaker."""
        return f"provider:{self.pin}"

    @property
    def source(self) -> str:
        """Origin of the result, for its labels."""
        return f"model:{self.request.model}"

    @property
    def lasting(self) -> bool:
        """True if the call goes on when its caller lets go of it, so that its reservation stays."""
        return self.transport == "batch"


@value(frozen=True, slots=True, kw_only=True)
class ToolCall(_Call):
    """A call of a tool: arguments that fit its contract in, a value that fits it out, in a fresh sandbox.

    Attributes:
        allow: names of the tools that the workflow may call.
        checks: the contract's output schema, compiled.
        max_age: seconds that the answer itself may be old; None for any age.
        effect: the entry of the effect ledger of a mutating call; None for a call that changes nothing.
        in_doubt: an earlier attempt may have done its work.
        approvable: there can be an approval of this call: a review covers it, or one was asked for.
    """

    tool: Tool
    arguments: Mapping[str, Json]
    allow: frozenset[str]
    checks: Validator
    max_age: float | None = None
    effect: EffectSite | None = None
    in_doubt: bool = False
    approvable: bool = False

    @property
    def target(self) -> str:
        """Name of the far side, for its breaker."""
        return f"tool:{self.tool.contract.name}"

    @property
    def source(self) -> str:
        """Origin of the result, for its labels."""
        return self.target

    @property
    def lasting(self) -> bool:
        """As for a model call; a tool is never called in the background."""
        return False

    @property
    def answered(self) -> bool:
        """As for a model call."""
        return False

    @property
    def knowable(self) -> bool:
        """True if it can be found out whether the call was carried out: the tool honours idempotency keys, or has a probe."""
        return self.tool.contract.honours_idempotency or self.tool.contract.probe


Call = ModelCall | ToolCall


@value(frozen=True, slots=True)
class CallResult:
    """The result of a call.

    Attributes:
        schema: says which fields are facts.
        usage: of a model call; None if no model was asked.
        attributes: of the call's span.
        wanted: of an agent's turn, the tools it wants called.
        facts: instead of those that `schema` says.
    """

    value: Json
    schema: Mapping[str, Json]
    labels: Labels
    usage: Usage | None = None
    attributes: Attributes = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    facts: Mapping[str, Json] | None = None


@dataclass(slots=True, kw_only=True)
class _Outcome:
    """Fields that outcomes of calls have in common.

    Attributes:
        at: when the call was over, seconds since the epoch.
        request: the rendered request of a model that was asked.
        attributes: of the caller's span.
        artifacts, effects, audit, results: rows to be committed with the caller's record of the outcome.
    """

    at: float
    request: Ref | None = None
    attributes: Attributes = field(default_factory=dict)
    artifacts: list[ArtifactRow] = field(default_factory=list)
    effects: list[EffectRow] = field(default_factory=list)
    audit: list[Entry] = field(default_factory=list)
    results: list[KeptResult] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class CallSucceeded(_Outcome):
    """The call has a result.

    Attributes:
        output: the sealed result.
        usage: None if no model was asked.
        wanted: of an agent's turn, the tools it wants called.
    """

    output: Ref
    facts: Mapping[str, Json]
    usage: Usage | None
    wanted: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class CallFailed(_Outcome):
    """The call has none, and failed.

    Attributes:
        usage: of what was used all the same; None if no model was asked.
    """

    failure: Failure
    error: Exception
    usage: Usage | None = None


@dataclass(slots=True, kw_only=True)
class CallDeferred(_Outcome):
    """The call was not made yet, or its answer comes later.

    Attributes:
        delay: seconds until it is worth another try.
        in_doubt: an earlier attempt may have done its work.
        pending: it is under way in the background, so its reservation stays.
    """

    delay: float
    in_doubt: bool
    pending: bool


@dataclass(slots=True, kw_only=True)
class CallUnapproved(_Outcome):
    """The policy would allow the call if a person of a role approved it.

    Attributes:
        act: digest of the call, see `approvals.Act`.
        arguments: that it is to be made with.
        policy: version of the policy set that asks; it is part of the act.
    """

    act: str
    arguments: Sealed
    policy: str
    role: str


CallOutcome = CallSucceeded | CallFailed | CallDeferred | CallUnapproved
