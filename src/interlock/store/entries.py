"""Audit entries as they go into a commit: not yet chained and signed."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from interlock.base.json import JsonObject
from interlock.base.values import value

EventType = Literal[
    "run.created",
    "run.finished",
    "run.cancel_requested",
    "model.call",
    "tool.call",
    "tool.compensation",
    "review.opened",
    "review.decided",
    "approval.granted",
    "approval.denied",
    "approval.consumed",
    "approval.refused",
    "approval.expired",
    "approval.revoked",
    "dead_letter.opened",
    "dead_letter.requeued",
    "dead_letter.discarded",
    "run.paused",
    "run.resumed",
    "run.signalled",
    "workflow.deployed",
    "policy.activated",
    "org.created",
    "key.created",
    "key.revoked",
    "quota.changed",
    "worker.drain_requested",
    "events.requeued",
    "value.revealed",
    "access.denied",
    "auth.refused",
]
Decision = Literal["allow", "deny", "none"]


@value(frozen=True, slots=True)
class Entry:
    """One audit entry.

    Attributes:
        actor: `user:ID`, `key:ID`, `address:IP` for an unknown caller, or `system`.
        action: name of the action, such as `call_tool`.
        resource: object of the action, such as `tool:issue_refund`.
        decision: the policy's decision; `none` if no policy was evaluated.
        policy_version: digest of the policy set that decided.
        risk_score: 0 to 100, None until risk is scored.
        detail: facts and digests; never a value.
    """

    org_id: str
    event_type: EventType
    actor: str
    action: str
    resource: str
    at: float
    decision: Decision = "none"
    run_id: str | None = None
    trace_id: str | None = None
    policy_version: str | None = None
    risk_score: int | None = None
    detail: JsonObject = field(default_factory=dict)
