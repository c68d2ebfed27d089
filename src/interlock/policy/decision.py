"""The port of a policy engine: a question, and an answer that says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Action = Literal["call_tool", "call_model"]


@dataclass(frozen=True, slots=True)
class Question:
    """May this principal do this, with this, in this run?

    Attributes:
        resource: name of the tool or of the model's alias.
        attributes: of the resource, such as `effect`; strings, numbers and booleans.
        context: of the run and the step: workflow, trust and sensitivity of the input, whether a person reviewed.
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
    """`reasons` are ids of the policies that decided, or what kept the engine from deciding."""

    allowed: bool
    reasons: tuple[str, ...]
    version: str


class PolicyEngine(Protocol):
    """Pure in its question: the same question to the same version has the same answer. Any doubt is a no."""

    version: str

    def decide(self, question: Question) -> Decision: ...
