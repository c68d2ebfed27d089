"""Port of a policy engine: a question, and a decision with its reasons."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, Protocol

from interlock.base.values import value
from interlock.telemetry import names
from interlock.telemetry.logs import log, stack_of

DECISION_SECONDS = 5.0
"""Maximum seconds for one decision; after that the call is refused."""

Action = Literal["call_tool", "call_model"]


@value(frozen=True, slots=True)
class ApprovalFacts:
    """Approval facts that a policy reads as `context.approval`.

    Attributes:
        present: there is an approval of a call of this step that is not consumed, expired or revoked.
        roles: roles required by the reviews in which people approved exactly this call.
        quorum: number of different people who approved exactly this call.
        digest_matches: True if exactly this call was approved; False for an approval of another call.
        reviews, approvers: ids of the reviews in which people approved exactly this call, and the users who did. Empty when a
            policy is asked whether an approval would help, because it is not known who will give it.
    """

    present: bool = False
    roles: frozenset[str] = frozenset()
    quorum: int = 0
    digest_matches: bool = False
    reviews: frozenset[str] = frozenset()
    approvers: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        return {
            "present": self.present,
            "roles": sorted(self.roles),
            "quorum": self.quorum,
            "digest_matches": self.digest_matches,
            "reviews": sorted(self.reviews),
            "approvers": sorted(self.approvers),
        }


NO_APPROVAL = ApprovalFacts()


@value(frozen=True, slots=True)
class Question:
    """A request for a decision: may this principal perform this action on this resource in this run?

    Attributes:
        resource: name of the tool or of the model's alias.
        attributes: of the resource, such as `effect`; strings, numbers and booleans.
        context: of the run and the step: workflow, trust and sensitivity of the input, and `approval` (`ApprovalFacts`).
    """

    user_id: str
    org_id: str
    roles: frozenset[str]
    action: Action
    resource: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)

    def approved(self, facts: ApprovalFacts) -> Question:
        """The same question with these facts about its approval."""
        context = {**self.context, "approval": facts.to_json()}
        asker = (self.user_id, self.org_id, self.roles)
        return Question(*asker, self.action, self.resource, self.attributes, context)


@value(frozen=True, slots=True)
class Decision:
    """`reasons` are the ids of the deciding policies, or the error that prevented a decision."""

    allowed: bool
    reasons: tuple[str, ...]
    version: str


class PolicyEngine(Protocol):
    """A policy engine, in this process or behind a network.

    Invariant: one version gives the same question the same answer. An engine may raise; `decide` makes that a refusal.

    Attributes:
        version: of the policy in force. It is part of what a person approves, so a changed policy needs another one.
        immediate: it decides in this process without waiting, so no time limit is kept for it.
    """

    @property
    def version(self) -> str: ...

    @property
    def immediate(self) -> bool: ...

    async def decide(self, question: Question) -> Decision: ...


class Policies(Protocol):
    """The policy engine of every organisation, as it is in force at this moment."""

    def of(self, org_id: str) -> PolicyEngine: ...


class RefusingEngine:
    """A policy engine that refuses everything, for an organisation whose policy is not known."""

    immediate = True

    def __init__(self, reason: str, *, version: str = "none") -> None:
        self.version = version
        self._reason = reason

    async def decide(self, question: Question) -> Decision:  # noqa: ARG002  it does not matter
        return Decision(False, (self._reason,), self.version)


class NoPolicies:
    """Refuses everything for every organisation: for a run that is only read."""

    def of(self, org_id: str) -> PolicyEngine:  # noqa: ARG002  as above
        return RefusingEngine("no policy is in force here")


NO_POLICIES: Policies = NoPolicies()


async def decide(engine: PolicyEngine, question: Question, *, seconds: float = DECISION_SECONDS) -> Decision:
    """The engine's decision; a refusal if it fails, takes longer than `seconds`, or gives anything but a decision."""
    version = "none"
    try:
        version = engine.version
        if engine.immediate:
            answer = await engine.decide(question)
        else:
            async with asyncio.timeout(seconds):
                answer = await engine.decide(question)
    except Exception as error:  # noqa: BLE001  an engine that fails permits nothing
        what = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        log(names.LOG_POLICY, what, level="error", org_id=question.org_id, version=version, stack=stack_of(error))
        return Decision(False, (f"the policy engine failed: {what}",), version)
    if not isinstance(answer, Decision) or not isinstance(answer.allowed, bool) or not answer.reasons:
        log(names.LOG_POLICY, "the answer is not a decision", level="error", org_id=question.org_id, version=version)
        return Decision(False, ("the policy engine's answer is not a decision",), version)
    return answer
