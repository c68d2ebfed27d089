"""Runs: start, read, signal, pause, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response
from pydantic import Field

from interlock.api.access import Caller, UseCases
from interlock.api.body import Body, Flag, Limit, Name, PathId, QueryId, StrictRoute
from interlock.api.errors import documented
from interlock.base.json import JsonField
from interlock.machine.events import RunStatus
from interlock.services.views.runs import (
    Failures,
    RunPage,
    RunRef,
    RunResult,
    RunValues,
    RunView,
    SentSignal,
    StartedRun,
    Trace,
)

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=StrictRoute)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=200,
        description="1 to 200 printable characters; a request repeated with the same key counts once.",
    ),
]


class NewRun(Body):
    """A request for a run."""

    workflow: Name = Field(max_length=200)
    input: JsonField
    priority: int = Field(default=0, ge=-100, le=100)


class Cancellation(Body):
    """Reason of a cancellation; recorded in the audit log."""

    reason: str = Field(default="", max_length=500)


class Pause(Body):
    """Reason of a pause; recorded in the audit log."""

    reason: str = Field(default="", max_length=500)


class SignalBody(Body):
    """Payload of a signal."""

    payload: JsonField = Field(default_factory=dict)


@router.post(
    "",
    status_code=201,
    operation_id="start_run",
    response_model=StartedRun,
    responses={
        200: {"model": StartedRun, "description": "The run started by an earlier request with this Idempotency-Key."},
        **documented(404, 409, 413),
    },
)
async def start(
    body: NewRun, caller: Caller, services: UseCases, response: Response, idempotency_key: IdempotencyKey = None
) -> StartedRun:
    """Start a run.

    The same Idempotency-Key with the same input is the same run: 201 if it is new, else 200.
    """
    run_id, new = await services.submission.accept(
        caller, body.workflow, body.input, idempotency_key, priority=body.priority
    )
    response.status_code = 201 if new else 200
    return StartedRun(run_id=run_id, new=new)


@router.get("", operation_id="list_runs", responses=documented())
async def page(
    caller: Caller,
    services: UseCases,
    status: RunStatus | None = None,
    workflow: QueryId = None,
    before: QueryId = None,
    limit: Limit = 50,
) -> RunPage:
    """List runs.

    Newest first; `before` is `next` of the previous page.
    """
    found = await services.runs.page(caller, status=status, workflow=workflow, before=before, limit=limit)
    return RunPage(runs=found, next=found[-1].run_id if len(found) == limit else None)


@router.get("/{run_id}", operation_id="get_run", responses=documented(404))
async def get(run_id: PathId, caller: Caller, services: UseCases) -> RunView:
    """Get a run with its steps and effects."""
    return await services.runs.get(caller, run_id)


@router.get("/{run_id}/result", operation_id="get_run_result", responses=documented(404, 409, 410))
async def result(run_id: PathId, caller: Caller, services: UseCases, reveal: Flag = False) -> RunResult:
    """Get a run's output.

    Redacted; `reveal=true` (role operator, recorded in the audit log) restores personal data. 409 until the run has ended.
    """
    return RunResult(output=await services.runs.result(caller, run_id, revealed=reveal))


@router.get("/{run_id}/values", operation_id="get_run_values", responses=documented(404, 410))
async def values(run_id: PathId, caller: Caller, services: UseCases) -> RunValues:
    """Get a run's input and step outputs, redacted."""
    return RunValues(values=await services.runs.values(caller, run_id))


@router.get("/{run_id}/failures", operation_id="get_run_failures", responses=documented(404))
async def failures(run_id: PathId, caller: Caller, services: UseCases, limit: Limit = 20) -> Failures:
    """Get the last failure of each failed step of a run.

    Latest first, with the traceback within the tool's code and the end of its output; redacted.
    """
    return Failures(failures=await services.runs.failures(caller, run_id, limit))


@router.get("/{run_id}/trace", operation_id="get_run_trace", responses=documented(404))
async def trace(run_id: PathId, caller: Caller, services: UseCases) -> Trace:
    """Get a run's spans."""
    return Trace(spans=await services.runs.trace(caller, run_id))


@router.post("/{run_id}/cancel", status_code=202, operation_id="cancel_run", responses=documented(404, 409, 410, 413))
async def cancel(run_id: PathId, body: Cancellation, caller: Caller, services: UseCases) -> RunRef:
    """Cancel a run."""
    await services.signals.cancel(caller, run_id, body.reason)
    return RunRef(run_id=run_id)


@router.post(
    "/{run_id}/signals/{name}", status_code=202, operation_id="signal_run", responses=documented(404, 409, 410, 413)
)
async def signal(
    run_id: PathId,
    name: PathId,
    body: SignalBody,
    caller: Caller,
    services: UseCases,
    idempotency_key: IdempotencyKey = None,
) -> SentSignal:
    """Send a run a signal.

    The run's workflow waits for it, now or later. A repeated Idempotency-Key counts once.
    """
    return await services.signals.signal(caller, run_id, name, body.payload, idempotency_key)


@router.post("/{run_id}/pause", status_code=202, operation_id="pause_run", responses=documented(404, 409, 413))
async def pause(run_id: PathId, body: Pause, caller: Caller, services: UseCases) -> RunRef:
    """Pause a run: work under way is finished, no new work starts."""
    await services.signals.pause(caller, run_id, body.reason)
    return RunRef(run_id=run_id)


@router.post("/{run_id}/resume", status_code=202, operation_id="resume_run", responses=documented(404, 409))
async def resume(run_id: PathId, caller: Caller, services: UseCases) -> RunRef:
    """Resume a paused run."""
    await services.signals.resume(caller, run_id)
    return RunRef(run_id=run_id)
