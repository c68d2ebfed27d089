"""One event's changes of the state, kept apart until `finish`: what `flow` and `failures` do their work with.

Costs what changes, not what the state holds: mappings are edits upon those of the state, the inside of a container is found
by the program's structure, and what is under way is in `live`. Nothing here decides; it keeps counters, timers and commands
in step with the steps. What is to happen next is put on `todo` instead of being called, so that a row of 500 empty branches
needs no deep stack, and entering and failing need not know each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from interlock.base.usage import Usage
from interlock.machine import events as ev
from interlock.machine.events import Command, Failure, RunStatus
from interlock.machine.names import (
    body_of,
    call_of,
    enclosing,
    frame_of,
    is_numbered,
    path_of,
    space_of,
    turn_of,
    unnumbered,
)
from interlock.machine.persistent import PersistentMap
from interlock.machine.program import FRAMED, Program
from interlock.machine.state import (
    BUSY,
    SETTLED,
    UNFINISHED,
    WORKING,
    Ending,
    RunState,
    StepState,
    StepStatus,
    limit_key,
)
from interlock.workflows.spec import CONTAINERS, AgentStep

Todo = tuple[str, str, Failure | None]
"""("enter" | "leave" | "fail", instance, why it failed)."""

_NEW = StepStatus.SUCCEEDED
"""What a step that is not there yet counts as: nothing."""


class Transition:
    """Attributes are the state's, mutable; `finish` makes a state of them again."""

    def __init__(self, program: Program, state: RunState, at: float) -> None:
        self.program = program
        self.state = state
        self.at = at
        self.steps = PersistentMap.of(state.steps).edit()
        self.live = PersistentMap.of(state.live).edit()
        self.timers = PersistentMap.of(state.timers).edit()
        self.completed = PersistentMap.of(state.completed).edit()
        self.working, self.busy = state.working, state.busy
        self.done = state.done
        self.retries = state.retries
        self.usage = state.usage
        self.ending: Ending | None = state.ending
        self.failing = PersistentMap.of(state.failing).edit()
        self.degraded = state.degraded
        self.paused = state.paused
        self.signals = state.signals
        self.received = state.received
        self.status = state.status
        self.reason = state.reason
        self.seed, self.input_facts, self.machine = state.seed, state.input_facts, state.machine
        self.commands: list[Command] = []
        self.todo: list[Todo] = []
        self.changed: set[str] = set()  # steps that were put in this turn, and are still to be looked at by `conclude`

    # -- steps -------------------------------------------------------------------------------------------------

    def put(self, name: str, step: StepState) -> None:
        """Sets a step; every change of one goes through here, so the counters hold."""
        old = self.steps.get(name)
        before, now = _NEW if old is None else old.status, step.status
        self.steps[name] = step
        self.changed.add(name)
        if before is now:
            return
        self.working += (now in WORKING) - (before in WORKING)
        self.busy += (now in BUSY) - (before in BUSY)
        if now not in SETTLED:
            self.live[name] = True
        elif before not in SETTLED:
            self.live.pop(name)
        if self.failing and (more := (now in UNFINISHED) - (before in UNFINISHED)):
            for one in self.ancestors(name):
                if (failing := self.failing.get(one)) is not None:
                    self.failing[one] = replace(failing, unfinished=failing.unfinished + more)

    def perform(self, name: str, step: StepState) -> None:
        """Has a step's work done, now or once the run is resumed."""
        if self.paused:
            self.put(name, replace(step, status=StepStatus.PAUSED))
            return
        self.put(name, step if step.status is StepStatus.RUNNING else replace(step, status=StepStatus.RUNNING))
        self.commands.append(ev.Perform(name, step.attempt))

    def succeed(self, name: str, step: StepState) -> None:
        """A step is done; what comes after it is entered unless it stands in something that is ending."""
        self.put(name, step if step.status is StepStatus.SUCCEEDED else replace(step, status=StepStatus.SUCCEEDED))
        self.unlimit(name)
        self.done += not isinstance(self.program.node(name).step, CONTAINERS)
        if self.program.undoable(name, step.variant, step.tool):
            self.completed[name] = True
        self.todo.append(("leave", name, None))

    def fail(self, name: str, step: StepState, failure: Failure) -> None:
        """A step has failed for good; what that means for what it stands in is for `failures.failed` to say."""
        self.put(name, replace(step, status=StepStatus.FAILED, failure=failure))
        self.unlimit(name)
        self.todo.append(("fail", name, failure))

    def current(self, name: str, status: StepStatus, attempt: int) -> StepState | None:
        """The step, if it is in that status and attempt; None for a stale event."""
        step = self.steps.get(name)
        return step if step is not None and step.status is status and step.attempt == attempt else None

    # -- where a step stands -----------------------------------------------------------------------------------

    def ancestors(self, name: str) -> Iterator[str]:
        """Containers around an instance, from the inside out."""
        parent = self.program.parent(name)
        while parent is not None:
            yield parent
            parent = self.program.parent(parent)

    def inside(self, container: str) -> Iterator[str]:
        """Instances in a container, at any depth."""
        around = [container]
        while around:
            for name in self._children(around.pop()):
                if name in self.steps:
                    yield name
                    around.append(name)

    def _children(self, name: str) -> Iterable[str]:
        """Names of the instances that may be directly in one: more than there are."""
        step, path = self.program.node(name).step, path_of(name)
        scopes = self.program.scopes.get(path, ())
        if not scopes:
            return ()
        if isinstance(step, FRAMED) and not is_numbered(name):
            return (frame_of(name, number) for number in range(1, self.steps[name].iteration + 1))
        if isinstance(step, AgentStep):
            turn = self.steps.get(turn_of(name))
            calls = turn.calls if turn is not None else ()
            return (turn_of(name), *(call_of(name, number) for number in range(1, len(calls) + 1)))
        space = body_of(name) if scopes[0].body else space_of(name)
        return (space + one for scope in scopes for one in scope.steps)

    def agent_of(self, name: str) -> str | None:
        """The agent whose turn or call this is."""
        if self.program.node(name).agent is None:
            return None
        return unnumbered(enclosing(name))

    def blocked(self, name: str) -> bool:
        """True if nothing new may start at this place, because the run or a container around it is ending."""
        if self.ending is not None:
            return True
        return bool(self.failing) and any(one in self.failing for one in self.ancestors(name))

    # -- timers, money -----------------------------------------------------------------------------------------

    def timer(self, key: str, due: float) -> None:
        self.timers[key] = due
        self.commands.append(ev.StartTimer(key, due))

    def limit(self, name: str, seconds: float | None) -> None:
        """Gives a step its deadline, from now on."""
        if seconds is not None:
            self.timer(limit_key(name, self.steps[name]), self.at + seconds)

    def unlimit(self, name: str) -> None:
        """Takes its deadline away."""
        if self.timers:
            self.timers.pop(limit_key(name, self.steps[name]))

    def use(self, usage: Usage | None) -> None:
        """Adds what an attempt used to the run's total."""
        if usage is not None:
            self.usage = (self.usage + usage).anonymous()

    # -- the end of the turn -----------------------------------------------------------------------------------

    def finish(self) -> tuple[RunState, list[Command]]:
        """The state after the turn and its commands; `Finish` is the last one if the run is over now."""
        if self.status not in ev.TERMINAL and self.status is not RunStatus.COMPENSATING and self.steps:
            self.status = RunStatus.RUNNING if self.working else RunStatus.WAITING
        if self.status in ev.TERMINAL:
            self.timers.clear()
            if self.status is not self.state.status:
                self.commands.append(ev.Finish(self.status, self.reason))
        state = RunState(
            status=self.status,
            machine=self.machine,
            seed=self.seed,
            input_facts=self.input_facts,
            steps=self.steps.done(),
            live=self.live.done(),
            completed=self.completed.done(),
            timers=self.timers.done(),
            working=self.working,
            busy=self.busy,
            done=self.done,
            retries=self.retries,
            usage=self.usage,
            ending=self.ending,
            failing=self.failing.done(),
            degraded=self.degraded,
            paused=self.paused,
            signals=self.signals,
            received=self.received,
            reason=self.reason,
        )
        return state, self.commands


def not_compensated(transition: Transition) -> Iterator[str]:
    """Instances that could not be compensated; they are in the dead-letter queue."""
    return (name for name in transition.live if transition.steps[name].status is StepStatus.COMPENSATION_FAILED)
