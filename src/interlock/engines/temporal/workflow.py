"""The workflow: drives the pure machine, and turns its commands into activities and timers. No I/O of its own.

Events are numbered here, so the journal's order is the workflow's. Events not known to be recorded go along with
the next activity, which records it before it does anything else: no command is carried out whose cause is not durable.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

from interlock.engines.temporal.tasks import (
    ACTIVITY_TYPE,
    SIGNAL_TYPE,
    WORKFLOW_TYPE,
    Command,
    Recordable,
    SignalInput,
    Start,
    Task,
    TaskResult,
)
from interlock.machine import events as ev
from interlock.machine.machine import advance, pending
from interlock.machine.persistent import changed_keys
from interlock.machine.program import Program, compile_program
from interlock.machine.state import RunState, state_from_json, state_to_json
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import Workflow

# Lost workers only: a step's own failures come back as events, and the machine decides about them.
_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=0.2), backoff_coefficient=2, maximum_interval=timedelta(seconds=10)
)
# No step may last longer; a silent worker is noticed by its heartbeat long before.
_LONGEST = timedelta(days=1)
_CARRIED = 16  # unrecorded events that may ride along with a command; more of them are recorded first
_REMEMBERED = 1000  # ids of signals


@workflow.defn(name=WORKFLOW_TYPE)  # pinned by a versioned worker; a server refuses a behavior from one that is not
class InterlockRun:
    """One run. Ends with the run's status; a cancellation by Temporal's own means is one by the run's."""

    @workflow.init
    def __init__(self, start: Start) -> None:
        self._start = start
        self._program = _program(json.dumps(start["program"]))
        self._state = state_from_json(start["state"]) if start["state"] is not None else RunState()
        self._seq = start["seq"]
        self._unrecorded: deque[Recordable] = deque(start["unrecorded"])
        self._seen: dict[int, None] = dict.fromkeys(start["seen"])
        self._events: list[tuple[Any, int | None]] = []  # events, and the signals that they came with
        self._received: list[int] = []  # signals of which nothing came, to be cleared away
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.Task[None]] = {}
        self._timers_seen = self._state.timers
        self._held_back = False
        self._recording = asyncio.Lock()
        self._broken: ActivityError | None = None
        self._ended_elsewhere = False

    @workflow.signal(name=SIGNAL_TYPE)
    def deliver(self, signals: list[SignalInput]) -> None:
        """Receives signals from people or other runs."""
        for signal in signals:
            if signal["id"] not in self._seen:
                self._seen[signal["id"]] = None
                self._events.append((ev.event_from_json(signal["event"]), signal["id"]))

    @workflow.run
    async def run(self, start: Start) -> str:
        # First of all: a run that was cancelled before it began does not begin.
        self.deliver(start["signals"])
        if start["begin"] is not None:
            begin = start["begin"]
            self._events.append((ev.RunStarted(workflow.time(), begin["seed"], begin["facts"], begin["machine"]), None))
        else:
            self._issue(pending(self._state))
        while not self._ended_elsewhere:
            try:
                await workflow.wait_condition(self._awake)
            except asyncio.CancelledError:
                self._events.append((ev.CancelRequested(workflow.time(), "cancelled in Temporal"), None))
            if self._broken is not None:
                raise self._broken
            if self._events:
                self._take()
            elif self._state.over and not self._tasks:
                break
            elif self._held_back and not self._tasks:
                self._continue_as_new()
        self._cancel_timers(self._timers.keys())
        return self._state.status.value

    def _awake(self) -> bool:
        idle = not self._tasks and (self._state.over or self._held_back)
        return bool(self._events) or idle or self._ended_elsewhere or self._broken is not None

    # -- events ------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Advances the machine over what has come in, then carries its commands out."""
        commands: list[ev.Command] = []
        known = self._seq
        events, self._events = self._events, []
        for event, signal in events:
            before = self._state
            self._state, given = advance(self._program, before, event)
            if self._state is before:  # stale: a duplicate delivery, or a decision that no review waits for
                self._received += [signal] if signal is not None else []
                continue
            self._seq += 1
            recordable: Recordable = {"seq": self._seq, "event": ev.event_to_json(event)}
            if signal is not None:
                recordable["signal"] = signal
            self._unrecorded.append(recordable)
            commands += given
        self._held_back = self._held_back or self._heavy()
        if not self._issue(commands) and (self._seq > known or self._received):
            self._spawn(self._record())

    def _heavy(self) -> bool:
        info, limits = workflow.info(), self._start["limits"]
        return (
            info.is_continue_as_new_suggested()
            or info.get_current_history_length() >= limits["events"]
            or info.get_current_history_size() >= limits["bytes"]
        )

    def _continue_as_new(self) -> None:
        """With no activity in flight. What was held back is among the state's pending commands."""
        workflow.continue_as_new(
            {
                **self._start,
                "begin": None,
                "state": state_to_json(self._state),
                "seq": self._seq,
                "unrecorded": list(self._unrecorded),
                "signals": [],
                "seen": list(self._seen)[-_REMEMBERED:],
                "rebuilt": False,
            }
        )

    # -- commands ----------------------------------------------------------------------------------------------

    def _issue(self, commands: list[ev.Command]) -> bool:
        """Begins what can be begun; whether an activity is among it, so that the record rides along."""
        works = False
        for command in commands:
            match command:
                case ev.Perform() | ev.Compensate() if not self._held_back:
                    kind: Any = "perform" if isinstance(command, ev.Perform) else "compensate"
                    self._spawn(self._work({"kind": kind, "step": command.step, "attempt": command.attempt}))
                    works = True
                case ev.StartTimer():
                    self._timers[command.timer] = asyncio.create_task(self._wait(command))
        timers = self._state.timers
        self._cancel_timers(key for key in changed_keys(self._timers_seen, timers) if key not in timers)
        self._timers_seen = timers
        return works

    def _spawn(self, execution: Any) -> None:
        task = asyncio.create_task(execution)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait(self, command: ev.StartTimer) -> None:
        await asyncio.sleep(max(0.0, command.due - workflow.time()))
        self._timers.pop(command.timer, None)
        self._events.append((ev.TimerFired(command.timer, workflow.time()), None))

    def _cancel_timers(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):  # in an order that replays
            if (timer := self._timers.pop(key, None)) is not None:
                timer.cancel()

    async def _work(self, command: Command) -> None:
        if len(self._unrecorded) > _CARRIED:
            await self._record()
        await self._activity(command)

    async def _record(self) -> None:
        async with self._recording:
            if self._unrecorded or self._received:
                await self._activity(None)

    async def _activity(self, command: Command | None) -> None:
        upto, received = self._seq, list(self._received)
        task: Task = {
            "run_id": self._start["run_id"],
            "org_id": self._start["org_id"],
            "seq": upto,
            "events": list(self._unrecorded),
            "received": received,
            "command": command,
            "rebuilt": self._start["rebuilt"],
        }
        try:
            result: TaskResult = await workflow.execute_activity(
                ACTIVITY_TYPE,
                task,
                result_type=dict,
                start_to_close_timeout=_LONGEST,
                heartbeat_timeout=timedelta(seconds=self._start["heartbeat"]),
                retry_policy=_RETRY,
                cancellation_type=workflow.ActivityCancellationType.ABANDON,
            )
        except ActivityError as error:
            self._broken = error
            return
        while self._unrecorded and self._unrecorded[0]["seq"] <= upto:
            self._unrecorded.popleft()
        self._received = [signal for signal in self._received if signal not in received]
        if result.get("over"):
            self._ended_elsewhere = True
        elif "event" in result:
            self._events.append((ev.event_from_json(result["event"]), None))


@functools.lru_cache(maxsize=256)
def _program(definition: str) -> Program:
    """Compiled once a version and process: the definition is the key."""
    data = json.loads(definition)
    return compile_program(
        Workflow.model_validate(data["workflow"]),
        {name: ToolContract.model_validate(contract) for name, contract in data["contracts"].items()},
        {name: Workflow.model_validate(one) for name, one in data["subworkflows"].items()},
    )


def program_to_json(program: Program) -> dict[str, Any]:
    """The definition's control flow, without prompts, policy and code, from which `_program` compiles the program."""
    subworkflows = {one.name: one for one in program.subworkflows.values()}
    return {
        "workflow": program.workflow.model_dump(mode="json"),
        "contracts": {name: contract.model_dump(mode="json") for name, contract in program.contracts.items()},
        "subworkflows": {name: one.model_dump(mode="json") for name, one in subworkflows.items()},
    }
