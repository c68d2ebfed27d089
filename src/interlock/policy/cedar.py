"""Embedded Cedar policy engine. An evaluation that fails denies the call: an error must never permit anything."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import cedarpy

from interlock.base.errors import InvalidSpec
from interlock.policy.decision import Action, Decision, Question
from interlock.workflows.facts import MAX_NESTING, nesting

DEFAULT_POLICY = """
@id("models")
permit(principal, action == Action::"call_model", resource);

@id("pure-tools")
permit(principal, action == Action::"call_tool", resource) when { resource.effect == "pure" };

// A tool with an external effect needs a person's approval of exactly this call. A project's policies/*.cedar replace this set.
@id("approved-mutations")
permit(principal, action == Action::"call_tool", resource)
    when { resource.effect == "mutating" && context.approval.present && context.approval.digest_matches };
"""


_MAX_TEXT = 200_000  # characters of all policies of a project


class CedarPolicy:
    """One version of a policy set: Cedar text, named by its digest."""

    def __init__(self, text: str = DEFAULT_POLICY, *, source: str = "the built-in policy") -> None:
        if len(text) > _MAX_TEXT or nesting(text) > MAX_NESTING:
            # Cedar recurses in native code, where a deeply nested policy ends the process.
            raise InvalidSpec(
                f"{source}: has more than {_MAX_TEXT} characters or is nested more than {MAX_NESTING} levels deep; split it up"
            )
        try:
            parsed = json.loads(cedarpy.policies_to_json_str(text))
        except RecursionError as error:
            raise InvalidSpec(f"{source}: a condition has too many terms; split it up into several policies") from error
        except ValueError as error:
            raise InvalidSpec(f"{source}: not valid Cedar: {str(error).splitlines()[0]}") from error
        self.text = text
        self._ids = {key: one.get("annotations", {}).get("id", key) for key, one in parsed["staticPolicies"].items()}
        self.version = hashlib.sha256(text.encode()).hexdigest()[:16]
        # Decisions are pure, so they are cached; parsing the policies is the largest part of an evaluation.
        self._decide = lru_cache(maxsize=4096)(self._evaluate)

    def decide(self, question: Question) -> Decision:
        try:
            # As text, which tells 1 from true, as a remembered answer must.
            given = json.dumps([dict(question.attributes), dict(question.context)], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            return self._unaskable(error)
        roles = tuple(sorted(question.roles))
        return self._decide(question.user_id, question.org_id, roles, question.action, question.resource, given)

    def _evaluate(
        self,
        user_id: str,
        org_id: str,
        roles: tuple[str, ...],
        action: Action,
        resource: str,
        given: str,
    ) -> Decision:
        attributes, context = json.loads(given)
        # As data, not as Cedar text: the text has its own escapes, and every call of O'Brien or José would be refused.
        user = {"type": "User", "id": user_id}
        thing = {"type": "Tool" if action == "call_tool" else "Model", "id": resource}
        request = {
            "principal": user,
            "action": {"type": "Action", "id": action},
            "resource": thing,
            "context": context,
        }
        entities = [
            {"uid": user, "attrs": {"org": org_id, "roles": list(roles)}, "parents": []},
            {"uid": thing, "attrs": attributes, "parents": []},
        ]
        try:
            result = cedarpy.is_authorized(request, self.text, entities)
        except (TypeError, ValueError) as error:
            return self._unaskable(error)
        errors = tuple(str(error) for error in result.diagnostics.errors)
        if errors:
            return Decision(False, errors, self.version)
        reasons = tuple(sorted(self._ids.get(str(reason), str(reason)) for reason in result.diagnostics.reasons))
        return Decision(bool(result.allowed), reasons or ("no policy permits it",), self.version)

    def _unaskable(self, error: Exception) -> Decision:
        return Decision(False, (f"Cedar cannot evaluate this request: {error}",), self.version)
