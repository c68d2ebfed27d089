"""Port of a policy engine: a question, and a decision with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

Action = Literal["call_tool", "call_model"]


@dataclass(frozen=True, slots=True)
class ApprovalFacts:
    """Approval facts that a policy reads as `context.approval`.

    Attributes:
        present: a person approved a call of this step, which is neither used up, nor expired, nor revoked.
        roles: of all who approved exactly this call, with the role that their review asked for.
        quorum: how many different people approved exactly this call.
        digest_matches: what was approved is exactly this call; false with an approval of another one.
    """

    present: bool = False
    roles: frozenset[str] = frozenset()
    quorum: int = 0
    digest_matches: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "present": self.present,
            "roles": sorted(self.roles),
            "quorum": self.quorum,
            "digest_matches": self.digest_matches,
        }


NO_APPROVAL = ApprovalFacts()


@dataclass(frozen=True, slots=True)
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
        return replace(self, context={**self.context, "approval": facts.to_json()})


@dataclass(frozen=True, slots=True)
class Decision:
    """`reasons` are the ids of the deciding policies, or the error that prevented a decision."""

    allowed: bool
    reasons: tuple[str, ...]
    version: str


class PolicyEngine(Protocol):
    """A policy engine. Pure: the same question to the same version has the same answer. Every error is a refusal."""

    version: str

    def decide(self, question: Question) -> Decision: ...
