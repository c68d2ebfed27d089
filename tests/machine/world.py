"""The world around a run: it answers in any order, tells things twice, crashes, and watches every move of the machine."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from interlock.base.errors import FailureKind
from interlock.base.labels import DEFINED
from interlock.base.money import NanoUsd
from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.machine import events as ev
from interlock.machine.machine import advance, pending
from interlock.machine.program import Program
from interlock.machine.state import RunState, StepStatus, state_from_json, state_to_json
from interlock.machine.version import MACHINE_VERSION
from interlock.workflows.spec import ModelStep, ToolStep

from .oracle import Answer, Oracle, Wait
from .programs import SIGNALS, Scenario, key_of
from .rules import DONE, counted, moves_within_the_rules

RETRY_AFTER = 50.0  # longer than any backoff in the scenarios
SEED = 7
TIMERS = {"retry", "defer", "undo_retry", "wait", "limit", "deadline"}
LETTERS = {"dead_letter": "step", "compensation_dead_letter": "compensation"}


def ref(text: str) -> Ref:
    return Ref(text.encode().hex().ljust(64, "0"), len(text), DEFINED)


@dataclass
class World:
    """Drives machine and oracle in step. After every event both must wait for the same things."""

    scenario: Scenario
    rng: random.Random
    crashes: bool = True
    program: Program = field(init=False)
    oracle: Oracle = field(init=False)
    state: RunState = field(default_factory=RunState)
    journal: list[Any] = field(default_factory=list)
    commands: list[ev.Command] = field(default_factory=list)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.program = self.scenario.program()
        self.oracle = self.scenario.oracle()
        self.work: set[Wait] = set()  # what the driver must do, as the machine's commands told it
        self.timers: dict[str, float] = {}
        self.reviews: set[tuple[str, str]] = set()
        self.dead_letters: set[tuple[str, str]] = set()
        self.cancel_after = self.scenario.cancel_after
        self.counts: dict[tuple[int, str], int] = {}
        self.signals = 0

    def run(self) -> World:
        """To the end. Every scenario ends, since its answers run out and then everything succeeds."""
        self.apply(ev.RunStarted(self.now, SEED, self.scenario.facts, MACHINE_VERSION))
        self.agree()
        while not self.state.over or (self.state.status is ev.RunStatus.DEAD and self.rng.random() < 0.6):
            assert len(self.journal) < 3000, "no progress"
            self.disturb()
            if not self.state.over and self._meddle():
                self.agree()
                continue
            wait = self.rng.choice(sorted(self.oracle.waiting))
            self.tell(*self.answer(wait))
            self.agree()
        self.disturb()
        return self

    def tell(self, inform: Any, event: Any) -> None:
        inform()
        self.apply(event)

    def _meddle(self) -> bool:
        """Somebody cancels, pauses, resumes or sends a signal that nobody may be waiting for."""
        if self.cancel_after is not None and len(self.journal) > self.cancel_after:
            self.cancel_after = None
            if self.oracle.ending is None:
                self.tell(self.oracle.cancel, ev.CancelRequested(self.now, "enough"))
                return True
        if self.oracle.ending is not None or self.rng.randrange(100) >= self.scenario.meddling:
            return False
        what = self.rng.choice(["pause", "signal"])
        if what == "signal":
            self.tell(*self._signal(self.rng.choice(SIGNALS)))
        elif self.oracle.paused:
            self.tell(self.oracle.unpause, ev.ResumeRequested(self.now))
        else:
            self.tell(self.oracle.pause, ev.PauseRequested(self.now, "wait"))
        return True

    def _signal(self, name: str) -> tuple[Any, Any]:
        self.signals += 1
        answer = Answer(facts=self.rng.choice([{}, {"n": 5}]))
        event = ev.SignalReceived(name, f"id{self.signals}", self.now, ref(f"{name}{self.signals}"), answer.facts)
        return (lambda: self.oracle.signal(name, answer)), event

    # -- answers -----------------------------------------------------------------------------------------------

    def answer(self, wait: Wait) -> tuple[Any, Any]:
        """What the world says to one of the things waited for: how the oracle is told, and as an event to the machine."""
        what, step, attempt = wait
        self.now += self.rng.choice([0.001, 1.0, 30.0])
        if what == "signal":
            return self._signal(self.oracle.signal_names[step])
        if what == "paused":
            return self.oracle.unpause, ev.ResumeRequested(self.now)
        answer, event = self._answer(what, step, attempt)
        return (lambda: self.oracle.answer(wait, answer)), event

    def _answer(self, what: str, step: str, attempt: int) -> tuple[Answer, Any]:
        scenario = self.scenario
        match what:
            case "perform":
                answer = self._next(scenario.outcomes, step, scenario.defaults.get(key_of(step), Answer()))
                return answer, outcome(answer, step, attempt, self.now)
            case "undo":
                answer = self._next(scenario.undos, step, Answer())
                if answer.ok:
                    return answer, ev.CompensationSucceeded(step, attempt, self.now, self.now)
                return answer, ev.CompensationFailed(step, attempt, self.now, self.now, failure(answer))
            case "confirm":
                answer = self._next(scenario.confirms, step, Answer())
                return answer, ev.ReviewDecided(step, self.now, answer.ok, ref(f"{step}!"), answer.facts)
            case "approve_act":
                answer = self._next(scenario.approvals, step, Answer())
                request = self.state.steps[step].request
                assert request is not None
                event = ev.ReviewDecided(step, self.now, answer.ok, ref(f"{step}?"), digest=request.digest)
                return answer, event
            case "approve":
                answer = Answer(ok=scenario.reviews[key_of(step)])
                return answer, ev.ReviewDecided(step, self.now, answer.ok, ref(f"{step}?"))
            case "dead_letter" | "compensation_dead_letter":
                answer = self._next(scenario.dead_letters, step, Answer(ok=False))
                event = ev.DeadLetterRequeued(step, self.now) if answer.ok else ev.DeadLetterDiscarded(step, self.now)
                return answer, event
            case _:
                key = next(key for key in self.timers if wait_of_timer(key) == (plain(what), step, attempt))
                self.now = max(self.now, self.timers[key])
                return Answer(), ev.TimerFired(key, self.now)

    def _next(self, script: dict[str, list[Answer]], step: str, default: Answer) -> Answer:
        number = self.counts[id(script), key_of(step)] = self.counts.get((id(script), key_of(step)), -1) + 1
        answers = script.get(key_of(step), [])
        return answers[number] if number < len(answers) else default

    # -- the machine, watched ----------------------------------------------------------------------------------

    def apply(self, event: Any) -> None:
        """One event that fits: the machine takes it, and keeps its rules doing so."""
        before, looked = self.state, repr(self.state)
        after, commands = advance(self.program, before, event)
        assert after is not before, f"{event} was refused"
        assert repr(before) == looked, "the input state changed"
        assert advance(self.program, before, event) == (after, commands), "the same inputs gave something else"
        if hasattr(event, "began"):
            another = replace(event, began=event.began - 0.25)
            assert advance(self.program, before, another) == (after, commands), "the beginning decided something"
        moves_within_the_rules(self.program, before, after, commands)
        counted(self.program, after)
        self._carry_out(event, commands)
        self.state = after
        self.journal.append(event)
        self.commands += commands

    def _carry_out(self, event: Any, commands: list[ev.Command]) -> None:
        match event:
            case ev.StepSucceeded() | ev.StepFailed() | ev.StepDeferred() | ev.ApprovalNeeded():
                self.work.remove(("perform", event.step, event.attempt))
            case ev.CompensationSucceeded() | ev.CompensationFailed():
                self.work.remove(("undo", event.step, event.attempt))
            case ev.ReviewDecided():
                self.reviews = {one for one in self.reviews if one[1] != event.step}
            case ev.TimerFired():
                del self.timers[event.timer]
        for command in commands:
            match command:
                case ev.Perform():
                    self.work.add(("perform", command.step, command.attempt))
                case ev.Compensate():
                    self.work.add(("undo", command.step, command.attempt))
                case ev.StartTimer():
                    if isinstance(event, ev.StepFailed | ev.CompensationFailed) and command.timer.startswith("retry"):
                        assert command.due >= event.at + (event.failure.retry_after or 0)
                    self.timers[command.timer] = command.due
                case ev.OpenReview():
                    assert command.step not in {step for _, step in self.reviews}
                    self.reviews.add((command.purpose, command.step))
                case ev.CloseReview():
                    (closed,) = {one for one in self.reviews if one[1] == command.step}
                    assert closed[0] != "confirm", "a doubt is never dropped"
                    self.reviews.remove(closed)
                case ev.OpenDeadLetter():
                    assert command.step not in {step for _, step in self.dead_letters}
                    self.dead_letters.add((command.purpose, command.step))
                case ev.CloseDeadLetter():
                    self.dead_letters = {one for one in self.dead_letters if one[1] != command.step}

    def agree(self) -> None:
        """Machine and oracle wait for the same things, and a driver that takes over now would redo just what is open."""
        oracle = {(plain(what), step, attempt) for what, step, attempt in self.oracle.waiting}
        self.timers = {key: due for key, due in self.timers.items() if key in self.state.timers}
        reviews = {(what, step) for what, step, _ in oracle if what in {"approve", "approve_act", "confirm"}}
        timers = {wait for wait in oracle if wait[0] in TIMERS}
        dead_letters = {(LETTERS[what], step) for what, step, _ in oracle if what in LETTERS}
        assert self.oracle.status == (self.state.status.value if self.state.over else None)
        assert self.work == {wait for wait in oracle if wait[0] in {"perform", "undo"}}
        assert {wait_of_timer(key) for key in self.state.timers} == timers
        assert self.timers == self.state.timers
        assert self.reviews == reviews
        assert self.dead_letters == dead_letters
        assert self._in(StepStatus.PAUSED) == {step for what, step, _ in oracle if what == "paused"}
        assert self._in(StepStatus.WAITING) == {step for what, step, _ in oracle if what in {"wait", "signal"}}
        assert self.state.ending is not None or self.state.over or self.state.paused == self.oracle.paused
        again = pending(self.state)
        assert len(again) == len(set(again))
        assert {_wait_of(one) for one in again} == self.work | timers
        if self.crashes and self.rng.random() < 0.3:
            self.crash()

    def _in(self, status: StepStatus) -> set[str]:
        return {name for name, step in self.state.steps.items() if step.status is status}

    def crash(self) -> None:
        """Everything in memory is gone; the journal, as JSON, and the open reviews are what is left."""
        state = RunState()
        for entry in json.loads(json.dumps([ev.event_to_json(event) for event in self.journal])):
            state, _ = advance(self.program, state, ev.event_from_json(entry))
        assert state == self.state
        self.state = state_from_json(json.loads(json.dumps(state_to_json(state))))
        assert self.state == state
        self.work, self.timers = set(), {}
        for command in pending(state):
            if isinstance(command, ev.StartTimer):
                self.timers[command.timer] = command.due
            else:
                self.work.add(_wait_of(command))

    # -- disturbance -------------------------------------------------------------------------------------------

    def disturb(self) -> None:
        """Deliveries that answer nothing: duplicates, stale attempts, decisions nobody asked for. All are ignored."""
        for _ in range(self.rng.randrange(4)):
            event = self.rng.choice([*filter(self._is_old, self.journal), *self._strays()])
            after, commands = advance(self.program, self.state, event)
            assert after is self.state, f"{event} was accepted"
            assert commands == []

    def _is_old(self, event: Any) -> bool:
        """Whether a duplicate can be told from the real thing: who was paused or held may be again, an attempt put off
        is performed again under its old number."""
        match event:
            case ev.PauseRequested() | ev.ResumeRequested() | ev.DeadLetterRequeued() | ev.DeadLetterDiscarded():
                return False
            case ev.StepDeferred():
                return ("perform", event.step, event.attempt) not in self.work
        return True

    def _strays(self) -> list[Any]:
        state = self.state
        step = self.rng.choice([*self.program.nodes, *state.steps, "nobody", "s0#1", "s1#2/s2"])
        attempt = self.rng.randrange(-1, 9)
        kinds = [
            "deadline",
            f"retry:{step}:{attempt}",
            f"compensate:{step}:{attempt}",
            f"limit:{step}",
            f"wait:{step}",
            "",
        ]
        strays: list[Any] = [ev.RunStarted(self.now, 1), ev.TimerFired(self.rng.choice(kinds), self.now)]
        if ("perform", step, attempt) not in self.work:
            strays.append(ev.StepSucceeded(step, attempt, self.now, self.now, ref("x"), {"n": 9}))
            strays.append(ev.StepFailed(step, attempt, self.now, self.now, failure(Answer(ok=False, kind="budget"))))
            strays.append(ev.StepDeferred(step, attempt, self.now, self.now, 1.0))
            strays.append(ev.ApprovalNeeded(step, attempt, self.now, self.now, "x", ref("x"), "policy"))
        if ("undo", step, attempt) not in self.work:
            strays.append(ev.CompensationSucceeded(step, attempt, self.now, self.now))
            strays.append(
                ev.CompensationFailed(step, attempt, self.now, self.now, failure(Answer(ok=False, kind="permanent")))
            )
        if step not in {name for _, name in self.reviews}:
            strays.append(ev.ReviewDecided(step, self.now, self.rng.random() < 0.5, ref("x")))
        elif ("approve_act", step) in self.reviews:  # about another act
            strays.append(ev.ReviewDecided(step, self.now, self.rng.random() < 0.5, ref("x"), digest="another"))
        if step not in {name for _, name in self.dead_letters}:
            strays.append(
                self.rng.choice([ev.DeadLetterRequeued(step, self.now), ev.DeadLetterDiscarded(step, self.now)])
            )
        if state.ending is not None or state.over:
            strays.append(ev.CancelRequested(self.now, "again"))
            strays.append(ev.SignalReceived("go", "late", self.now, ref("late")))
        if state.ending is not None or state.over or state.paused:
            strays.append(ev.PauseRequested(self.now))
        if not state.paused:
            strays.append(ev.ResumeRequested(self.now))
        return [stray for stray in strays if getattr(stray, "timer", None) not in state.timers]

    # -- afterwards --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The end result against the oracle's, and what must hold of any run."""
        state, oracle = self.state, self.oracle
        performed = [(one.step, one.attempt) for one in self.commands if isinstance(one, ev.Perform)]
        assert Counter(performed) == Counter(oracle.performed)
        undone = [event.step for event in self.journal if isinstance(event, ev.CompensationSucceeded)]
        assert undone == oracle.undone
        assert self._in(StepStatus.COMPENSATED) == set(oracle.undone)
        assert self._in(StepStatus.COMPENSATION_FAILED) == set(oracle.stuck)
        assert self._in(StepStatus.COMPENSATION_ABANDONED) == set(oracle.given_up)
        succeeded = {name for name, step in state.steps.items() if step.status in DONE}
        work = {name for name in state.steps if isinstance(self.program.node(name).step, ModelStep | ToolStep)}
        assert succeeded & work == {name for name in oracle.succeeded if name in work}
        assert list(state.completed) == [name for name, _ in oracle.completed if name not in oracle.handled]
        if state.status in {ev.RunStatus.FAILED, ev.RunStatus.CANCELLED}:
            assert set(undone) | set(oracle.given_up) == {name for name, _ in oracle.completed}
        if oracle.degraded is not None:
            name, rejected = oracle.degraded
            assert rejected or str(state.degraded).startswith(f'step "{name}": ')
        assert (oracle.degraded is None) == (state.degraded is None)
        finishes = [one.status for one in self.commands if isinstance(one, ev.Finish)]
        assert finishes[-1] is state.status
        assert all(one is ev.RunStatus.DEAD for one in finishes[:-1])
        assert pending(state) == []
        assert state.timers == {}
        self._nothing_is_left_in_doubt()
        ended = [event for event in self.journal if isinstance(event, ev.StepSucceeded | ev.StepFailed)]
        used = [event.usage for event in ended if event.usage is not None]
        assert (state.usage.provider, state.usage.model) == ("", "")
        for count in ("input_tokens", "output_tokens", "attempts", "known_cost", "unpriced"):
            assert getattr(state.usage, count) == sum(getattr(one, count) for one in used)

    def _nothing_is_left_in_doubt(self) -> None:
        """After an ambiguous failure comes a person's answer, or another attempt that knows better."""
        doubted: set[str] = set()
        for event in self.journal:
            if isinstance(event, ev.StepSucceeded | ev.StepFailed | ev.ReviewDecided):
                doubted.discard(event.step)
            if isinstance(event, ev.StepFailed) and event.failure.ambiguous:
                doubted.add(event.step)
        assert not doubted


