"""Invariants of every run of every program. None of them uses the machine's own logic."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from interlock.base.errors import FailureKind
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.engines.simulator.programs import Dice
from interlock.machine import events as ev
from interlock.machine.machine import advance, fold
from interlock.machine.names import DEADLINE, TimerKey, is_numbered
from interlock.machine.program import Program
from interlock.machine.state import RunState, StepStatus, state_from_json, state_to_json
from interlock.machine.version import MACHINE_VERSION
from interlock.workflows.facts import Facts
from interlock.workflows.spec import CONTAINERS, MapStep, ToolStep, WaitStep

_VALUE = Ref("1" * 64, 1, DEFINED)
_UNDOING = frozenset(
    {
        StepStatus.COMPENSATING,
        StepStatus.COMPENSATION_RETRYING,
        StepStatus.COMPENSATED,
        StepStatus.COMPENSATION_FAILED,
        StepStatus.COMPENSATION_ABANDONED,
    }
)
_DONE = _UNDOING | {StepStatus.SUCCEEDED}

_OF_ATTEMPTS = (ev.StepSucceeded, ev.StepFailed, ev.StepDeferred, ev.ApprovalNeeded)
_OF_COMPENSATIONS = (ev.CompensationSucceeded, ev.CompensationFailed)
_REPEATABLE = (ev.PauseRequested, ev.ResumeRequested, ev.DeadLetterRequeued, ev.DeadLetterDiscarded)


class Broken(Exception):
    """An invariant does not hold."""


@dataclass(slots=True)
class Invariants:
    """Record of a run's commands and their outcomes, kept outside the machine.

    Attributes:
        work: ("perform" | "undo", instance, attempt) under way, in the order commanded.
        ended: attempts with an outcome; none may be commanded again.
        reviews, dead_letters: instances a person is asked about.
        effects: undoable effects that happened and were not undone; `kept`: those a person let stand.
    """

    work: dict[tuple[str, str, int], None] = field(default_factory=dict)
    ended: set[tuple[str, str, int]] = field(default_factory=set)
    reviews: dict[str, None] = field(default_factory=dict)
    dead_letters: dict[str, None] = field(default_factory=dict)
    effects: dict[str, None] = field(default_factory=dict)
    kept: dict[str, None] = field(default_factory=dict)

    def note(self, program: Program, before: RunState, event: ev.Event, commands: Iterable[ev.Command]) -> None:
        """Raises Broken if an effect is commanded twice."""
        self._event(program, before, event)
        for command in commands:
            if isinstance(command, ev.Perform):
                _check_approved(before, event, command.step)
                self._begin(("perform", command.step, command.attempt))
            elif isinstance(command, ev.Compensate):
                self._begin(("undo", command.step, command.attempt))
            elif isinstance(command, ev.OpenReview):
                self.reviews[command.step] = None
            elif isinstance(command, ev.CloseReview):
                self.reviews.pop(command.step)
            elif isinstance(command, ev.OpenDeadLetter):
                self.dead_letters[command.step] = None
            elif isinstance(command, ev.CloseDeadLetter):
                self.dead_letters.pop(command.step)

    def _begin(self, key: tuple[str, str, int]) -> None:
        if key in self.work or key in self.ended:
            raise Broken(f'"{key[1]}": attempt {key[2]} to {key[0]} was commanded twice')
        self.work[key] = None

    def _event(self, program: Program, before: RunState, event: ev.Event) -> None:
        if isinstance(event, _OF_ATTEMPTS):
            key = ("perform", event.step, event.attempt)
            del self.work[key]
            if not isinstance(event, ev.StepDeferred):  # nothing was tried: the same attempt again
                self.ended.add(key)
            if isinstance(event, ev.StepSucceeded):
                self._effect(program, before, event.step)
        elif isinstance(event, ev.ReviewDecided):
            del self.reviews[event.step]
            if event.approved and before.steps[event.step].status is StepStatus.CONFIRMING:
                self._effect(program, before, event.step)
        elif isinstance(event, _OF_COMPENSATIONS):
            key = ("undo", event.step, event.attempt)
            del self.work[key]
            self.ended.add(key)
            if isinstance(event, ev.CompensationSucceeded):
                del self.effects[event.step]
        elif isinstance(event, ev.DeadLetterDiscarded) and event.step in self.effects:
            self.kept[event.step] = None

    def _effect(self, program: Program, before: RunState, name: str) -> None:
        tool = self.tool(program, before, name)
        if tool in program.contracts and program.contracts[tool].compensate:
            self.effects[name] = None

    @staticmethod
    def tool(program: Program, state: RunState, name: str) -> str:
        """The tool being called for an instance; empty if it is no tool."""
        step, spec = state.steps[name], program.node(name).step
        if step.tool is not None:
            return step.tool
        if not isinstance(spec, ToolStep):
            return ""
        return (spec.fallback[step.variant - 1].tool or "") if step.variant else spec.tool

    @staticmethod
    def awaited_signal(program: Program, state: RunState) -> str | None:
        for name, step in state.steps.items():
            spec = program.node(name).step
            if step.status is StepStatus.WAITING and isinstance(spec, WaitStep):
                return spec.signal
        return None

    def may_be_new(self, event: ev.Event) -> bool:
        """True if an event, though delivered before, would answer something that is open now."""
        if isinstance(event, _REPEATABLE):
            return True
        return isinstance(event, ev.StepDeferred) and ("perform", event.step, event.attempt) in self.work

    def take_over(self, commands: Iterable[ev.Command]) -> None:
        """A new driver does what `pending` says: that must be just what was under way."""
        again = {("perform", one.step, one.attempt) for one in commands if isinstance(one, ev.Perform)}
        again |= {("undo", one.step, one.attempt) for one in commands if isinstance(one, ev.Compensate)}
        if again != self.work.keys():
            raise Broken("a driver that takes the run over would do other work than was under way")


def _check_approved(before: RunState, event: ev.Event, name: str) -> None:
    """An act that a person is asked about is performed only once that person has approved this very act. Raises Broken."""
    step = before.steps.get(name)
    if step is None or step.status is not StepStatus.APPROVING or step.request is None:
        return
    decided = isinstance(event, ev.ReviewDecided) and event.approved and event.digest == step.request.digest
    if not decided and not isinstance(event, ev.TimerFired):  # at its deadline its fallback may take its place
        raise Broken(f'"{name}" was performed although its act was not approved')


def advance_checked(program: Program, state: RunState, event: ev.Event) -> tuple[RunState, list[ev.Command]]:
    """Applies an event. Raises Broken if the machine raises anything: it must be total."""
    try:
        return advance(program, state, event)
    except Exception as error:
        raise Broken(f"{_text(event)} raised {type(error).__name__}: {error}") from error


def refuse(program: Program, state: RunState, event: ev.Event) -> None:
    """An event that answers nothing changes nothing. Raises Broken."""
    after, commands = advance_checked(program, state, event)
    if after is not state or commands:
        raise Broken(f"{_text(event)} was taken although it answers nothing")


def _text(event: ev.Event) -> str:
    return json.dumps(ev.event_to_json(event))


def check_move(
    program: Program, before: RunState, after: RunState, commands: list[ev.Command], invariants: Invariants | None
) -> None:
    """After every event. Raises Broken."""
    if after.status is not before.status and after.status not in ev.RUN_MOVES[before.status]:
        raise Broken(f"the run went from {before.status} to {after.status}")
    over = after.over
    finishes = over and after.status is not before.status
    if sum(type(one) is ev.Finish for one in commands) != finishes or (
        finishes and type(commands[-1]) is not ev.Finish
    ):
        raise Broken("Finish is not the last command, or missing, or given although the run is not over")
    if over and (after.timers or after.busy or (invariants is not None and invariants.work)):
        raise Broken("the run is over, but work or a timer is left")
    if after.retries > program.workflow.budget.retries:
        raise Broken("more retries than the budget allows")
    if before.ending is not None and any(type(one) is ev.Perform for one in commands):
        raise Broken("something new was performed although the run is ending")
    if before.paused and after.paused and any(type(one) is ev.Perform for one in commands):
        raise Broken("something was performed although the run is paused")
    _check_counters(program, after)


def _check_counters(program: Program, state: RunState) -> None:
    working = busy = done = 0
    for name, step in state.steps.items():
        status = step.status
        if status is StepStatus.RUNNING or status is StepStatus.COMPENSATING:
            working += 1
            busy += 1
        elif status is StepStatus.COMPENSATION_RETRYING or status is StepStatus.CONFIRMING:
            busy += 1
        if status in _DONE and not isinstance(program.node(name).step, CONTAINERS):
            done += 1
    if (state.working, state.busy, state.done) != (working, busy, done):
        raise Broken("the counters are not what a recount gives")


def check_end(program: Program, state: RunState, invariants: Invariants) -> None:
    """Once the run is over: no effect is left behind by what failed. Raises Broken."""
    all_compensated = state.status in {ev.RunStatus.FAILED, ev.RunStatus.CANCELLED}
    for name in invariants.effects:
        if name in invariants.kept or name in invariants.dead_letters:
            continue
        if all_compensated or (
            state.ending is not None and state.ending.status in {ev.RunStatus.FAILED, ev.RunStatus.CANCELLED}
        ):
            raise Broken(
                f'"{name}" was neither undone nor put in the dead-letter queue, though the run is {state.status}'
            )
        if (container := _failed_around(program, state, name)) is not None:
            raise Broken(f'"{name}" was neither undone nor put in the dead-letter queue, though "{container}" failed')
    if invariants.reviews:
        raise Broken(f"the run is over, but a person is still asked about {', '.join(invariants.reviews)}")
    if bool(invariants.dead_letters) != (state.status is ev.RunStatus.DEAD):
        raise Broken(f"the run is {state.status}, with {len(invariants.dead_letters)} dead letters open")


def _failed_around(program: Program, state: RunState, name: str) -> str | None:
    """A container around it that failed by itself."""
    around = program.parent(name)
    while around is not None:
        step, spec = state.steps[around], program.node(around).step
        alone = spec.on_failure == "continue" and isinstance(spec, CONTAINERS)
        if is_numbered(around):
            alone = isinstance(spec, MapStep) and spec.on_item_failure == "continue"
        if alone and step.status is StepStatus.FAILED and step.failure is not None:
            return around
        around = program.parent(around)
    return None


def check_fold(program: Program, journal: Iterable[ev.Event], state: RunState, *, text: bool) -> None:
    """The journal, folded, is the state; with `text`, through JSON as the journal is kept. Raises Broken."""
    if text:
        journal = [ev.event_from_json(json.loads(json.dumps(ev.event_to_json(event)))) for event in journal]
    if fold(program, journal) != state:
        raise Broken("the journal, folded, gives another state")
    if text and state_from_json(json.loads(json.dumps(state_to_json(state)))) != state:
        raise Broken("the state is not the same after a journey through JSON")


def check_totality(program: Program, state: RunState, dice: Dice) -> None:
    """Any event at all, also one with nonsense in it, is refused or taken by the rules. Raises Broken."""
    name = dice.pick([*state.steps, *program.nodes, "", "unknown", "a#1/b"])
    attempt = dice.pick((-1, 0, 1, 2, 2**64))
    at = dice.pick((0.0, -1.0, 1e12))
    facts: Facts = dice.pick(({}, {"n": 10**400, "count": -1}, {"n": "text", "count": True}, {"count": 2}))
    failure = ev.Failure(
        dice.pick(tuple(FailureKind)), "code", "it failed", dice.pick((None, -1.0)), dice.below(2) == 0
    )
    events: tuple[ev.Event, ...] = (
        ev.RunStarted(at, 1, facts, MACHINE_VERSION),
        ev.StepSucceeded(name, attempt, at, at, _VALUE, facts, calls=dice.pick(((), ("book",), ("unheard_of",)))),
        ev.StepFailed(name, attempt, at, at, failure),
        ev.StepDeferred(name, attempt, at, at, -1.0),
        ev.ApprovalNeeded(name, attempt, at, at, "", _VALUE, ""),
        ev.ReviewDecided(name, at, dice.below(2) == 0, _VALUE, facts),
        ev.TimerFired(
            dice.pick([*state.timers, "", DEADLINE, str(TimerKey.limit(name, 1)), str(TimerKey.compensate(name, 1))]),
            at,
        ),
        ev.CompensationSucceeded(name, attempt, at, at),
        ev.CompensationFailed(name, attempt, at, at, failure),
        ev.CancelRequested(at, ""),
        ev.SignalReceived("go", name, at, _VALUE, facts),
        ev.PauseRequested(at),
        ev.ResumeRequested(at),
        ev.DeadLetterRequeued(name, at, _VALUE),
        ev.DeadLetterDiscarded(name, at),
    )
    event = dice.pick(events)
    after, commands = advance_checked(program, state, event)
    if after is state and commands:
        raise Broken(f"{_text(event)} was refused, yet it gave commands")
    if after is not state:
        check_move(program, state, after, commands, None)
