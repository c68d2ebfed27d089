"""Drives one leased run: events in, machine, one transaction, commands out.

The state is never stored: it is folded from the journal when a worker takes the run, and advanced in memory while it
holds the lease. A command is carried out only after the transaction with the event that caused it is durable.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from interlock.base.clock import Clock
from interlock.base.errors import Erased, LeaseLost, Unavailable
from interlock.base.refs import Ref
from interlock.budget.ledger import RunLedger
from interlock.runtime.records import commit_of, confirmed_effects, finish, finish_attributes, open_review
from interlock.identity.principal import Principal
from interlock.runtime.kernel import Kernel
from interlock.runtime.versions import Versions
from interlock.runtime.work import Outcome, Run, Work
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Committer
from interlock.store.database import Database
from interlock.telemetry import names
from interlock.telemetry.logs import log
from interlock.telemetry.tracing import TraceIds, Tracing
from interlock.workflows import events as ev
from interlock.workflows.facts import Facts, facts_of
from interlock.workflows.machine import advance, pending
from interlock.workflows.spec import ModelStep, ToolStep
from interlock.workflows.state import RunState

if TYPE_CHECKING:
    from collections.abc import Coroutine

# A run whose next timer is nearer than this stays with its worker; one that waits longer goes back to the queue.
HOLD_SECONDS = 5.0


class Services:
    """What a driver needs of its process."""

    def __init__(
        self,
        *,
        database: Database,
        committer: Committer,
        artifacts: Artifacts,
        versions: Versions,
        kernel: Kernel,
        tracing: Tracing,
        clock: Clock,
    ) -> None:
        self.database = database
        self.committer = committer
        self.artifacts = artifacts
        self.versions = versions
        self.kernel = kernel
        self.tracing = tracing
        self.clock = clock


class RunDriver:
    """One run under one lease. `drive` returns when the run is over, waits for something, or was taken away."""

    def __init__(self, services: Services, run_id: str, org_id: str, fence: int) -> None:
        self._services = services
        self._ids = (run_id, org_id, fence)
        self._inbox: asyncio.Queue[Outcome | BaseException] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self._signals = asyncio.Event()
        self._used_signals: list[int] = []
        # Never shrinks: a query that began before a commit may still bring back what that commit used up.
        self._seen_signals: set[int] = set()
        self._draining = False
        self._state = RunState()
        self._seq = 0
        self._run: Run

    def wake(self) -> None:
        """A signal for this run has come in."""
        self._signals.set()

    def drain(self) -> None:
        """Finish what is under way, start nothing new, give the run back."""
        self._draining = True
        self._inbox.put_nowait(Outcome(None))

    async def drive(self) -> None:
        watcher = asyncio.create_task(self._watch_signals())
        try:
            await self._load()
            while not self._state.over:
                outcomes = await self._next()
                if outcomes is None:
                    return
                await self._apply(outcomes)
        except (LeaseLost, Unavailable) as error:
            # Not ours any more, or no way to write: let go. Whoever leases the run next folds the journal again.
            log(names.LOG_RUN_ABANDONED, error.message, level="warning", run_id=self._ids[0], reason=error.code)
        finally:
            watcher.cancel()
            for _, handle in self._timers.values():
                handle.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(watcher, *self._tasks, return_exceptions=True)

    # -- loading -----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        run_id, org_id, fence = self._ids
        services = self._services
        row = await services.database.row("load_run", run_id, org=org_id)
        assert row is not None, "a leased run has a row"
        version = await services.versions.get(org_id, row["workflow"], row["version"])
        budget = version.workflow.budget
        self._run = Run(
            run_id=run_id,
            org_id=org_id,
            principal=Principal.from_json(row["principal"]),
            version=version,
            trace=TraceIds(row["trace_id"], row["span_id"]),
            input=Ref.from_json(row["input"]),
            ledger=RunLedger(tokens=budget.tokens, usd=budget.usd),
            artifacts=services.artifacts,
            fence=fence,
        )
        self._created = row["created_at"].timestamp()
        # First of all: a run that was cancelled before it began does not begin.
        self._take_signals(row["signals"])
        journal = row["journal"]
        for event in journal:
            self._state, _ = advance(version.program, self._state, ev.event_from_json(event))
        self._seq, self._run.spent = len(journal), self._state.spent
        if journal:
            self._run.resumed = True
            log(names.LOG_RUN_RESUMED, run_id=run_id, events=len(journal))
            self._issue(pending(self._state))
        else:
            log(names.LOG_RUN_STARTED, run_id=run_id, workflow=version.name)
            started = ev.RunStarted(services.clock.now(), _seed(run_id), await self._input_facts())
            self._inbox.put_nowait(Outcome(started))

    async def _input_facts(self) -> Facts:
        try:
            value = await self._run.value(self._run.input)
        except Erased:
            return {}  # the first step that reads the input will end the run
        return facts_of(self._run.version.workflow.input, value)

    # -- waiting -----------------------------------------------------------------------------------------------

    async def _next(self) -> list[Outcome] | None:
        """What to apply next; None when the run was put back to sleep in the queue."""
        if self._idle():
            await self._release()
            return None
        items = [await self._inbox.get()]
        while not self._inbox.empty():
            items.append(self._inbox.get_nowait())
        for item in items:
            if isinstance(item, BaseException):
                raise item
        return [item for item in items if isinstance(item, Outcome) and item.event is not None]

    def _idle(self) -> bool:
        if self._tasks or not self._inbox.empty():
            return False
        soonest = min((due for due, _ in self._timers.values()), default=None)
        return self._draining or soonest is None or soonest - self._services.clock.now() > HOLD_SECONDS

    async def _release(self) -> None:
        """Back to the queue until the next timer, or until a signal wakes the run."""
        wake_at = min(self._state.timers.values(), default=None)
        if self._draining:
            wake_at = self._services.clock.now()
        commit = commit_of(self._run, used_signals=self._used_signals)
        commit.released.append({"run_id": self._run.run_id, "wake_at": wake_at})
        await self._services.committer.submit(commit)
        log(names.LOG_RUN_RELEASED, run_id=self._run.run_id, status=self._state.status)

    async def _watch_signals(self) -> None:
        while True:
            await self._signals.wait()
            self._signals.clear()
            try:
                await self._read_signals()
            except Exception as error:  # noqa: BLE001  the drive must end with it, not go deaf
                self._inbox.put_nowait(error)

    async def _read_signals(self) -> None:
        rows = await self._services.database.rows("get_signals", self._ids[0], org=self._ids[1])
        self._take_signals([{"id": row["signal_id"], "event": row["event"]} for row in rows])

    def _take_signals(self, signals: list[dict[str, Any]]) -> None:
        for signal in signals:
            if signal["id"] not in self._seen_signals:
                self._seen_signals.add(signal["id"])
                self._used_signals.append(signal["id"])
                self._inbox.put_nowait(Outcome(ev.event_from_json(signal["event"])))

    # -- applying ----------------------------------------------------------------------------------------------

    async def _apply(self, outcomes: list[Outcome]) -> None:
        """Advances the machine over the outcomes and makes all of it durable, then carries the commands out."""
        state, commands, events = self._state, [], []
        accepted: list[Outcome] = []
        settled: list[dict[str, Any]] = []
        for outcome in outcomes:
            before = state
            state, given = advance(self._run.version.program, state, outcome.event)
            if state is before:
                continue  # stale: a duplicate delivery, or a decision nobody waits for
            settled += confirmed_effects(self._run, before, outcome.event)
            accepted.append(outcome)
            events.append(outcome.event)
            commands += given
        used = list(self._used_signals)
        if not accepted and not used:
            return
        commit = commit_of(
            self._run,
            state=state,
            outcomes=accepted,
            first_seq=self._seq + 1,
            used_signals=used,
        )
        commit.effects += settled
        await self._records(commit, state, commands)
        await self._services.committer.submit(commit)
        self._state, self._seq = state, self._seq + len(events)
        self._settle_budget(events)
        self._used_signals = [signal for signal in self._used_signals if signal not in used]
        self._issue(commands)
        if state.over:
            self._finished()

    def _settle_budget(self, events: list[Any]) -> None:
        self._run.spent = self._state.spent
        for event in events:
            if isinstance(event, ev.StepSucceeded | ev.StepFailed):
                self._run.ledger.settle(event.step)

    async def _records(self, commit: Any, state: RunState, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.OpenReview():
                    await open_review(commit, self._run, state, command, self._services.clock.now())
                case ev.CloseReview():
                    commit.closed_reviews.append({"run_id": self._run.run_id, "step": command.step})
                case ev.Finish():
                    await finish(commit, self._run, state, command, self._services.clock.now())

    def _finished(self) -> None:
        services, run, state = self._services, self._run, self._state
        now = services.clock.now()
        ok = state.status is ev.RunStatus.SUCCEEDED
        attributes = finish_attributes(run, state)
        services.tracing.emit(
            f"{names.RUN} {run.version.name}", run.trace, start=self._created, end=now, ok=ok, attributes=attributes
        )
        log(names.LOG_RUN_FINISHED, run_id=run.run_id, status=state.status, reason=state.reason)

    # -- carrying commands out ---------------------------------------------------------------------------------

    def _issue(self, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.Perform():
                    self._start(self._work(command.step, command.attempt, undo=False))
                case ev.Compensate():
                    self._start(self._work(command.step, command.attempt, undo=True))
                case ev.StartTimer():
                    self._start_timer(command)
        for timer in self._timers.keys() - self._state.timers.keys():
            self._timers.pop(timer)[1].cancel()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if self._draining:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def _work(self, name: str, attempt: int, *, undo: bool) -> None:
        step = self._run.version.program.nodes[name].step
        assert isinstance(step, ModelStep | ToolStep)
        work = Work(self._run, step, attempt, self._state)
        task = asyncio.current_task()
        assert task is not None
        try:
            kernel = self._services.kernel
            outcome = await (kernel.compensate(work) if undo else kernel.perform(work))
            self._inbox.put_nowait(outcome)
        except Exception as error:  # noqa: BLE001  the drive must end with it, not wait for ever
            self._inbox.put_nowait(error)
        finally:
            self._tasks.discard(task)

    def _start_timer(self, command: ev.StartTimer) -> None:
        delay = max(0.0, command.due - self._services.clock.now())
        handle = asyncio.get_running_loop().call_later(min(delay, 2 * HOLD_SECONDS), self._timer_due, command)
        self._timers[command.timer] = (command.due, handle)

    def _timer_due(self, command: ev.StartTimer) -> None:
        if command.due > self._services.clock.now():
            self._start_timer(command)  # far away, or the clock stepped back: look again later
            return
        self._timers.pop(command.timer, None)
        self._inbox.put_nowait(Outcome(ev.TimerFired(command.timer, self._services.clock.now())))


def _seed(run_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=6).digest())
