"""Runs as their owners see them: state, steps, result, trace, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

from interlock.base.clock import Clock
from interlock.base.error_detail import ErrorDetail
from interlock.base.errors import Conflict, Erased, NotFound
from interlock.base.json import Json, JsonObject
from interlock.base.refs import Ref
from interlock.base.usage import cost_json
from interlock.definitions.versions import Versions
from interlock.execution.loading import fold_in_slices, folded, journal_of
from interlock.fleet.workers import SILENT_SECONDS
from interlock.guard.pii import reveal
from interlock.identity.principal import Principal
from interlock.machine.events import CompensationFailed, Event, Failure, StepFailed
from interlock.machine.program import Program
from interlock.machine.state import RunState
from interlock.services.cursors import unknown_cursor
from interlock.services.ingest import vault_of
from interlock.services.journal import journal_in
from interlock.services.timeline import StepTimes, step_times, timed_spans
from interlock.services.views.runs import EffectView, FailureView, RunSummary, RunView, SpanView, StepView
from interlock.services.waiting import waits_for, way_of
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database, Row, Snapshot
from interlock.store.entries import Entry, EventType
from interlock.telemetry.tracing import Tracing

MAX_PAGE = 200


class Runs:
    """Reads for one organisation at a time; every call names its principal."""

    def __init__(
        self,
        database: Database,
        committer: Committer,
        versions: Versions,
        artifacts: Artifacts,
        tracing: Tracing,
        clock: Clock,
    ) -> None:
        self._database = database
        self._committer = committer
        self._versions = versions
        self._artifacts = artifacts
        self._tracing = tracing
        self._clock = clock

    async def page(
        self,
        principal: Principal,
        *,
        status: str | None = None,
        workflow: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[RunSummary]:
        """Newest first; `before` is the last run id of the page before."""
        principal.require("run.read")
        if before is not None and await self._database.row("get_run", before, org=principal.org_id) is None:
            raise unknown_cursor("before", before)
        rows = await self._database.rows(
            "list_runs", status, workflow, before, min(limit, MAX_PAGE), org=principal.org_id
        )
        return [summary(row) for row in rows]

    async def get(self, principal: Principal, run_id: str) -> RunView:
        """A run with its steps, folded from the journal.

        Raises:
            NotFound: no such run in this organisation.
        """
        principal.require("run.read")

        async def read(snapshot: Snapshot) -> tuple[Row, list[Event], list[Row], list[Row], bool, list[Row]]:
            row = _found(await snapshot.row("get_run", run_id), run_id)
            journal = await journal_in(snapshot, run_id)
            effects = await snapshot.rows("list_effects", run_id)
            orphan = await snapshot.row("needs_worker", run_id, SILENT_SECONDS)
            asked = await snapshot.rows("open_questions", run_id)
            quotas = await snapshot.rows("list_quotas")
            return row, journal, effects, asked, orphan is not None and bool(orphan["needed"]), quotas

        # In one snapshot, or the status could be one commit behind the steps.
        row, journal, effects, asked, orphan, quotas = await self._database.in_snapshot(read, org=principal.org_id)
        version = await self._versions.get(row["org_id"], row["workflow"], row["version"])
        state, times = await fold_in_slices(version.program, journal, RunState()), step_times(journal)
        errors = {
            name: await self._error(principal, step.failure) for name, step in state.steps.items() if step.failure
        }
        return await asyncio.to_thread(
            _run, row, version.program, state, times, errors, effects, asked, quotas, needs_worker=orphan
        )

    async def result(self, principal: Principal, run_id: str, *, revealed: bool = False) -> Json:
        """The run's output, redacted; with `revealed` (role operator, audited) with the personal data back in it.

        Raises:
            Conflict: the run is not over yet.
        """
        row = await self._row(principal, run_id)
        if row["output"] is None:
            raise Conflict(f"run {run_id} is {row['status']}; its result is there once it is over")
        output = await self._artifacts.open(principal.org_id, Ref.from_json(row["output"]))
        if not revealed:
            return output
        principal.require("value.reveal")
        entry = self._entry(principal, row, "value.revealed", "reveal", {"output": row["output"]["digest"]})
        await self._committer.submit(Commit(principal.org_id, audit=[entry]))
        return reveal(output, await vault_of(self._database, self._artifacts, row))

    async def values(self, principal: Principal, run_id: str) -> dict[str, Json]:
        """Input and step outputs, redacted, by name; for the person who debugs a run."""
        row = await self._row(principal, run_id)
        _, state = await folded(self._database, self._versions, row)
        opened = {"input": await self._artifacts.open(principal.org_id, Ref.from_json(row["input"]))}
        for name, ref in state.outputs.items():
            opened[name] = await self._artifacts.open(principal.org_id, ref)
        return opened

    async def failures(self, principal: Principal, run_id: str, limit: int = 20) -> list[FailureView]:
        """The last failure of each step that failed, latest first, with traceback and last output of its tool; redacted."""
        row = await self._row(principal, run_id)
        last: dict[str, StepFailed | CompensationFailed] = {}
        for event in await journal_of(self._database, row):
            if isinstance(event, StepFailed | CompensationFailed):
                last.pop(event.step, None)
                last[event.step] = event
        return [await self._failure(principal, event) for event in [*reversed(last.values())][: min(limit, MAX_PAGE)]]

    async def _failure(self, principal: Principal, event: StepFailed | CompensationFailed) -> FailureView:
        failure = event.failure
        detail = await self._error_detail(principal, failure)
        return FailureView(
            step=event.step,
            attempt=event.attempt,
            at=datetime.fromtimestamp(event.at, UTC),
            code=failure.code,
            error=failure.message,
            error_detail=detail.message,
            traceback=detail.traceback or None,
            printed=detail.printed or None,
        )

    async def trace(self, principal: Principal, run_id: str) -> list[SpanView]:
        """The run's spans, in order of their start, attempts at the times of the journal; nanoseconds since the epoch."""
        row = await self._row(principal, run_id)
        await self._tracing.flush()
        spans = await self._database.rows("get_spans", row["trace_id"], org=principal.org_id)
        timed = timed_spans(spans, await journal_of(self._database, row), row["span_id"])
        return [SpanView.model_validate(span) for span in timed]

    async def _row(self, principal: Principal, run_id: str) -> Row:
        principal.require("run.read")
        return _found(await self._database.row("get_run", run_id, org=principal.org_id), run_id)

    async def _error(self, principal: Principal, failure: Failure | None) -> str | None:
        """Why a step failed, with what its tool said about it for as long as its people are not erased."""
        if failure is None or failure.error_detail is None:
            return failure.message if failure else None
        said = (await self._error_detail(principal, failure)).message
        return f"{failure.message}: {said}" if said else failure.message

    async def _error_detail(self, principal: Principal, failure: Failure) -> ErrorDetail:
        """The far side's words about a failure; empty if there are none, or if a person in them was erased."""
        if failure.error_detail is None:
            return ErrorDetail()
        try:
            return ErrorDetail.from_json(await self._artifacts.open(principal.org_id, failure.error_detail))
        except Erased:
            return ErrorDetail()

    def _entry(self, principal: Principal, row: Row, event_type: EventType, action: str, detail: JsonObject) -> Entry:
        return Entry(
            org_id=principal.org_id,
            event_type=event_type,
            actor=principal.actor,
            action=action,
            resource=f"run:{row['run_id']}",
            at=self._clock.now(),
            decision="allow",
            run_id=row["run_id"],
            trace_id=row["trace_id"],
            detail=detail,
        )


