"""The activity: puts events on record, then takes one command through the kernel, and answers with its event.

PostgreSQL stays the system of record. Every event is in the journal, together with the rows that belong to it, before a
command that it caused is carried out; the journal's key decides when two processes record at once. A command is claimed
under a number that grows with each of Temporal's attempts, every write that follows is refused once a newer attempt holds
the claim, and the outcome is kept with the claim: repeated or woken up late, an activity does nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import asyncpg
from temporalio import activity
from temporalio.exceptions import ApplicationError

from interlock.base.errors import InterlockError, InvalidInput, LeaseLost, Unavailable
from interlock.engines.temporal.tasks import ACTIVITY_TYPE, Command, Recordable, Task, TaskResult
from interlock.execution.batch.outstanding import abandon_calls
from interlock.execution.engine import HOLD_SECONDS, MAX_CRASHES, EngineServices
from interlock.execution.loading import JOURNAL_PAGE, fold_in_slices, journal_after, load_run, pages_of, work_of
from interlock.execution.records import commit_of, emit_run_span, park_run, records_of
from interlock.execution.reviews import confirmed_effects
from interlock.execution.run import Run, StepOutcome, calls_ended
from interlock.execution.steps import unrecordable
from interlock.machine import events as ev
from interlock.machine.machine import advance
from interlock.machine.names import CommandKey, CommandKind
from interlock.machine.state import RunState
from interlock.store.commit import Commit
from interlock.store.rows import CrashedRun, DoneClaim, EffectRow, NewClaim, PlaceRow, RevivedRun, UsedSignal
from interlock.telemetry import names
from interlock.telemetry.logs import log, stack_of

_HELD = 256  # runs whose state is kept at hand
_ATTEMPT_BITS = 16
_OVER = {"step_succeeded", "step_failed"}


@dataclass(slots=True)
class _Held:
    """A run as this process knows it: its journal up to some event, which may have grown since, and the state after it.

    Attributes:
        created: seconds since the epoch.
        lock: one commit to the journal at a time.
    """

    run: Run
    created: float
    state: RunState
    journal: list[dict[str, Any]]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def seq(self) -> int:
        return len(self.journal)

    def move(self, state: RunState, events: list[dict[str, Any]]) -> None:
        """On to a later state. What a step had reserved is replaced by what it used in one go."""
        self.state = state
        self.journal += events
        self.run.settle(state.usage, [(event["step"], event["attempt"]) for event in events if event["type"] in _OVER])


class Performer:
    """The activities of one process."""

    def __init__(self, services: EngineServices) -> None:
        self._services = services
        self._runs: OrderedDict[str, _Held] = OrderedDict()

    @activity.defn(name=ACTIVITY_TYPE)
    async def perform(self, given: Any) -> Any:
        """Records, then performs. What a step does is an event; an error is one of ours, and Temporal tries again.

        Args:
            given: a `Task`; gives a `Result`. Declared as such, the library would look its types up anew at every step.
        """
        task: Task = given
        async with _heartbeats(task["run_id"]):
            try:
                return await self._perform(task)
            except (LeaseLost, Unavailable, ApplicationError):
                raise
            except Exception as error:  # noqa: BLE001  an error of ours: tried again, and not for ever
                await self._crashed(task, error)
                # Its text and its causes may repeat a value: not into Temporal's history, nor into the library's log.
                raise ApplicationError(_said(error), type=type(error).__name__) from None

    async def _perform(self, task: Task) -> TaskResult:
        held = await self._held(task["run_id"], task["org_id"])
        command = task["command"]
        if _diverged(held, task["events"]):
            if held.state.over:
                return {"over": True}
            raise ApplicationError(
                "the run's journal was continued by another workflow; this one is void",
                type="diverged",
                non_retryable=True,
            )
        if command is None:
            await self._record(held, task)
            return {}
        return await self._command(held, task, command)

    async def _crashed(self, task: Task, error: Exception) -> None:
        """Counts a failed activity. At the limit the run is parked with a dead letter and its workflow ends; a signal restarts it.

        Raises:
            ApplicationError: it is parked.
        """
        run_id, org_id = task["run_id"], task["org_id"]
        log(names.LOG_INTERNAL, _said(error), level="error", run_id=run_id, stack=stack_of(error))
        self._runs.pop(run_id, None)  # folded again next time: what is held may be the trouble
        row = await self._services.database.row("get_crashes", run_id, org=org_id)
        if row is None:
            return
        attempts = activity.info().attempt  # a crash now and then, in different activities, is no reason to park a run
        park = attempts >= MAX_CRASHES and row["crashes"] + 1 >= MAX_CRASHES
        commit = Commit(org_id, crashed=[CrashedRun(run_id=run_id, parked=park)])
        if park and not row["parked"]:
            run = await self._services.database.row("get_run", run_id, org=org_id)
            assert run is not None, "a workflow has a run"
            reason = f"an activity of it failed {attempts} times: {_said(error)}"
            park_run(commit, run, reason, self._services.clock.now())
        await self._services.committer.submit(commit)
        if park:
            raise ApplicationError(
                "the run is parked; its dead letter says why", type="parked", non_retryable=True
            ) from None

    # -- runs at hand ------------------------------------------------------------------------------------------

    async def _held(self, run_id: str, org_id: str) -> _Held:
        held = self._runs.get(run_id)
        if held is None:
            loaded = await self._load(run_id, org_id)
            held = self._runs.setdefault(run_id, loaded)
            while len(self._runs) > _HELD:
                self._runs.popitem(last=False)
        self._runs.move_to_end(run_id)
        return held

    async def _load(self, run_id: str, org_id: str) -> _Held:
        row = await self._services.database.row("load_run", run_id, JOURNAL_PAGE, org=org_id)
        assert row is not None, "a workflow has a run"
        run = await load_run(self._services, row, fence=0)
        state, journal = RunState(), []
        async for page in pages_of(self._services.database, row):
            state = await fold_in_slices(run.version.program, map(ev.event_from_json, page), state)
            journal += page
        run.settle(state.usage)
        return _Held(run, row["created_at"].timestamp(), state, journal)

    async def _reload(self, held: _Held) -> None:
        """Reads what other processes have recorded meanwhile. Under the run's lock."""
        run = held.run
        async for page in journal_after(self._services.database, run.run_id, run.org_id, held.seq):
            if page:
                run.forget()
                held.move(await fold_in_slices(run.version.program, map(ev.event_from_json, page), held.state), page)

    # -- recording ---------------------------------------------------------------------------------------------

    async def _record(self, held: _Held, task: Task, claim: NewClaim | None = None) -> None:
        """Makes the events durable that are not yet, and with them the claim.

        Raises:
            LeaseLost: the claim is not to be had; nothing was written.
        """
        events, received = task["events"], [UsedSignal(signal_id=signal) for signal in task["received"]]
        recorded = events[0]["seq"] - 1 if events else task["seq"]
        async with held.lock:
            while True:
                if held.seq < recorded:  # by another process
                    await self._reload(held)
                if held.seq < recorded:
                    raise ApplicationError(
                        f"the run's journal has {held.seq} events where there were {recorded}: was the database set back? "
                        "a signal continues the run from its journal",
                        type="diverged",
                        non_retryable=True,
                    )
                new = [event for event in events if event["seq"] > held.seq]
                if not new:
                    break
                try:
                    complete = await self._commit(held, new, claim, received)
                except asyncpg.UniqueViolationError:
                    known = held.seq
                    await self._reload(held)
                    if held.seq == known or _diverged(held, new):
                        raise
                else:
                    if complete:
                        return
        if claim is not None or received:
            claims = [claim] if claim is not None else []
            await self._services.committer.submit(Commit(held.run.org_id, new_claims=claims, used_signals=received))

    async def _commit(
        self, held: _Held, new: list[Recordable], claim: NewClaim | None, received: list[UsedSignal]
    ) -> bool:
        """True if all events were recorded: an end is recorded alone, also that of a run which is revived at once."""
        run, state, now = held.run, held.state, self._services.clock.now()
        commands: list[ev.Command] = []
        effects: list[EffectRow] = []
        events: list[Any] = []
        for one in new:
            if state.over and state is not held.state:
                break
            events.append(ev.event_from_json(one["event"]))
            effects += confirmed_effects(run, state, events[-1])
            state, given = advance(run.version.program, state, events[-1])
            commands += given
        complete, new = len(events) == len(new), new[: len(events)]
        consumed = [UsedSignal(signal_id=one["signal"]) for one in new if "signal" in one]
        commit = commit_of(run, state=state, outcomes=[StepOutcome(event) for event in events], first_seq=new[0]["seq"])
        # No lease guards this journal: the first writer of an event wins, and the other process reads again.
        commit.fence, commit.recorded, commit.journal = None, commit.journal, []
        commit.effects += effects
        if not state.over and not (held.state.status is state.status is ev.RunStatus.RUNNING):
            commit.places.append(PlaceRow(run_id=run.run_id, held=_works(state, now)))
        if held.state.over and not state.over:
            commit.revived.append(RevivedRun(run_id=run.run_id))
        commit.settled_reservations += run.settled(calls_ended(events))
        abandon_calls(commit, run, held.state, state)
        await records_of(commit, run, state, commands, now)
        commit.used_signals += consumed + received  # now that what came of them is on record
        if claim is not None and complete:
            commit.new_claims.append(claim)
        await self._services.committer.submit(commit)
        held.move(state, [one["event"] for one in new])
        if new[0]["seq"] == 1:
            log(names.LOG_RUN_STARTED, run_id=run.run_id, workflow=run.version.name)
        if state.status is not ev.RunStatus.RUNNING:
            run.forget()
        if state.over:
            self._finished(held)
        return complete

    def _finished(self, held: _Held) -> None:
        run, state = held.run, held.state
        end = self._services.clock.now()
        emit_run_span(self._services.tracing, run, state, start=held.created, end=end)
        log(names.LOG_RUN_FINISHED, run_id=run.run_id, status=state.status, reason=state.reason)
        self._runs.pop(run.run_id, None)

    # -- performing --------------------------------------------------------------------------------------------

    async def _command(self, held: _Held, task: Task, command: Command) -> TaskResult:
        info = activity.info()
        name = str(CommandKey(CommandKind(command["kind"]), command["step"], command["attempt"]))
        fence = _fence(info.scheduled_time, info.attempt)
        claim = NewClaim(run_id=held.run.run_id, command=name, org_id=held.run.org_id, fence=fence)
        if info.attempt > 1:
            log(names.LOG_RUN_RESUMED, run_id=held.run.run_id, events=held.seq)
        try:
            await self._record(held, task, claim)
        except LeaseLost:
            await self._record(held, task)
            answered = await self._answered(held, name)
            if answered is None:
                raise
            return answered
        # Only a first attempt of a workflow that was never interrupted knows that no other attempt was here before.
        resumed = info.attempt > 1 or task["rebuilt"]
        run = replace(held.run, claim=name, fence=fence, resumed=resumed)
        if resumed and command["kind"] == "perform":
            run.lose(command["step"], command["attempt"])
        execution = work_of(run, held.state, command["step"], command["attempt"])
        steps = self._services.steps
        compensate = command["kind"] == "compensate"
        outcome = await (steps.compensate(execution) if compensate else steps.perform(execution))
        try:
            return await self._done(run, name, outcome)
        except InvalidInput:
            instead = unrecordable(outcome)
            if instead is None:
                raise
            return await self._done(run, name, instead)

    async def _done(self, run: Run, name: str, outcome: StepOutcome) -> TaskResult:
        """Keeps the outcome with the claim; raises InvalidInput if the database refuses a value in it."""
        event = ev.event_to_json(outcome.event)
        commit = commit_of(run, outcomes=[outcome])
        commit.journal = []  # its number is the workflow's to give; the next activity records it
        if not isinstance(outcome.event, ev.StepDeferred):  # then nothing was tried, and the same command comes again
            commit.done_claims.append(DoneClaim(run_id=run.run_id, command=name, event=event))
        if isinstance(outcome.event, ev.StepSucceeded | ev.StepFailed):
            commit.used_reservations += run.used(outcome.event)
        await self._services.committer.submit(commit)
        return {"event": event}

    async def _answered(self, held: _Held, name: str) -> TaskResult | None:
        """Why a claim was not to be had, if it needs no doing any more: it was done, or the run is over."""
        row = await self._services.database.row("get_claim", held.run.run_id, name, org=held.run.org_id)
        if row is not None and row["event"] is not None:
            return {"event": row["event"]}
        async with held.lock:
            await self._reload(held)
        return {"over": True} if held.state.over else None


