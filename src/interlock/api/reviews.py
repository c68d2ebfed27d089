"""Reviews: questions to people, and their decisions."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from interlock.api.access import Caller, UseCases
from interlock.api.body import Body, Limit, Note, PathId, QueryId, StrictRoute
from interlock.api.errors import documented
from interlock.base.json import JsonField
from interlock.services.views.reviews import ReviewPage, ReviewView

router = APIRouter(prefix="/v1/reviews", tags=["reviews"], route_class=StrictRoute)


class DecisionBody(Body):
    """A person's decision. `output`: the tool's result, only for an approved `confirm` review."""

    decision: Literal["approve", "reject"]
    note: Note = ""
    output: JsonField = None


@router.get("", operation_id="list_reviews", responses=documented())
async def page(
    caller: Caller,
    services: UseCases,
    status: Literal["open", "approved", "rejected", "closed", "all"] = "open",
    run_id: QueryId = None,
    after: QueryId = None,
    limit: Limit = 50,
) -> ReviewPage:
    """List reviews.

    Oldest first; `after` is `next` of the previous page.
    """
    wanted = None if status == "all" else status
    found = await services.reviews.page(caller, status=wanted, run_id=run_id, after=after, limit=limit)
    return ReviewPage(reviews=found, next=found[-1].review_id if len(found) == limit else None)


@router.get("/{review_id}", operation_id="get_review", responses=documented(404))
async def get(review_id: PathId, caller: Caller, services: UseCases) -> ReviewView:
    """Get a review with the values to show to the reviewer."""
    return await services.reviews.get(caller, review_id)


@router.post("/{review_id}/decision", operation_id="decide_review", responses=documented(404, 409, 410, 413))
async def decide(review_id: PathId, body: DecisionBody, caller: Caller, services: UseCases) -> ReviewView:
    """Decide a review; the run continues at once."""
    return await services.reviews.decide(caller, review_id, body.decision, body.note, body.output)


@router.post("/{review_id}/revocation", operation_id="revoke_approval", responses=documented(404, 409))
async def revoke(review_id: PathId, caller: Caller, services: UseCases) -> ReviewView:
    """Revoke the approval of a call that has not been made yet."""
    return await services.reviews.revoke(caller, review_id)
