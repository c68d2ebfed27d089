"""Dead letters: list, show, requeue, discard."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from interlock.api.access import Caller, UseCases
from interlock.api.body import Body, Limit, Note, PathId, QueryId, StrictRoute
from interlock.api.errors import documented
from interlock.base.json import JsonField
from interlock.services.views.dead_letters import DeadLetterDetail, DeadLetterPage, DeadLetterView

router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"], route_class=StrictRoute)


class RequeueBody(Body):
    """Requeue a dead letter; `input` replaces the step's arguments, the prompt's slots or the run's input."""

    note: Note = ""
    input: dict[str, JsonField] | None = None


class DiscardBody(Body):
    """Discard a dead letter."""

    note: Note = ""


@router.get("", operation_id="list_dead_letters", responses=documented())
async def page(
    caller: Caller,
    services: UseCases,
    status: Literal["open", "requeued", "discarded", "closed", "all"] = "open",
    run_id: QueryId = None,
    after: QueryId = None,
    limit: Limit = 50,
) -> DeadLetterPage:
    """List dead letters.

    Oldest first, without values; `after` is `next` of the previous page.
    """
    wanted = None if status == "all" else status
    found = await services.dead_letters.page(caller, status=wanted, run_id=run_id, after=after, limit=limit)
    return DeadLetterPage(dead_letters=found, next=found[-1].dead_letter_id if len(found) == limit else None)


@router.get("/{dead_letter_id}", operation_id="get_dead_letter", responses=documented(404))
async def get(dead_letter_id: PathId, caller: Caller, services: UseCases) -> DeadLetterDetail:
    """Get a dead letter with the input that a requeue would use."""
    return await services.dead_letters.get(caller, dead_letter_id)


@router.post("/{dead_letter_id}/requeue", operation_id="requeue_dead_letter", responses=documented(404, 409, 410, 413))
async def requeue(dead_letter_id: PathId, body: RequeueBody, caller: Caller, services: UseCases) -> DeadLetterView:
    """Requeue a dead letter; its work is retried at once."""
    return await services.dead_letters.requeue(caller, dead_letter_id, body.note, body.input)


@router.post("/{dead_letter_id}/discard", operation_id="discard_dead_letter", responses=documented(404, 409, 413))
async def discard(dead_letter_id: PathId, body: DiscardBody, caller: Caller, services: UseCases) -> DeadLetterView:
    """Discard a dead letter; its work is not retried."""
    return await services.dead_letters.discard(caller, dead_letter_id, body.note)
