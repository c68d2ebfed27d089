"""Embedded Cedar policy engine. An evaluation that fails denies the call: an error must never permit anything."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import cedarpy
from pydantic_core import to_json

from interlock.base.errors import InvalidSpec
from interlock.policy.decision import Action, Decision, Question
from interlock.policy.text import excess

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


class CedarPolicy:
    """One version of a policy set: Cedar text, parsed once and named by its digest.

    Raises:
        InvalidSpec: the text exceeds a bound, is not Cedar, or has a template, which would never apply.
    """

    immediate = True

    def __init__(self, text: str = DEFAULT_POLICY, *, source: str = "the built-in policy") -> None:
        fault = excess(text)
        if fault is not None:
            raise InvalidSpec(f"{source}: {fault}")
        try:
            self._policies = cedarpy.PolicySet.from_str(text)
        except ValueError as error:
            raise InvalidSpec(f"{source}: not valid Cedar: {str(error).splitlines()[0]}") from error
        if self._policies.templates():
            raise InvalidSpec(f"{source}: a policy with ?principal or ?resource never applies; name the entity instead")
        self.text = text
        self.version = version_of(text)
        # Decisions are pure, so they are cached.
        self._decide = lru_cache(maxsize=4096)(self._evaluate)

    async def decide(self, question: Question) -> Decision:
        return self.evaluate(question)

    def evaluate(self, question: Question) -> Decision:
        """The decision, without waiting: for checks before a run."""
        roles = tuple(sorted(question.roles))
        try:
            # As text, which distinguishes 1 from true; a cached decision must not mix them.
            given = to_json([question.attributes, question.context], inf_nan_mode="constants").decode()
            return self._decide(question.user_id, question.org_id, roles, question.action, question.resource, given)
        except (TypeError, ValueError) as error:
            return self._unaskable(error)

    def _evaluate(
        self,
        user_id: str,
        org_id: str,
        roles: tuple[str, ...],
        action: Action,
        resource: str,
        given: str,
    ) -> Decision:
        attributes, context = json.loads(given, parse_constant=_refuse)
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
        result = cedarpy.is_authorized(request, self._policies, entities)
        errors = tuple(str(error) for error in result.diagnostics.errors)
        if errors:
            return Decision(False, errors, self.version)
        ids = result.diagnostics.id_annotations_by_reason
        reasons = tuple(sorted(str(ids.get(reason) or reason) for reason in result.diagnostics.reasons))
        return Decision(bool(result.allowed), reasons or ("no policy permits it",), self.version)

    def _unaskable(self, error: Exception) -> Decision:
        return Decision(False, (f"Cedar cannot evaluate this request: {error}",), self.version)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number that a policy can read")


def version_of(text: str) -> str:
    """Name of a policy set: the first 16 digits of its text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
