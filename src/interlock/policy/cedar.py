"""Embedded Cedar policy engine. An evaluation that fails denies the call: an error must never permit anything."""

from __future__ import annotations

import hashlib
import json

import cedarpy

from interlock.base.errors import InvalidSpec
from interlock.policy.decision import Decision, Question
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


_CACHED = 4096  # decisions of a policy set


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
        # Decisions are pure, so they are cached; the least recently stored goes first.
        self._decisions: dict[object, Decision] = {}

    async def decide(self, question: Question) -> Decision:
        return self.evaluate(question)

    def evaluate(self, question: Question) -> Decision:
        """The decision, without waiting: for checks before a run."""
        asker = (question.user_id, question.org_id, question.roles, question.action, question.resource)
        try:
            key = (asker, _frozen(question.attributes), _frozen(question.context))
            known = self._decisions.get(key)
            if known is not None:
                return known
            decision = self._decisions[key] = self._evaluate(question)
        except (TypeError, ValueError) as error:
            return Decision(False, (f"Cedar cannot evaluate this request: {error}",), self.version)
        if len(self._decisions) > _CACHED:
            del self._decisions[next(iter(self._decisions))]
        return decision

    def _evaluate(self, question: Question) -> Decision:
        """Raises TypeError or ValueError for a request that Cedar cannot be asked."""
        given = json.dumps([dict(question.attributes), dict(question.context)], allow_nan=False)
        attributes, context = json.loads(given)
        # As data, not as Cedar text: the text has its own escapes, and every call of O'Brien or José would be refused.
        user = {"type": "User", "id": question.user_id}
        thing = {"type": "Tool" if question.action == "call_tool" else "Model", "id": question.resource}
        request = {
            "principal": user,
            "action": {"type": "Action", "id": question.action},
            "resource": thing,
            "context": context,
        }
        entities = [
            {"uid": user, "attrs": {"org": question.org_id, "roles": sorted(question.roles)}, "parents": []},
            {"uid": thing, "attrs": attributes, "parents": []},
        ]
        result = cedarpy.is_authorized(request, self._policies, entities)
        errors = tuple(str(error) for error in result.diagnostics.errors)
        if errors:
            return Decision(False, errors, self.version)
        ids = result.diagnostics.id_annotations_by_reason
        reasons = tuple(sorted(str(ids.get(reason) or reason) for reason in result.diagnostics.reasons))
        return Decision(bool(result.allowed), reasons or ("no policy permits it",), self.version)


def _frozen(value: object) -> object:
    """A hashable value that is equal for equal JSON values only: Python takes 1 for true, and a cached decision must not.

    Raises:
        TypeError: the value is no JSON.
    """
    kind = type(value)
    if kind is str:
        return value
    if isinstance(value, dict):
        return (dict, *[(name, _frozen(one)) for name, one in value.items()])
    if isinstance(value, list):
        return (list, *[_frozen(one) for one in value])
    if value is None or kind in (bool, int, float):
        return (kind, value)
    raise TypeError(f"a {kind.__name__} is no JSON value")


def version_of(text: str) -> str:
    """Name of a policy set: the first 16 digits of its text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
