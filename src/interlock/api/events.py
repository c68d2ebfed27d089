"""Event streams of runs, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, get_args

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from interlock.api.access import Caller, UseCases, authenticated
from interlock.api.body import PathId
from interlock.api.errors import documented
from interlock.base.errors import InterlockError, InvalidInput
from interlock.identity.principal import Principal
from interlock.services.views.events import (
    JournalEntry,
    ReviewClosed,
    ReviewOpened,
    RunEnded,
    StateKind,
    StatusChanged,
    StreamEvent,
    StreamFailed,
    Waiting,
)
from interlock.telemetry import names
from interlock.telemetry.logs import log

router = APIRouter(prefix="/v1/runs", tags=["runs"])

_LAST_EVENT = 2**31 - 1  # journal.seq is an integer
_KINDS: dict[type[BaseModel], StateKind] = {
    StatusChanged: "status",
    Waiting: "waiting",
    ReviewOpened: "review_opened",
    ReviewClosed: "review_closed",
    RunEnded: "end",
    StreamFailed: "error",
}
_MODELS: dict[str, type[BaseModel]] = {"*": JournalEntry} | {kind: model for model, kind in _KINDS.items()}
_STREAM: dict[str, object] = {
    "description": (
        "Server-sent events. Each has a name (`event`) and a JSON object (`data`) of one of these models; journal entries have "
        "their number as `id` and their type as name."
    ),
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "string",
                "description": "Events; x-event-models has the model of each name, and under * the model of journal entries.",
            }
        }
    },
}


@router.get(
    "/{run_id}/events",
    operation_id="follow_run",
    response_class=StreamingResponse,
    responses={200: _STREAM, **documented(404, 429)},
    openapi_extra={
        "x-event-models": {name: {"$ref": f"#/components/schemas/{model.__name__}"} for name, model in _MODELS.items()}
    },
)
async def events(
    run_id: PathId,
    request: Request,
    caller: Caller,
    services: UseCases,
    after: Annotated[int, Query(ge=0, le=_LAST_EVENT)] = 0,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="The number of the last journal entry seen; before `after`."),
    ] = None,
) -> StreamingResponse:
    """Follow a run.

    Server-sent events: every journal entry after `after` (or Last-Event-ID) once and in order, named by its type; and the state of
    the run as it changes: `status`, `waiting`, `review_opened`, `review_closed`. `end` follows when the run has ended, `error` when
    the stream ends for another reason, such as a revoked key. A stream interrupted without either is resumed with Last-Event-ID.
    """
    if last_event_id is not None:
        # isdigit alone accepts ², which int does not
        if not (last_event_id.isascii() and last_event_id.isdigit()) or len(last_event_id) > len(str(_LAST_EVENT)):
            raise InvalidInput("Last-Event-ID must be the number of the last event seen")
        after = min(int(last_event_id), _LAST_EVENT)

    async def authenticate() -> Principal:
        return await authenticated(request)

    found = await services.followers.follow(
        caller, run_id, after, authenticate=authenticate, stopping=request.app.state.stopping
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_frames(found), media_type="text/event-stream", headers=headers)


async def _frames(found: AsyncIterator[StreamEvent | None]) -> AsyncIterator[str]:
    try:
        async for event in found:
            yield ": still here\n\n" if event is None else _frame(event)
    except InterlockError as error:
        yield _frame(StreamFailed(code=error.code, message=error.message))
    except Exception as error:  # noqa: BLE001  the response has started, so it cannot become a 500
        log(names.LOG_INTERNAL, str(error), level="error", exc_info=error)
        yield _frame(StreamFailed(code="internal", message="an internal error; the server's log has the details"))


def _frame(event: StreamEvent) -> str:
    data = json.dumps(event.to_json())
    if isinstance(event, JournalEntry):
        return f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n"
    return f"event: {_KINDS[type(event)]}\ndata: {data}\n\n"


def event_models() -> tuple[type[BaseModel], ...]:
    """The models of all events of a stream."""
    return get_args(StreamEvent)
