"""Runs: start, read, follow, signal, cancel."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from interlock.api.access import Caller, Services
from interlock.api.body import Body, Name, StrictRoute
from interlock.app import App
from interlock.base.errors import InvalidInput
from interlock.identity.principal import Principal
from interlock.machine.events import RunStatus
from interlock.services.runs import is_over

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=StrictRoute)

_FOLLOW_SECONDS = 0.2  # interval at which a follower reads new events
_LAST_EVENT = 2**31 - 1  # journal.seq is an integer


class NewRun(Body):
    """A request for a run."""

    workflow: Name = Field(max_length=200)
    input: Any
    priority: int = Field(default=0, ge=-100, le=100)


class Cancellation(Body):
    reason: str = Field(default="", max_length=500)


class Pause(Body):
    reason: str = Field(default="", max_length=500)


class SignalBody(Body):
    """Payload of a signal."""

    payload: Any = Field(default_factory=dict)


@router.post("", status_code=201)
async def start(
    body: NewRun,
    caller: Caller,
    services: Services,
    response: Response,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Starts a run; 201 if new, 200 with the same run for a repeated Idempotency-Key."""
    run_id, new = await services.submission.accept(
        caller, body.workflow, body.input, idempotency_key, priority=body.priority
    )
    response.status_code = 201 if new else 200
    return {"run_id": run_id, "new": new}


@router.get("")
async def page(
    caller: Caller,
    services: Services,
    status: RunStatus | None = None,
    workflow: str | None = None,
    before: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Runs, newest first."""
    return {"runs": await services.runs.page(caller, status=status, workflow=workflow, before=before, limit=limit)}


@router.get("/{run_id}")
async def get(run_id: str, caller: Caller, services: Services) -> dict[str, Any]:
    """One run with its steps and effects."""
    return await services.runs.get(caller, run_id)


@router.get("/{run_id}/result")
async def result(run_id: str, caller: Caller, services: Services, reveal: bool = False) -> dict[str, Any]:
    """The output, redacted; `reveal=true` (role operator, audited) puts personal data back."""
    return {"output": await services.runs.result(caller, run_id, revealed=reveal)}


@router.get("/{run_id}/values")
async def values(run_id: str, caller: Caller, services: Services) -> dict[str, Any]:
    """Input and step outputs, redacted."""
    return {"values": await services.runs.values(caller, run_id)}


@router.get("/{run_id}/trace")
async def trace(run_id: str, caller: Caller, services: Services) -> dict[str, Any]:
    """The run's spans."""
    await services.tracing.flush()
    return {"spans": await services.runs.trace(caller, run_id)}


@router.post("/{run_id}/cancel", status_code=202)
async def cancel(run_id: str, body: Cancellation, caller: Caller, services: Services) -> dict[str, Any]:
    """Cancels a run."""
    await services.signals.cancel(caller, run_id, body.reason)
    return {"run_id": run_id}


@router.post("/{run_id}/signals/{name}", status_code=202)
async def signal(
    run_id: str,
    name: str,
    body: SignalBody,
    caller: Caller,
    services: Services,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Sends a signal to a run, whose workflow waits for it now or later. A repeated Idempotency-Key counts once."""
    signal_id, new = await services.signals.signal(caller, run_id, name, body.payload, idempotency_key)
    return {"run_id": run_id, "signal_id": signal_id, "new": new}


@router.post("/{run_id}/pause", status_code=202)
async def pause(run_id: str, body: Pause, caller: Caller, services: Services) -> dict[str, Any]:
    """Pauses a run: work under way is finished, no new work starts."""
    await services.signals.pause(caller, run_id, body.reason)
    return {"run_id": run_id}


@router.post("/{run_id}/resume", status_code=202)
async def resume(run_id: str, caller: Caller, services: Services) -> dict[str, Any]:
    """Resumes a paused run."""
    await services.signals.resume(caller, run_id)
    return {"run_id": run_id}


@router.get("/{run_id}/events")
async def events(
    run_id: str,
    request: Request,
    caller: Caller,
    services: Services,
    after: Annotated[int, Query(ge=0, le=_LAST_EVENT)] = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Server-sent events: every journal entry after `after` (or Last-Event-ID), then `end` when the run has ended."""
    if last_event_id is not None:
        # isdigit alone would accept ², which int does not
        if not (last_event_id.isascii() and last_event_id.isdigit()) or len(last_event_id) > len(str(_LAST_EVENT)):
            raise InvalidInput("Last-Event-ID must be the number of the last event seen")
        after = min(int(last_event_id), _LAST_EVENT)
    await services.runs.events(caller, run_id, after)  # so that an error is returned before the stream starts
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    stream = _follow(services, caller, run_id, after, request.app.state.stopping)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


_END = ("run_id", "status", "reason", "input_tokens", "output_tokens", "usd", "usd_priced", "unpriced_calls")


async def _follow(
    services: App, caller: Principal, run_id: str, after: int, stopping: asyncio.Event
) -> AsyncIterator[str]:
    while not stopping.is_set():  # at shutdown without an `end`: the client reconnects and resumes
        run = await services.runs.get(caller, run_id)  # read before the events, so that the last of them is not missed
        for event in await services.runs.events(caller, run_id, after):
            after = event["seq"]
            yield f"id: {after}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
        if is_over(run["status"]):
            end = {key: run[key] for key in _END}
            yield f"event: end\ndata: {json.dumps(end)}\n\n"
            return
        yield ": still here\n\n"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FOLLOW_SECONDS):
                await stopping.wait()
