"""Dead letters: list, show, requeue, discard."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from interlock.api.access import Caller, Services
from interlock.api.body import Body, StrictRoute

router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"], route_class=StrictRoute)


class RequeueBody(Body):
    """Requeue a dead letter; `input` replaces the step's arguments, the prompt's slots or the run's input."""

    note: str = Field(default="", max_length=4000)
    input: dict[str, Any] | None = None


class DiscardBody(Body):
    """Discard a dead letter."""

    note: str = Field(default="", max_length=4000)


@router.get("")
async def page(
    caller: Caller,
    services: Services,
    status: Literal["open", "requeued", "discarded", "closed", "all"] = "open",
    run_id: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Dead letters, oldest first, without values; `after` is the last id of the page before."""
    wanted = None if status == "all" else status
    return {
        "dead_letters": await services.dead_letters.page(
            caller, status=wanted, run_id=run_id, after=after, limit=limit
        ),
    }


@router.get("/{dead_letter_id}")
async def get(dead_letter_id: str, caller: Caller, services: Services) -> dict[str, Any]:
    """One dead letter, with the input that a requeue would use."""
    return await services.dead_letters.get(caller, dead_letter_id)


@router.post("/{dead_letter_id}/requeue")
async def requeue(dead_letter_id: str, body: RequeueBody, caller: Caller, services: Services) -> dict[str, Any]:
    """Requeues a dead letter; its work is retried at once."""
    return await services.dead_letters.requeue(caller, dead_letter_id, body.note, body.input)


@router.post("/{dead_letter_id}/discard")
async def discard(dead_letter_id: str, body: DiscardBody, caller: Caller, services: Services) -> dict[str, Any]:
    """Discards a dead letter."""
    return await services.dead_letters.discard(caller, dead_letter_id, body.note)
