"""Which tools a policy lets be called with a person's approval only, as far as that can be said before a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from interlock.base.labels import Sensitivity, Trust
from interlock.identity.principal import ROLES
from interlock.policy.decision import NO_APPROVAL, ApprovalFacts, PolicyEngine, Question
from interlock.workflows.check_approvals import NeedsApproval
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import Workflow

_APPROVED = ApprovalFacts(True, ROLES, 2, digest_matches=True)
_STARTERS = (frozenset({"operator"}), frozenset({"developer"}), frozenset({"admin"}))
"""Roles of those who may start runs."""


def needs_approval(policy: PolicyEngine, workflow: Workflow, tools: Mapping[str, ToolContract]) -> NeedsApproval:
    """True if some run could need an approval for a call: the policy denies it without one and allows it with one.

    A policy may make that depend on who started the run and on the labels of the arguments, so all of those are tried. What it
    makes of one user's name cannot be.
    """

    def needs(path: str, tool: str) -> bool:
        contract = tools[tool]
        attributes = {"effect": contract.effect, "scopes": sorted(contract.scopes)}
        for roles, trust, sensitivity in itertools.product(_STARTERS, reversed(Trust), reversed(Sensitivity)):
            context = {
                "workflow": workflow.name,
                "step": path,
                "trust": trust.name.lower(),
                "sensitivity": sensitivity.name.lower(),
            }
            question = Question("", "", roles, "call_tool", tool, attributes, context)
            if policy.decide(question.approved(NO_APPROVAL)).allowed:
                continue
            if policy.decide(question.approved(_APPROVED)).allowed:
                return True
        return False

    return needs
