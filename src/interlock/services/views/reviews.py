"""Views of reviews."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from interlock.base.json import JsonField
from interlock.services.views.base import View

ReviewStatus = Literal["open", "approved", "rejected", "closed"]
ReviewPurpose = Literal["approve", "approve_act", "confirm"]


class ApprovalView(View):
    """How an approval stands: it may be used once, until it expires, unless it was revoked."""

    expires_at: datetime
    consumed_at: datetime | None
    revoked_at: datetime | None


class ActView(View):
    """The call of a tool that a review is about.

    Attributes:
        step: the instance that makes the call, with `~1` for its first fallback.
        arguments: what the call is made with, redacted; empty once a person it is about was erased.
        labels: of the arguments.
        digest: the beginning of the act's digest.
        approval: null until the review approved it.
    """

    step: str
    tool: str
    arguments: JsonField
    labels: dict[str, JsonField]
    digest: str
    approval: ApprovalView | None


class ReviewView(View):
    """A question to a person. `show` is what the reviewer is to see, redacted; empty once a person it is about was erased.

    Attributes:
        requester: who started the run.
        deadline: until when the decision is awaited, after which the step fails; null without one.
        act: the call of a tool that is approved with it; null if it is about none.
    """

    review_id: str
    run_id: str
    workflow: str
    step: str
    purpose: ReviewPurpose
    title: str
    role: str
    show: JsonField
    status: ReviewStatus
    decided_by: str | None
    note: str | None
    created_at: datetime
    deadline: datetime | None = None
    requester: str
    act: ActView | None


class ReviewPage(View):
    """Reviews, oldest first. `next` is the `after` of the next page; null if this one is not full."""

    reviews: list[ReviewView]
    next: str | None = None
