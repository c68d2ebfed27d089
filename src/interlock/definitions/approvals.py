"""Tools that a policy permits only with a person's approval, as far as this is known before a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from interlock.base.labels import Sensitivity, Trust
from interlock.identity.principal import ROLES
from interlock.policy.cedar import CedarPolicy
from interlock.policy.decision import NO_APPROVAL, ApprovalFacts, Question
from interlock.policy.schema import tool_attributes
from interlock.workflows.check_approvals import NeedsApproval
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import Workflow

_APPROVED = ApprovalFacts(True, ROLES, 2, digest_matches=True)
_STARTERS = (frozenset({"operator"}), frozenset({"developer"}), frozenset({"admin"}))
"""Roles of principals who may start runs."""


def needs_approval(policy: CedarPolicy, workflow: Workflow, tools: Mapping[str, ToolContract]) -> NeedsApproval:
    """True if some run could need an approval for a call: the policy denies it without one and allows it with one.

    A policy may decide by the roles of the requester and the labels of the arguments, so all of these are tried. A decision
    by the name of a user cannot be predicted.
    """

    def needs(path: str, tool: str) -> bool:
        attributes = tool_attributes(tools[tool])
        for roles, trust, sensitivity in itertools.product(_STARTERS, reversed(Trust), reversed(Sensitivity)):
            context = {
                "workflow": workflow.name,
                "step": path,
                "trust": trust.name.lower(),
                "sensitivity": sensitivity.name.lower(),
            }
            question = Question("", "", roles, "call_tool", tool, attributes, context)
            if policy.evaluate(question.approved(NO_APPROVAL)).allowed:
                continue
            if policy.evaluate(question.approved(_APPROVED)).allowed:
                return True
        return False

    return needs
