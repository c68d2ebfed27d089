"""Simulation of random programs, thousands per second: failures, unknown outcomes, reordering, duplicates, crashes, edits.

There is no second implementation to compare with; invariants that hold for every program are checked after every event
(`checks.py`). A seed gives the same run on every host.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from interlock.base.errors import FailureKind
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.engines.simulator.checks import (
    Broken,
    Invariants,
    advance_checked,
    check_end,
    check_fold,
    check_move,
    check_totality,
    refuse,
)
from interlock.engines.simulator.programs import BOOK, LOOK, MAX_ITEMS, SEND, SIGNALS, Dice, random_program
from interlock.machine import events as ev
from interlock.machine.machine import pending
from interlock.machine.names import TURN, TimerKey, TimerKind, id_of
from interlock.machine.program import Program
from interlock.machine.state import RunState
from interlock.machine.version import MACHINE_VERSION
from interlock.workflows.facts import Facts
from interlock.workflows.spec import AgentStep, MapStep

_MOST_EVENTS = 2000  # no program here needs a tenth of it
_VALUE = Ref("0" * 64, 0, DEFINED)
_FACTS: tuple[Facts, ...] = ({}, {"n": 1, "flag": False}, {"n": 3, "flag": True})
_FAILURES = (
    FailureKind.TRANSIENT,
    FailureKind.TRANSIENT,
    FailureKind.TRANSIENT,
    FailureKind.RATE_LIMITED,
    FailureKind.PERMANENT,
    FailureKind.PERMANENT,
    FailureKind.DENIED,
    FailureKind.INVALID,
    FailureKind.BUDGET,
)
_COMPENSATION_FAILURES = (FailureKind.TRANSIENT, FailureKind.RATE_LIMITED, FailureKind.PERMANENT)


@dataclass(slots=True)
class Simulated:
    """One program's run.

    Attributes:
        problem: the invariant that did not hold, in one sentence; None if all did.
        faults: what struck, by kind.
    """

    seed: int
    program: Program
    state: RunState
    journal: list[ev.Event]
    faults: Counter[str]
    problem: str | None = None


def simulate_program(seed: int) -> Simulated:
    """Makes a random program, runs it through random faults and looks whether everything that must hold did."""
    dice = Dice(seed)
    world = _World(dice, random_program(dice))
    problem = None
    try:
        world.run()
    except Broken as broken:
        problem = str(broken)
    except KeyError as error:
        problem = f"the machine spoke of something that is not there: {error}"
    return Simulated(seed, world.program, world.state, world.journal, world.faults, problem)


@dataclass(slots=True)
class _World:
    """Answers what the run waits for, in any order, and now and then does its worst."""

    dice: Dice
    program: Program
    state: RunState = field(default_factory=RunState)
    journal: list[ev.Event] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    now: float = 0.0
    invariants: Invariants = field(default_factory=Invariants)
    outcomes: dict[tuple[str, int], ev.Event] = field(default_factory=dict)  # as the outside keeps them over crashes
    signals: int = 0
    dead_letters_left: int = 2

    def run(self) -> None:
        dice = self.dice
        facts = dice.pick(_FACTS)
        cancel_at = dice.below(12) if dice.below(5) == 0 else -1
        meddling = 0.15 if dice.below(3) == 0 else 0.0
        self.apply(ev.RunStarted(0.0, 7, facts, MACHINE_VERSION))
        while not self.state.over or self._second_chance():
            if len(self.journal) > _MOST_EVENTS:
                raise Broken(f"the run has not ended after {_MOST_EVENTS} events")
            self.now += 1.0
            self._disturb()
            if len(self.journal) == cancel_at and self.state.ending is None:
                self.faults["cancelled"] += 1
                self.apply(ev.CancelRequested(self.now, "enough"))
            elif meddling and self.state.ending is None and dice.roll() < meddling:
                self._meddle()
            else:
                self._answer()
        check_end(self.program, self.state, self.invariants)
        if dice.below(4) == 0:
            check_fold(self.program, self.journal, self.state, text=dice.below(8) == 0)

    def apply(self, event: ev.Event) -> None:
        """An event that fits the state."""
        before = self.state
        after, commands = advance_checked(self.program, before, event)
        if after is before:
            raise Broken(f"{type(event).__name__} was refused although it answers what the run waits for")
        self.invariants.note(self.program, before, event, commands)
        check_move(self.program, before, after, commands, self.invariants)
        self.state = after
        self.journal.append(event)

    # -- answers -----------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """One of the things waited for comes true."""
        dice, invariants = self.dice, self.invariants
        working = len(invariants.work)
        waiting = working or len(invariants.reviews) + len(invariants.dead_letters) + len(self.state.timers)
        if working and dice.below(4) == 0:
            waiting = working + len(invariants.reviews) + len(invariants.dead_letters) + len(self.state.timers)
        if not waiting:
            self._nudge()
            return
        number = dice.below(waiting)
        if number < working:
            if number:
                self.faults["reordered"] += 1
            self._work(list(invariants.work)[number])
            return
        number -= working
        people = [*invariants.reviews, *invariants.dead_letters]
        if number < len(people):
            self._decide(people[number])
            return
        timer = list(self.state.timers)[number - len(people)]
        self.now = max(self.now, self.state.timers[timer])
        if TimerKey.parse(timer).kind in {TimerKind.LIMIT, TimerKind.DEADLINE}:
            self.faults["deadline passed"] += 1
        self.apply(ev.TimerFired(timer, self.now))

    def _nudge(self) -> None:
        """Only a signal or the end of a pause helps now; if nothing does, the run is stuck."""
        if self.state.paused:
            self.apply(ev.ResumeRequested(self.now))
        elif name := self.invariants.awaited_signal(self.program, self.state):
            self._signal(name)
        else:
            raise Broken("the run is not over, and there is nothing that it waits for")

    def _work(self, key: tuple[str, str, int]) -> None:
        what, name, attempt = key
        if what == "undo":
            event = self._compensated(name, attempt)
        else:
            event = self.outcomes.get((name, attempt)) or self._done(name, attempt)
            if not isinstance(event, ev.StepDeferred):
                self.outcomes[name, attempt] = event
                if self.dice.below(40) == 0:
                    self.faults["outcome lost in a crash"] += 1
                    self._crash()
                    return
        self.apply(event)

    def _done(self, name: str, attempt: int) -> ev.Event:
        dice = self.dice
        if dice.below(4):
            facts, calls = self._result(name)
            return ev.StepSucceeded(name, attempt, self.now, self.now, _VALUE, facts, calls=calls)
        if dice.below(6) == 0:
            self.faults["deferred"] += 1
            return ev.StepDeferred(name, attempt, self.now, self.now, 1.0)
        mutates = self.program.mutates(self.invariants.tool(self.program, self.state, name))
        if mutates and dice.below(4) == 0:
            self.faults["approval needed"] += 1
            return ev.ApprovalNeeded(name, attempt, self.now, self.now, f"act {attempt}", _VALUE, "policy")
        kind = dice.pick(_FAILURES)
        ambiguous = mutates and dice.below(3) == 0
        self.faults["in doubt" if ambiguous else str(kind.value).replace("_", " ")] += 1
        after = 9.0 if kind is FailureKind.RATE_LIMITED else None
        return ev.StepFailed(name, attempt, self.now, self.now, ev.Failure(kind, "code", "it failed", after, ambiguous))

    def _result(self, name: str) -> tuple[Facts, tuple[str, ...]]:
        dice, node = self.dice, self.program.node(name)
        if isinstance(node.step, MapStep):
            return {"count": dice.below(MAX_ITEMS + 2) if dice.below(4) == 0 else dice.below(3)}, ()
        if isinstance(node.agent, AgentStep) and id_of(name) == TURN and dice.below(3):
            return {}, tuple(dice.pick((LOOK, LOOK, SEND, BOOK)) for _ in range(1 + dice.below(3)))
        return dice.pick(_FACTS), ()

    def _compensated(self, name: str, attempt: int) -> ev.Event:
        if self.dice.below(4):
            return ev.CompensationSucceeded(name, attempt, self.now, self.now)
        self.faults["undoing failed"] += 1
        failure = ev.Failure(self.dice.pick(_COMPENSATION_FAILURES), "code", "it stuck")
        return ev.CompensationFailed(name, attempt, self.now, self.now, failure)

    def _decide(self, name: str) -> None:
        if name in self.invariants.reviews:
            request = self.state.steps[name].request
            digest = request.digest if request is not None else ""
            self.apply(ev.ReviewDecided(name, self.now, self.dice.below(4) > 0, _VALUE, digest=digest))
        elif self.dead_letters_left and self.dice.below(2):
            self.dead_letters_left -= 1
            self.apply(ev.DeadLetterRequeued(name, self.now))
        else:
            self.apply(ev.DeadLetterDiscarded(name, self.now))

    def _second_chance(self) -> bool:
        """True if a dead letter is decided although the run is over, which may revive the run."""
        dead = self.state.status is ev.RunStatus.DEAD and bool(self.invariants.dead_letters)
        return dead and self.dice.below(2) == 0

    # -- disturbance -------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        dice = self.dice
        chance = dice.below(32)
        if chance < 2:
            self.faults["crashed"] += 1
            self._crash()
        elif chance < 6:
            self.faults["delivered twice"] += 1
            self._refused(dice.pick(self.journal))
        elif chance < 10:
            self._stale()
        elif chance == 10:
            self.faults["nonsense"] += 1
            check_totality(self.program, self.state, dice)

    def _crash(self) -> None:
        """Everything in memory is gone; the journal is left, and what people were asked."""
        check_fold(self.program, self.journal, self.state, text=False)
        self.invariants.take_over(pending(self.state))

    def _stale(self) -> None:
        """An outcome of another attempt than the current one."""
        steps = self.state.steps
        name = self.dice.pick(list(steps))
        step = steps[name]
        self.faults["stale"] += 1
        attempt = step.attempt + (1 if self.dice.below(2) else -1)
        self._refused(ev.StepSucceeded(name, attempt, self.now, self.now, _VALUE))
        self._refused(ev.CompensationSucceeded(name, step.compensation_attempt - 1, self.now, self.now))

    def _refused(self, event: ev.Event) -> None:
        if not self.invariants.may_be_new(event):
            refuse(self.program, self.state, event)

    def _meddle(self) -> None:
        if self.dice.below(2):
            self._signal(self.dice.pick(SIGNALS))
        elif self.state.paused:
            self.apply(ev.ResumeRequested(self.now))
        else:
            self.faults["paused"] += 1
            self.apply(ev.PauseRequested(self.now, "a look"))

    def _signal(self, name: str) -> None:
        self.signals += 1
        self.apply(ev.SignalReceived(name, f"{self.signals}", self.now, _VALUE))
