"""The first driver: the in-memory one (`runtime.simulator`). Time is virtual: a timer fires when the script says so.

It is also the judge of the scripts. A line that does not fit what the machine waits for fails, and so does one that would
depend on the speed of a machine: while a short timer runs, nothing but that timer may come next.
"""

from __future__ import annotations

from typing import Any

from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.engines.simulator.driver import SimulatedRun
from interlock.machine import events as ev
from interlock.machine.program import Program
from interlock.machine.state import RunState
from interlock.machine.version import MACHINE_VERSION
from interlock.workflows.facts import facts_of

from .scenario import OUTCOMES, TOLD_TYPES, Entry, Record, Scenario, normalised, outcome_event, told_event

SHORT = 60.0
"""Seconds. A timer that is due sooner fires during the test; one that is due later does not."""

_SEED = 7


class Simulated:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario, program: Program) -> None:
        self.scenario = scenario
        self.trail = SimulatedRun(program)
        self.now = 1.8e9  # the year 2027, in seconds since the epoch
        self.works: list[str] = []
        self.statuses = {self.state.status}
        self._under_way: dict[tuple[str, str], int] = {}
        self._people: dict[str, list[list[str]]] = {"reviews": [], "dead_letters": []}

    @property
    def state(self) -> RunState:
        return self.trail.state

    def play(self) -> Record:
        for entry in self.scenario.before:
            self._enter(entry)
        facts = facts_of(self.trail.program.workflow.input, self.scenario.given)
        self._apply(ev.RunStarted(self.now, _SEED, facts, MACHINE_VERSION))
        for entry in self.scenario.script:
            self._enter(entry)
        assert self.state.over, f"the script ends and the run does not: {self._where()}"
        assert not self._under_way, f"nobody answered: {self._where()}"
        return Record(
            [normalised(ev.event_to_json(event)) for event in self.trail.events],
            self.state.status.value,
            self.state.reason,
            sorted(self.works),
            **{kind: [" ".join(row) for row in rows] for kind, rows in self._people.items()},
        )

    def _where(self) -> str:
        return f"status {self.state.status}, under way {self._under_way}, timers {dict(self.state.timers)}"

    # -- the script ------------------------------------------------------------------------------------------------

    def _enter(self, entry: Entry) -> None:
        self.now += 0.001
        if entry.verb == "timer":
            self._fire(str(entry.target))
            return
        racing = [key for key, due in self.state.timers.items() if due - self.now < SHORT]
        assert not racing, f"{entry}: {racing} may fire before or after it; put the timer first or make it long"
        if entry.verb == "expect":
            self._expect(entry.target)
            return
        event = self._outcome(entry) if entry.verb in OUTCOMES else self._telling(entry)
        taken = self._apply(event)
        assert taken is not entry.ignored, f"{entry}: the machine {'took' if taken else 'ignored'} it: {self._where()}"

    def _outcome(self, entry: Entry) -> Any:
        key = (
            "compensate" if entry.verb.startswith("undo") or entry.verb == "undone" else "perform",
            str(entry.target),
        )
        assert key in self._under_way, f"{entry}: nobody does that: {self._where()}"
        attempt = self._under_way.pop(key)
        wanted = entry.options.get("attempt", attempt)
        assert attempt == wanted, f"{entry}: attempt {attempt} is under way, not {wanted}"
        return outcome_event(entry, attempt, self.now, self.now, _ref(), f"{entry.target}/{attempt}")

    def _telling(self, entry: Entry) -> Any:
        if entry.verb == "again":
            return next(event for event in reversed(self.trail.events) if event.type in TOLD_TYPES)
        step = self.state.steps.get(str(entry.target))
        digest = step.request.digest if step is not None and step.request is not None else ""
        return told_event(entry, self.now, lambda _: _ref(), digest)

    def _fire(self, key: str) -> None:
        timers = self.state.timers
        assert key in timers, f"timer {key} does not run: {self._where()}"
        sooner = [one for one, due in timers.items() if one != key and due - timers[key] < SHORT]
        assert not sooner, f"timers {[key, *sooner]} may fire in any order"
        assert timers[key] - self.now < SHORT, f"timer {key} is too long for a test"
        self.now = max(self.now, timers[key])
        self._apply(ev.TimerFired(key, self.now))

    def _expect(self, wanted: dict[str, Any]) -> None:
        rows = {kind: [" ".join(row) for row in self._people[kind]] for kind in self._people}
        under_way = sorted(step for _, step in self._under_way)
        found = {"status": self.state.status.value, "under_way": under_way, **rows}
        assert {name: found[name] for name in wanted} == wanted

    # -- the machine -----------------------------------------------------------------------------------------------

    def _apply(self, event: Any) -> bool:
        commands = self.trail.tell(event)
        if commands is None:
            return False
        self.statuses.add(self.state.status)
        match event:  # the door moves these rows together with what it tells the run
            case ev.ReviewDecided():
                self._settle("reviews", event.step, "approved" if event.approved else "rejected")
            case ev.DeadLetterRequeued() | ev.DeadLetterDiscarded():
                self._settle("dead_letters", event.step, event.type.removeprefix("dead_letter_"))
        for command in commands:
            self._carry_out(command)
        return True

    def _carry_out(self, command: ev.Command) -> None:
        match command:
            case ev.Perform() | ev.Compensate():
                kind = "perform" if isinstance(command, ev.Perform) else "compensate"
                self._under_way[kind, command.step] = command.attempt
                self.works.append(f"{kind} {command.step} {command.attempt}")
            case ev.OpenReview():
                self._people["reviews"].append([command.step, command.purpose, "open"])
            case ev.CloseReview():
                self._settle("reviews", command.step, "closed")
            case ev.OpenDeadLetter():
                self._people["dead_letters"].append([command.step, command.purpose, "open"])
            case ev.CloseDeadLetter():
                self._settle("dead_letters", command.step, "closed")

    def _settle(self, kind: str, step: str, status: str) -> None:
        for row in self._people[kind]:
            if row[0] == step and row[2] == "open":
                row[2] = status


def _ref() -> Ref:
    return Ref("0" * 64, 0, DEFINED)
