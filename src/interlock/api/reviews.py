"""Reviews: list, show, decide."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from interlock.api.access import Caller, Services
from interlock.api.body import Body, StrictRoute

router = APIRouter(prefix="/v1/reviews", tags=["reviews"], route_class=StrictRoute)

_FIELDS = (
    "review_id", "run_id", "workflow", "step", "purpose", "title", "role", "show", "status", "decided_by", "note", "created_at",
)  # fmt: skip


class DecisionBody(Body):
    """A person's decision. `output`: the tool's result, only for an approved `confirm` review."""

    decision: Literal["approve", "reject"]
    note: str = Field(default="", max_length=4000)
    output: Any = None


@router.get("")
async def page(
    caller: Caller,
    services: Services,
    status: Literal["open", "approved", "rejected", "closed", "all"] = "open",
    run_id: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Reviews, oldest first; `after` is the last id of the page before."""
    wanted = None if status == "all" else status
    found = await services.reviews.page(caller, status=wanted, run_id=run_id, after=after, limit=limit)
    return {"reviews": [_public(review) for review in found]}


@router.get("/{review_id}")
async def get(review_id: str, caller: Caller, services: Services) -> dict[str, Any]:
    """One review with the values to show to the reviewer."""
    return _public(await services.reviews.get(caller, review_id))


@router.post("/{review_id}/decision")
async def decide(review_id: str, body: DecisionBody, caller: Caller, services: Services) -> dict[str, Any]:
    """Decides a review; the run continues at once."""
    return _public(await services.reviews.decide(caller, review_id, body.decision, body.note, body.output))


def _public(review: dict[str, Any]) -> dict[str, Any]:
    return {name: review[name].isoformat() if hasattr(review[name], "isoformat") else review[name] for name in _FIELDS}
