"""Port of a policy engine: a question, and a decision with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Action = Literal["call_tool", "call_model"]


@dataclass(frozen=True, slots=True)
class Question:
    """A request for a decision: may this principal perform this action on this resource in this run?

    Attributes:
        resource: name of the tool or of the model's alias.
        attributes: of the resource, such as `effect`; strings, numbers and booleans.
        context: of the run and the step: workflow, trust and sensitivity of the input, whether a person has approved a review.
    """

    user_id: str
    org_id: str
    roles: frozenset[str]
    action: Action
    resource: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)


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
