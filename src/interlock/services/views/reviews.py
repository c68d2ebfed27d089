"""Views of reviews."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from interlock.services.views.base import View

ReviewStatus = Literal["open", "approved", "rejected", "closed"]
ReviewPurpose = Literal["approve", "confirm"]


class ReviewView(View):
    """A question to a person. `show` is what the reviewer is to see, redacted; empty once a person it is about was erased."""

    review_id: str
    run_id: str
    workflow: str
    step: str
    purpose: ReviewPurpose
    title: str
    role: str
    show: Any
    status: ReviewStatus
    decided_by: str | None
    note: str | None
    created_at: datetime


class ReviewPage(View):
    """Reviews, oldest first."""

    reviews: list[ReviewView]