def summary(row: Row) -> RunSummary:
    """A run's row without its values."""
    return RunSummary.model_validate(_summary_fields(row))


def _found(row: Row | None, run_id: str) -> Row:
    if row is None:
        raise NotFound(f'no run "{run_id}" in this organisation')
    return row


def _summary_fields(row: Row) -> dict[str, object]:
    names = {"user_id": row["principal"]["user_id"], "steps_done": row["steps"]}
    return dict(row) | names | cost_json(row["nano_usd"], row["unpriced"])


def _run_quota(row: Row, quotas: list[Row]) -> str | None:
    """The quota because of which a queued run may not be claimed; None if none applies to it."""
    applies = [one for one in quotas if (one["scope"], one["name"]) in {("org", ""), ("workflow", row["workflow"])}]
    return " and ".join(map(_in_words, applies)) or None if row["status"] == "queued" else None


def _in_words(quota: Row) -> str:
    """Scope, name and limits of a quota: `tool pay: 0 at once, 5 in 60 s`."""
    limits = [] if quota["concurrency"] is None else [f"{quota['concurrency']} at once"]
    limits += [] if quota["rate"] is None else [f"{quota['rate']} in {quota['per_seconds']:g} s"]
    return f"{quota['scope']} {quota['name']}".strip() + f": {', '.join(limits)}"


def _timed(times: StepTimes | None) -> dict[str, Json]:
    return times.to_json() if times is not None else {}


def _run(
    row: Row,
    program: Program,
    state: RunState,
    times: Mapping[str, StepTimes],
    errors: Mapping[str, str | None],
    effects: list[Row],
    asked: list[Row],
    quotas: list[Row],
    *,
    needs_worker: bool,
) -> RunView:
    steps = [
        StepView.model_validate(
            {
                "id": name,
                "status": step.status,
                "attempt": step.attempt,
                "fallback": way_of(program, name, step),
                "tool": step.tool,
                "facts": step.facts,
                "error": errors.get(name),
                "output": step.output.digest if step.output else None,
                **_timed(times.get(name)),
            }
        )
        for name, step in state.steps.items()
    ]
    reviews = {one["step"]: one["id"] for one in asked if one["kind"] == "review"}
    dead_letters = {one["step"]: one["id"] for one in asked if one["kind"] == "dead_letter"}
    return RunView.model_validate(
        _summary_fields(row)
        | {
            "steps": steps,
            "paused": state.paused,
            "degraded": state.degraded,
            "waits_for": waits_for(
                program,
                state,
                reviews,
                dead_letters,
                needs_worker=needs_worker,
                quotas={one["name"]: _in_words(one) for one in quotas if one["scope"] == "tool"},
                run_quota=_run_quota(row, quotas),
            ),
            "dead_letters": list(dead_letters.values()),
            "retries": state.retries,
            "timers": dict(state.timers),
            "effects": [EffectView.model_validate(dict(effect)) for effect in effects],
        }
    )
