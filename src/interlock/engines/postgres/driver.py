"""Drives one leased run: events in, machine, one transaction, commands out.

The state is never stored: it is folded from the journal when a worker takes the run, and advanced in memory while it
holds the lease. What acts on the outside world, opens a question or ends the run is carried out only after the transaction
with the event that caused it is durable. A model call or a pure tool may begin while that transaction is under way: a crash
repeats it, as it would have anyway. So a run is never more than one transaction ahead of what is durable, and a refused one
has no successor. The start of a run is written together with what first comes of it, or soon, if only such work follows.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from interlock.base.errors import InvalidInput, LeaseLost, Unavailable
from interlock.engines.postgres.refusals import Arrived, Refused, Sent, Work, sift, work_in
from interlock.engines.postgres.timers import Timers
from interlock.execution.batch.outstanding import abandon_calls
from interlock.execution.engine import HOLD_SECONDS, EngineServices
from interlock.execution.loading import JOURNAL_PAGE, input_facts, load_run, replayed, seed_of, work_of
from interlock.execution.records import commit_of, emit_run_span, records_of
from interlock.execution.reviews import confirmed_effects
from interlock.execution.run import Run, StepOutcome, calls_ended
from interlock.execution.steps import unrecordable
from interlock.machine import events as ev
from interlock.machine.machine import advance, pending
from interlock.machine.persistent import changed_keys
from interlock.machine.state import RunState
from interlock.store.rows import EffectRow, FinishedRun, ReleasedRun
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.workflows.spec import ModelStep, ToolStep

# How long the start of a run may wait for its first outcome, to be written together with it. Nothing has been done by then
# that would have to be known.
_START_WAITS = 0.05

# Turns of the event loop from `submit` to the transaction's departure: the task's own and the committer's. Work that has
# nothing to wait for would otherwise run first, and keep the transaction waiting instead of running beside it.
_YIELDS_AFTER_COMMIT = 2


class RunDriver:
    """One run under one lease. `drive` returns when the run is over, waits for something, or was taken away."""

    def __init__(self, services: EngineServices, run_id: str, org_id: str, fence: int) -> None:
        self._services = services
        self.ids = (run_id, org_id, fence)
        self._events: Arrived = asyncio.Queue()
        self._tasks: dict[asyncio.Task[None], Work] = {}
        self._timers = Timers(services.clock, lambda fired: self._events.put_nowait(StepOutcome(fired)))
        self._signals = asyncio.Event()
        # Never shrinks: a query that began before a commit may still bring back what that commit used up.
        self._seen_signals: set[int] = set()
        self._draining = False
        self._making_room = False
        # The last transaction, which may still be under way. There is never a second one.
        self._committing: asyncio.Task[None] | None = None
        self._sent: Sent | None = None
        self._again: set[Work] | None = None  # while a refused transaction is recorded one by one: what needs no doing
        self._state = RunState()
        self._written = RunState()  # after `_seq` events, without those in `_unwritten`
        self._seq = 0
        self._timers_seen = self._state.timers  # as they were when commands were last carried out
        # The start of the run, while it waits to be written.
        self._unwritten: list[StepOutcome] = []
        self._run: Run

    def wake(self) -> None:
        """A signal for this run has come in."""
        self._signals.set()

    def drain(self) -> None:
        """Finish what is under way, start nothing new, give the run back."""
        self._draining = True
        self._events.put_nowait(StepOutcome(None))

    def make_room(self) -> None:
        """Gives the run back if it only waits, because another one needs its place."""
        if self.waits:
            self._making_room = True
            self._events.put_nowait(StepOutcome(None))

    async def drive(self) -> None:
        watcher = asyncio.create_task(self._watch_signals())
        try:
            await self._load()
            if self._state.over:
                await self._second_chance()
            while not self._state.over:
                outcomes: list[StepOutcome] | None = []
                try:
                    outcomes = await self._next()
                    if outcomes is None:
                        return
                    await self._apply(outcomes)
                except Refused as refused:
                    for outcome in outcomes or [] if refused.sent.given is not outcomes else []:
                        self._events.put_nowait(outcome)
                    await self._record_otherwise(refused)
        except (LeaseLost, Unavailable) as error:
            # The lease is lost or the database is away: stop driving. The next lease holder folds the journal again.
            log(names.LOG_RUN_ABANDONED, error.message, level="warning", run_id=self.ids[0], reason=error.code)
        finally:
            watcher.cancel()
            self._timers.close()
            left = [watcher, *self._tasks, *([self._committing] if self._committing else [])]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    # -- loading -----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        run_id, org_id, fence = self.ids
        services = self._services
        row = await services.database.row("load_run", run_id, JOURNAL_PAGE, org=org_id)
        assert row is not None, "a leased run has a row"
        self._run = await load_run(services, row, fence=fence)
        self._created = row["created_at"].timestamp()
        # First of all: a run that was cancelled before it began does not begin.
        self._take_signals(row["signals"])
        self._state, self._seq = await replayed(services.database, self._run.version.program, row)
        self._written = self._state
        self._run.settle(self._state.usage)
        if self._seq:
            self._run.resumed = True
            log(names.LOG_RUN_RESUMED, run_id=run_id, events=self._seq)
            self._issue(pending(self._state))
        else:
            log(names.LOG_RUN_STARTED, run_id=run_id, workflow=self._run.version.name)
            started = ev.RunStarted(services.clock.now(), seed_of(run_id), await input_facts(self._run), row["machine"])
            self._events.put_nowait(StepOutcome(started))

    async def _second_chance(self) -> None:
        """A dead run was told something: it comes back with that, or leaves the queue again."""
        delivered = [self._events.get_nowait() for _ in range(self._events.qsize())]
        outcomes = [one for one in delivered if isinstance(one, StepOutcome)]
        program, state = self._run.version.program, self._state
        received = len(outcomes)
        if any(advance(program, state, one.event)[0] is not state for one in outcomes):
            received = await self._apply(outcomes)
        if self._state.over:
            commit = commit_of(self._run, used_signals=_signals_of(outcomes[:received]))
            commit.finished.append(FinishedRun(run_id=self._run.run_id))
            await self._durable()
            with contextlib.suppress(LeaseLost):  # it has come to another end, and has left already
                await self._services.committer.submit(commit)

    # -- waiting -----------------------------------------------------------------------------------------------

    async def _next(self) -> list[StepOutcome] | None:
        """Waits for the outcomes to apply next; None when the run was released to the queue."""
        if self._idle():
            await self._release()
            return None
        items = [await self._events.get()]
        while not self._events.empty():
            items.append(self._events.get_nowait())
        if (
            self._committing is not None
            and self._committing.done()
            and not self._committing.cancelled()
            and self._committing.exception()
        ):
            for item in items:  # for the outcome of the refusal
                self._events.put_nowait(item)
            await self._durable()
        for item in items:
            if isinstance(item, BaseException):
                raise item
        outcomes = [item for item in items if isinstance(item, StepOutcome) and item.event is not None]
        self._making_room = self._making_room and not outcomes
        return outcomes

    def _idle(self) -> bool:
        if self._tasks or not self._events.empty():
            return False
        soonest = self._timers.soonest
        if self._draining or self._making_room or soonest is None:
            return True
        return soonest - self._services.clock.now() > HOLD_SECONDS

    @property
    def waits(self) -> bool:
        """True if nothing is under way, and only a timer or a signal can continue the run."""
        return not self._tasks and self._events.empty() and self._committing is None

    async def _release(self) -> None:
        """Back to the queue until the next timer, or until a signal wakes the run."""
        wake_at = min(self._state.timers.values(), default=None)
        if self._draining:
            wake_at = self._services.clock.now()
        commit = commit_of(self._run)
        commit.released.append(ReleasedRun(run_id=self._run.run_id, wake_at=wake_at))
        await self._durable()
        await self._services.committer.submit(commit)
        log(names.LOG_RUN_RELEASED, run_id=self._run.run_id, status=self._state.status)

    async def _watch_signals(self) -> None:
        while True:
            await self._signals.wait()
            self._signals.clear()
            try:
                await self._read_signals()
            except Exception as error:  # noqa: BLE001  the drive must end with it, not go deaf
                self._events.put_nowait(error)

    async def _read_signals(self) -> None:
        rows = await self._services.database.rows("get_signals", self.ids[0], org=self.ids[1])
        self._take_signals([{"id": row["signal_id"], "event": row["event"]} for row in rows])

    def _take_signals(self, signals: list[dict[str, Any]]) -> None:
        for signal in signals:
            if signal["id"] not in self._seen_signals:
                self._seen_signals.add(signal["id"])
                self._events.put_nowait(StepOutcome(ev.event_from_json(signal["event"]), signal["id"]))

    # -- applying ----------------------------------------------------------------------------------------------

    async def _apply(self, outcomes: list[StepOutcome]) -> int:
        """Advances the machine over the outcomes, sends all of it off to be durable, and carries the commands out: see above.

        How many it heard: with those that end the run it stops. Its end is recorded by itself; signals that came with it stay
        where they are, and the run with them, if they may bring it back.
        """
        state, commands = self._state, []
        accepted: list[StepOutcome] = []
        settled: list[EffectRow] = []
        received = 0
        for outcome in outcomes:
            if state.over and state is not self._state:
                break
            received += 1
            before = state
            state, given = advance(self._run.version.program, state, outcome.event)
            if state is before:
                continue  # stale: a duplicate delivery, or a decision that no review waits for
            settled += confirmed_effects(self._run, before, outcome.event)
            accepted.append(outcome)
            commands += given
        used = _signals_of(outcomes[:received])
        ahead = bool(commands) and all(self._may_go_ahead(state, command) for command in commands)
        ahead = ahead and self._again is None
        if ahead and not used and not self._state.steps:
            self._begin(state, accepted, commands)
            return received
        if not self._unwritten and not accepted and not used:
            return received
        await self._durable()
        sent = Sent(self._written, self._seq, self._unwritten + outcomes[:received], outcomes)
        accepted, self._unwritten = self._unwritten + accepted, []
        commit = commit_of(
            self._run,
            state=state,
            outcomes=accepted,
            first_seq=self._seq + 1,
            used_signals=used,
        )
        commit.effects += settled
        ended = calls_ended(one.event for one in accepted)
        commit.settled_reservations += self._run.settled(ended)
        abandoned = abandon_calls(commit, self._run, self._state, state)
        await records_of(commit, self._run, state, commands, self._services.clock.now())
        self._state, self._written, self._seq = state, state, self._seq + len(accepted)
        self._sent = sent
        self._committing = asyncio.create_task(self._services.committer.submit(commit))
        if ahead:
            self._committing.add_done_callback(self._on_committed)
            for _ in range(_YIELDS_AFTER_COMMIT):
                await asyncio.sleep(0)
        else:
            await self._durable()
        self._run.settle(state.usage, ended, abandoned)
        before_these = set(self._tasks)
        self._issue(commands)
        sent.begun = {task: begun for task, begun in self._tasks.items() if task not in before_these}
        if state.over:
            self._finished()
        return received

    def _begin(self, state: RunState, accepted: list[StepOutcome], commands: list[ev.Command]) -> None:
        """The first work of a run begins; its start is written with what comes of it, or soon."""
        self._state, self._unwritten = state, accepted
        asyncio.get_running_loop().call_later(_START_WAITS, self._events.put_nowait, StepOutcome(None))
        self._issue(commands)

    async def _durable(self) -> None:
        """Waits until all that was applied is durable; raises what its transaction raised."""
        if self._committing is not None:
            committing, self._committing = self._committing, None
            sent, self._sent = self._sent, None
            assert sent is not None
            try:
                await committing  # cancelled with the drive, as all it has under way is
            except InvalidInput as error:
                raise Refused(sent, error) from None

    def _on_committed(self, committing: asyncio.Task[None]) -> None:
        """A refused transaction is noticed at once, not when the work under way is done."""
        if not committing.cancelled() and committing.exception() is not None:
            self._events.put_nowait(StepOutcome(None))

    # -- refused transactions ----------------------------------------------------------------------------------

    async def _record_otherwise(self, refused: Refused) -> None:
        """Records a refused transaction's outcomes one by one; one that is refused by itself becomes a failure of its step.

        Raises:
            InvalidInput: it is no step's outcome, so nothing can stand for it.
        """
        outcomes = refused.sent.outcomes
        self._again = {work for work in map(work_in, outcomes) if work is not None}
        try:
            await self._take_back(refused.sent)
            for outcome in outcomes:
                try:
                    await self._apply([outcome])
                    await self._durable()
                except Refused as again:
                    await self._take_back(again.sent)
                    instead = unrecordable(outcome)
                    if instead is None:
                        raise
                    await self._apply([instead])
                    await self._durable()
                if self._state.over:
                    return
        finally:
            self._again = None

    async def _take_back(self, sent: Sent) -> None:
        """The run as it was before a transaction: work that had begun because of it is void, and so is what came of it."""
        for task in sent.begun:
            task.cancel()
        await asyncio.gather(*sent.begun, return_exceptions=True)
        void = set(sent.begun.values())
        assert self._again is not None
        self._again |= sift(self._events, void)
        self._state = self._written = sent.state
        self._seq = sent.seq
        self._run.settle(sent.state.usage, [(step, attempt) for _, step, attempt in void])
        timers = [one for one in pending(sent.state) if isinstance(one, ev.StartTimer)]
        self._issue([one for one in timers if one.timer not in self._timers])

    def _may_go_ahead(self, state: RunState, command: ev.Command) -> bool:
        """True if a command may be executed before its cause is durable: only work without effects outside."""
        if not isinstance(command, ev.Perform):
            return False
        step = work_of(self._run, state, command.step, command.attempt).step
        if isinstance(step, ModelStep):
            return True
        tool = self._run.version.tools.get(step.tool) if isinstance(step, ToolStep) else None
        return tool is not None and not tool.contract.mutating

    def _finished(self) -> None:
        services, run, state = self._services, self._run, self._state
        emit_run_span(services.tracing, run, state, start=self._created, end=services.clock.now())
        log(names.LOG_RUN_FINISHED, run_id=run.run_id, status=state.status, reason=state.reason)

    # -- carrying commands out ---------------------------------------------------------------------------------

    def _issue(self, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.Perform() | ev.Compensate():
                    self._start(command)
                case ev.StartTimer():
                    self._timers.start(command)
        timers = self._state.timers
        self._timers.cancel(timer for timer in changed_keys(self._timers_seen, timers) if timer not in timers)
        self._timers_seen = timers

    def _start(self, command: ev.Perform | ev.Compensate) -> None:
        if self._draining:
            return
        compensate = isinstance(command, ev.Compensate)
        work = (compensate, command.step, command.attempt)
        if self._again is not None and (work in self._again or work in self._tasks.values()):
            return  # done, or being done, since before the transaction that commands it was refused
        task = asyncio.create_task(self._work(command.step, command.attempt, compensate=compensate))
        self._tasks[task] = work

    async def _work(self, name: str, attempt: int, *, compensate: bool) -> None:
        execution = work_of(self._run, self._state, name, attempt)
        task = asyncio.current_task()
        assert task is not None
        try:
            steps = self._services.steps
            outcome = await (steps.compensate(execution) if compensate else steps.perform(execution))
            self._events.put_nowait(outcome)
        except Exception as error:  # noqa: BLE001  the drive must end with it, not wait for ever
            self._events.put_nowait(error)
        finally:
            self._tasks.pop(task, None)


def _signals_of(outcomes: list[StepOutcome]) -> list[int]:
    return [outcome.signal for outcome in outcomes if outcome.signal is not None]
