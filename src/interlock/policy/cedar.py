"""Cedar, embedded. A policy that cannot be evaluated denies: an error must never open a door."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Any

import cedarpy

from interlock.base.errors import InvalidSpec
from interlock.policy.decision import Answer, Question

DEFAULT_POLICY = """
@id("models")
permit(principal, action == Action::"call_model", resource);

@id("pure-tools")
permit(principal, action == Action::"call_tool", resource) when { resource.effect == "pure" };

// A tool that changes the world needs a person's approval in the same run. A project's policies/*.cedar replace this set.
@id("reviewed-mutations")
permit(principal, action == Action::"call_tool", resource)
    when { resource.effect == "mutating" && context.reviewed };
"""


class CedarPolicy:
    """One version of a policy set: Cedar text, named by its digest."""

    def __init__(self, text: str = DEFAULT_POLICY, *, source: str = "the built-in policy") -> None:
        try:
            parsed = json.loads(cedarpy.policies_to_json_str(text))
        except ValueError as error:
            raise InvalidSpec(f"{source}: not valid Cedar: {str(error).splitlines()[0]}") from error
        self.text = text
        self._ids = {key: one.get("annotations", {}).get("id", key) for key, one in parsed["staticPolicies"].items()}
        self.version = hashlib.sha256(text.encode()).hexdigest()[:16]
        # Decisions are pure, so they are remembered; parsing the policies costs more than everything else.
        self._decide = lru_cache(maxsize=4096)(self._evaluate)

    def decide(self, question: Question) -> Answer:
        request = {
            "principal": f"User::{json.dumps(question.user_id)}",
            "action": f"Action::{json.dumps(question.action)}",
            "resource": f"{_kind(question)}::{json.dumps(question.resource)}",
            "context": dict(question.context),
        }
        return self._decide(json.dumps(request, sort_keys=True), json.dumps(_entities(question), sort_keys=True))

    def _evaluate(self, request: str, entities: str) -> Answer:
        result = cedarpy.is_authorized(json.loads(request), self.text, json.loads(entities))
        errors = tuple(str(error) for error in result.diagnostics.errors)
        if errors:
            return Answer(False, errors, self.version)
        reasons = tuple(sorted(self._ids.get(str(reason), str(reason)) for reason in result.diagnostics.reasons))
        return Answer(bool(result.allowed), reasons or ("no policy permits it",), self.version)


def _kind(question: Question) -> str:
    return "Tool" if question.action == "call_tool" else "Model"


def _entities(question: Question) -> list[dict[str, Any]]:
    user = {
        "uid": {"type": "User", "id": question.user_id},
        "attrs": {"org": question.org_id, "roles": sorted(question.roles)},
        "parents": [],
    }
    resource = {
        "uid": {"type": _kind(question), "id": question.resource},
        "attrs": dict(question.attributes),
        "parents": [],
    }
    return [user, resource]
