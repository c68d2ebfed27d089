"""The world around a run: it answers in any order, tells things twice, crashes, and watches every move of the machine."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from interlock.base.errors import FailureKind
from interlock.base.labels import Labels
from interlock.base.refs import Ref
from interlock.workflows import events as ev
from interlock.workflows.machine import advance, pending
from interlock.workflows.program import Program
from interlock.workflows.state import RunState, StepStatus

from .oracle import Answer, Oracle, Wait
from .programs import Scenario

RETRY_AFTER = 50.0  # longer than any backoff in the scenarios
SEED = 7


def ref(text: str) -> Ref:
    return Ref(text.encode().hex().ljust(64, "0"), len(text), Labels())


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
        self.cancel_after = self.scenario.cancel_after
        self.counts: dict[tuple[str, str], int] = {}

    def run(self) -> World:
        """To the end. Every scenario ends, since its answers run out and then everything succeeds."""
        self.apply(ev.RunStarted(self.now, SEED, self.scenario.facts))
        self.agree()
        while not self.state.over:
            assert len(self.journal) < 2000, "no progress"
            self.disturb()
            if self.cancel_after is not None and len(self.journal) > self.cancel_after:
                self.cancel_after = None
                if self.oracle.ending is None:
                    self.oracle.cancel()
                    self.apply(ev.CancelRequested(self.now, "enough"))
                    self.agree()
                    continue
            wait = self.rng.choice(sorted(self.oracle.waiting))
            answer, event = self.answer(wait)
            self.oracle.answer(wait, answer)
            self.apply(event)
            self.agree()
        self.disturb()
        return self

    # -- answers -----------------------------------------------------------------------------------------------

    def answer(self, wait: Wait) -> tuple[Answer, Any]:
        """What the world says to one of the things waited for: to the oracle, and as an event to the machine."""
        what, step, attempt = wait
        self.now += self.rng.choice([0.001, 1.0, 30.0])
        scenario = self.scenario
        match what:
            case "perform":
                answer = self._next(scenario.outcomes, step, Answer())
                if answer.ok:
                    spent = ev.Spent(3, 2, 0.25)
                    return answer, ev.StepSucceeded(
                        step, attempt, self.now, ref(f"{step}/{attempt}"), answer.facts, spent
                    )
                return answer, ev.StepFailed(step, attempt, self.now, failure(answer), ev.Spent(1, 0, 0.125))
            case "undo":
                answer = self._next(scenario.undos, step, Answer())
                if answer.ok:
                    return answer, ev.CompensationSucceeded(step, attempt, self.now)
                return answer, ev.CompensationFailed(step, attempt, self.now, failure(answer))
            case "confirm":
                answer = self._next(scenario.confirms, step, Answer())
                return answer, ev.ReviewDecided(step, self.now, answer.ok, ref(f"{step}!"), answer.facts)
            case "approve":
                answer = Answer(ok=scenario.reviews[step])
                return answer, ev.ReviewDecided(step, self.now, answer.ok, ref(f"{step}?"))
            case _:
                key = next(key for key in self.timers if _wait_of_timer(key) == wait)
                self.now = max(self.now, self.timers[key])
                return Answer(), ev.TimerFired(key, self.now)

    def _next(self, script: dict[str, list[Answer]], step: str, default: Answer) -> Answer:
        number = self.counts[id(script), step] = self.counts.get((id(script), step), -1) + 1
        answers = script.get(step, [])
        return answers[number] if number < len(answers) else default

    # -- the machine, watched ----------------------------------------------------------------------------------

    def apply(self, event: Any) -> None:
        """One event that fits: the machine takes it, and keeps its rules doing so."""
        before, looked = self.state, repr(self.state)
        after, commands = advance(self.program, before, event)
        assert after is not before, f"{event} was refused"
        assert repr(before) == looked, "the input state changed"
        assert advance(self.program, before, event) == (after, commands), "the same inputs gave something else"
        allowed = {before.status} | ev.RUN_MOVES[before.status]
        assert after.status in allowed, f"{before.status} → {after.status}"
        finishes = [command for command in commands if isinstance(command, ev.Finish)]
        assert [one.status for one in finishes] == ([after.status] if after.over else [])
        assert not finishes or commands[-1] is finishes[0], "a command after Finish"
        assert after.retries <= self.program.workflow.budget.retries
        if before.ending is not None:
            assert after.ending == before.ending
            for name in self.program.scopes.keys() & before.steps.keys():
                assert after.steps[name] == before.steps[name], "a container went on although the run is ending"
            for command in commands:
                starts = isinstance(command, ev.Perform) or command == ev.OpenReview(
                    getattr(command, "step", ""), "approve"
                )
                assert not starts, f"{command} although the run is ending"
        self._carry_out(event, commands)
        self.state = after
        self.journal.append(event)
        self.commands += commands

    def _carry_out(self, event: Any, commands: list[ev.Command]) -> None:
        match event:
            case ev.StepSucceeded() | ev.StepFailed():
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
                    assert command.due >= event.at
                    if isinstance(event, ev.StepFailed | ev.CompensationFailed):
                        assert command.due >= event.at + (event.failure.retry_after or 0)
                    self.timers[command.timer] = command.due
                case ev.OpenReview():
                    self.reviews.add((command.purpose, command.step))
                case ev.CloseReview():
                    self.reviews.remove(("approve", command.step))

    def agree(self) -> None:
        """Machine and oracle wait for the same things, and a driver that takes over now would redo just what is open."""
        oracle = set(self.oracle.waiting)
        self.timers = {key: due for key, due in self.timers.items() if key in self.state.timers}
        reviews = {(what, step) for what, step, _ in oracle if what in {"approve", "confirm"}}
        timers = {wait for wait in oracle if wait[0] in {"retry", "undo_retry", "deadline"}}
        assert self.oracle.status == (self.state.status.value if self.state.over else None)
        assert self.work == {wait for wait in oracle if wait[0] in {"perform", "undo"}}
        assert {_wait_of_timer(key) for key in self.state.timers} == timers
        assert self.timers == self.state.timers
        assert self.reviews == reviews
        again = pending(self.state)
        assert len(again) == len(set(again))
        assert {_wait_of(one) for one in again} == self.work | timers
        if self.crashes and self.rng.random() < 0.3:
            self.crash()

    def crash(self) -> None:
        """Everything in memory is gone; the journal, as JSON, and the open reviews are what is left."""
        state = RunState()
        for entry in json.loads(json.dumps([ev.event_to_json(event) for event in self.journal])):
            state, _ = advance(self.program, state, ev.event_from_json(entry))
        assert state == self.state
        self.state = state
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
            event = self.rng.choice([*self.journal, *self._strays()])
            after, commands = advance(self.program, self.state, event)
            assert after is self.state, f"{event} was accepted"
            assert commands == []

    def _strays(self) -> list[Any]:
        step = self.rng.choice([*self.program.nodes, "nobody"])
        attempt = self.rng.randrange(-1, 9)
        strays: list[Any] = [
            ev.RunStarted(self.now, 1),
            ev.TimerFired(
                self.rng.choice(["deadline", f"retry:{step}:{attempt}", f"undo:{step}:{attempt}", ""]), self.now
            ),
        ]
        if ("perform", step, attempt) not in self.work:
            strays.append(ev.StepSucceeded(step, attempt, self.now, ref("x"), {"n": 9}))
            strays.append(ev.StepFailed(step, attempt, self.now, failure(Answer(ok=False, kind="budget"))))
        if ("undo", step, attempt) not in self.work:
            strays.append(ev.CompensationSucceeded(step, attempt, self.now))
            strays.append(ev.CompensationFailed(step, attempt, self.now, failure(Answer(ok=False, kind="permanent"))))
        if step not in {name for _, name in self.reviews}:
            strays.append(ev.ReviewDecided(step, self.now, self.rng.random() < 0.5, ref("x")))
        if self.state.ending is not None or self.state.over:
            strays.append(ev.CancelRequested(self.now, "again"))
        return [stray for stray in strays if getattr(stray, "timer", None) not in self.state.timers]

    # -- afterwards --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The end result against the oracle's, and what must hold of any run."""
        state, oracle = self.state, self.oracle
        assert [(one.step, one.attempt) for one in self.commands if isinstance(one, ev.Perform)] == oracle.performed
        statuses = {name: step.status for name, step in state.steps.items()}
        undone = [event.step for event in self.journal if isinstance(event, ev.CompensationSucceeded)]
        assert undone == oracle.undone
        assert {name for name, status in statuses.items() if status is StepStatus.UNDONE} == set(oracle.undone)
        assert {name for name, status in statuses.items() if status is StepStatus.UNDO_FAILED} == set(oracle.stuck)
        finished = {StepStatus.SUCCEEDED, StepStatus.UNDONE, StepStatus.UNDO_FAILED}
        work = {step["id"] for step in self.scenario.work} | set(self.scenario.reviews)
        assert {name for name in work if statuses.get(name) in finished} == oracle.succeeded
        assert list(state.completed) == oracle.completed
        if state.status in {ev.RunStatus.FAILED, ev.RunStatus.CANCELLED}:
            assert undone == oracle.completed[::-1]
        assert sum(isinstance(one, ev.Finish) for one in self.commands) == 1
        assert pending(state) == []
        assert state.timers == {}
        self._nothing_is_left_in_doubt()
        spent = [event.spent for event in self.journal if isinstance(event, ev.StepSucceeded | ev.StepFailed)]
        assert state.spent.usd == sum(one.usd for one in spent)
        assert state.spent.input_tokens == sum(one.input_tokens for one in spent)

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


def _wait_of_timer(key: str) -> Wait:
    kind, step, attempt = key.split(":") if ":" in key else (key, "", "0")
    return ({"retry": "retry", "undo": "undo_retry", "deadline": "deadline"}[kind], step, int(attempt))


def _wait_of(command: Any) -> Wait:
    if isinstance(command, ev.StartTimer):
        return _wait_of_timer(command.timer)
    return ("perform" if isinstance(command, ev.Perform) else "undo", command.step, command.attempt)