def failure(answer: Answer) -> ev.Failure:
    kind = FailureKind(answer.kind)
    retry_after = RETRY_AFTER if kind is FailureKind.RATE_LIMITED else None
    return ev.Failure(kind, "code", "it failed", retry_after, answer.ambiguous)


def outcome(answer: Answer, step: str, attempt: int, now: float) -> Any:
    """The event of an attempt that ended so."""
    if answer.ok:
        usage = Usage("p", "m", 3, 2, attempts=1, known_cost=NanoUsd(333_333_333))
        output = ref(f"{step}/{attempt}")
        return ev.StepSucceeded(step, attempt, now - 0.5, now, output, answer.facts, usage, answer.calls)
    if answer.kind == "unapproved":
        return ev.ApprovalNeeded(step, attempt, now, now, f"{step}/{attempt}", ref(f"{step}/{attempt}"), "policy")
    if answer.kind == "deferred":
        return ev.StepDeferred(step, attempt, now, now, 5.0)
    return ev.StepFailed(step, attempt, now, now, failure(answer), Usage("p", "n", 1, 0, attempts=1, unpriced=1))


def plain(what: str) -> str:
    """The machine has one kind of timer for all deadlines of steps."""
    return "limit" if what.endswith("_limit") else what


def wait_of_timer(key: str) -> Wait:
    """What the oracle calls a timer."""
    kind, step, attempt, *_ = [*key.split(":"), "", "0"]
    return ("undo_retry" if kind == "compensate" else kind, step, int(attempt or 0))


def _wait_of(command: Any) -> Wait:
    if isinstance(command, ev.StartTimer):
        return wait_of_timer(command.timer)
    return ("perform" if isinstance(command, ev.Perform) else "undo", command.step, command.attempt)