def _said(error: Exception) -> str:
    """An error as a person may read it anywhere: the text of one that is not ours may repeat a value."""
    return error.message if isinstance(error, InterlockError) else type(error).__name__


def _diverged(held: _Held, events: list[Recordable]) -> bool:
    """True if the journal differs from the workflow, which was then terminated from outside and started again."""
    return any(one["seq"] <= held.seq and held.journal[one["seq"] - 1] != one["event"] for one in events)


def _works(state: RunState, now: float) -> bool:
    """True if a run counts among the concurrent runs: as on PostgreSQL, a long wait does not count."""
    if state.status is ev.RunStatus.RUNNING or state.working:
        return True
    return min(state.timers.values(), default=math.inf) - now <= HOLD_SECONDS


def _fence(scheduled: datetime, attempt: int) -> int:
    """Number that grows from attempt to attempt, independent of the server's clock; a command issued anew starts higher."""
    return (int(scheduled.timestamp() * 1000) << _ATTEMPT_BITS) | min(attempt, (1 << _ATTEMPT_BITS) - 1)


@contextlib.asynccontextmanager
async def _heartbeats(run_id: str) -> AsyncIterator[None]:
    """Says all the while that this worker lives, and notes in the log when it had to let go."""
    timeout = activity.info().heartbeat_timeout
    assert timeout is not None

    async def beat() -> None:
        while True:  # the beginning is a sign of life itself, and most steps need no other
            await asyncio.sleep(timeout.total_seconds() / 3)
            activity.heartbeat()

    beating = asyncio.create_task(beat())
    try:
        yield
    except asyncio.CancelledError:
        log(names.LOG_RUN_ABANDONED, "cancelled by Temporal", level="warning", run_id=run_id, reason="cancelled")
        raise
    except (LeaseLost, Unavailable) as error:
        log(names.LOG_RUN_ABANDONED, error.message, level="warning", run_id=run_id, reason=error.code)
        raise
    finally:
        beating.cancel()
