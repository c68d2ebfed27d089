"""Views of policy sets."""

from __future__ import annotations

from datetime import datetime

from interlock.services.views.base import View


class PolicySetView(View):
    """A policy set. The built-in one has no author and no date; `active` marks the one that is in force."""

    version: str
    built_in: bool
    active: bool
    created_by: str | None
    created_at: datetime | None


class PolicySetList(View):
    """An organisation's policy sets, newest first, with the built-in one at the end."""

    policies: list[PolicySetView]


class PolicySetText(PolicySetView):
    """A policy set with its Cedar text."""

    text: str


class PolicyActivation(View):
    """The policy set in force after an activation; `changed` is false if it was in force before."""

    version: str
    built_in: bool
    changed: bool
