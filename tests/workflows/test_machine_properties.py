"""The machine against the oracle, over random programs, outcomes, orders, duplicates, crashes, cancellations and deadlines.

What each event is checked for is in `World.apply` and `World.agree`; what each run is checked for, in `World.check`.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.base.errors import FailureKind
from interlock.runtime.simulator import Trail, simulate
from interlock.workflows import events as ev
from interlock.workflows.machine import advance
from interlock.workflows.state import RunState

from .oracle import Answer
from .programs import Scenario, random_scenario, scenarios
from .world import World, failure, ref


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@examples(250)
@given(scenario=scenarios(), order=st.integers(0, 2**32))
def test_any_run_goes_as_the_oracle_says(scenario: Scenario, order: int) -> None:
    World(scenario, random.Random(order)).run().check()


def test_many_runs_go_as_the_oracle_says() -> None:
    """The same in bulk. The counts show that the scenarios reach what they are there to reach."""
    reached: Counter[str] = Counter()
    for seed in range(2000):
        rng = random.Random(seed)
        world = World(random_scenario(rng), rng)
        world.run().check()
        reached[world.state.status] += 1
        reached["undone in order"] += len(world.oracle.undone) > 1
        reached.update(
            {"confirm" for one in world.commands if isinstance(one, ev.OpenReview) and one.purpose == "confirm"}
        )
        reached.update({event.type for event in world.journal})
        reached.update({f"timer {event.timer[:5]}" for event in world.journal if isinstance(event, ev.TimerFired)})
    wanted = [*ev.TERMINAL, "undone in order", "confirm", "cancel_requested", "compensation_failed"]
    wanted += ["timer retry", "timer undo:", "timer deadl"]
    assert {name: reached[name] for name in wanted if reached[name] < 25} == {}


@examples(40)
@given(scenario=scenarios(), orders=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)))
def test_crashes_and_duplicates_change_nothing(scenario: Scenario, orders: tuple[int, int]) -> None:
    """One order of answers, with and without crashes: the same journal, the same state, the same effects."""

    class Calm(World):
        def disturb(self) -> None: ...

    class Recorded(World):
        def answer(self, wait: Any) -> Any:
            self.waits = [*getattr(self, "waits", []), wait]
            return super().answer(wait)

    class Replayed(Calm):
        """Takes the answers in the order recorded: its choices and its clock are the recording's events."""

        def run(self) -> World:
            for event in stormy.journal:
                self.apply(event)
            return self

    stormy = Recorded(scenario, random.Random(orders[0]))
    stormy.run()
    calm = Replayed(scenario, random.Random(orders[1]), crashes=False)
    calm.run()
    assert calm.state == stormy.state
    assert calm.commands == stormy.commands


_REFS = st.just(ref("x"))
_STEPS = st.sampled_from([f"s{number}" for number in range(8)] + ["", "input", "nobody"])
_TIMERS = st.one_of(
    st.sampled_from(["deadline", "retry", "undo:", "retry:s0:1", "retry:s1:2", "undo:s0:1", "a:b:c:d"]),
    st.text(max_size=9),
)
_ATTEMPTS = st.integers(-1, 4)
_TIMES = st.floats(0, 1e6)
_FACTS = st.fixed_dictionaries({}, optional={"n": st.integers(), "flag": st.booleans(), "approved": st.booleans()})
_FAILED = st.builds(
    ev.Failure,
    st.sampled_from(FailureKind),
    st.just("code"),
    st.just("it failed"),
    st.none() | st.floats(0, 100),
    st.booleans(),
)
_EVENTS = st.one_of(
    st.builds(ev.RunStarted, _TIMES, st.integers(0, 9), _FACTS),
    st.builds(ev.StepSucceeded, _STEPS, _ATTEMPTS, _TIMES, _REFS, _FACTS),
    st.builds(ev.StepFailed, _STEPS, _ATTEMPTS, _TIMES, _FAILED),
    st.builds(ev.ReviewDecided, _STEPS, _TIMES, st.booleans(), _REFS, _FACTS),
    st.builds(ev.TimerFired, _TIMERS, _TIMES),
    st.builds(ev.CompensationSucceeded, _STEPS, _ATTEMPTS, _TIMES),
    st.builds(ev.CompensationFailed, _STEPS, _ATTEMPTS, _TIMES, _FAILED),
    st.builds(ev.CancelRequested, _TIMES, st.just("enough")),
)


@examples(150)
@given(scenario=scenarios(), events=st.lists(_EVENTS, max_size=30))
def test_any_event_in_any_state(scenario: Scenario, events: list[Any]) -> None:
    """Total: whatever comes, the machine gives a state back; the very same one if it has nothing to do with it."""
    program, state = scenario.program(), RunState()
    for event in [ev.RunStarted(0.0, 1, scenario.facts), *events]:
        looked = repr(state)
        after, commands = advance(program, state, event)
        assert repr(state) == looked
        assert after is not state or commands == []
        assert after is state or not state.over
        assert after.status in {state.status} | ev.RUN_MOVES[state.status]
        assert ev.event_from_json(ev.event_to_json(event)) == event
        state = after


def _simulated(scenario: Scenario) -> Trail:
    told: Counter[tuple[str, str]] = Counter()

    def next_answer(script: dict[str, list[Answer]], what: str, step: str) -> Answer:
        told[what, step] += 1
        answers = script.get(step, [])
        return answers[told[what, step] - 1] if told[what, step] <= len(answers) else Answer()

    def answer(command: ev.Command, now: float) -> Any:
        match command:
            case ev.Perform(step, attempt):
                one = next_answer(scenario.outcomes, "perform", step)
                if one.ok:
                    return ev.StepSucceeded(step, attempt, now, ref(step), one.facts)
                return ev.StepFailed(step, attempt, now, failure(one))
            case ev.Compensate(step, attempt):
                one = next_answer(scenario.undos, "undo", step)
                if one.ok:
                    return ev.CompensationSucceeded(step, attempt, now)
                return ev.CompensationFailed(step, attempt, now, failure(one))
            case ev.OpenReview(step, "confirm"):
                one = next_answer(scenario.confirms, "confirm", step)
                return ev.ReviewDecided(step, now + 0.001 * told["confirm", step], one.ok, ref(step), one.facts)
            case ev.OpenReview(step, _):
                return ev.ReviewDecided(step, now, scenario.reviews[step], ref(step))
            case _:
                return None

    return simulate(scenario.program(), answer, seed=3, facts=scenario.facts)


@examples(150)
@given(scenario=scenarios())
def test_the_simulator_runs_to_the_same_end(scenario: Scenario) -> None:
    """Fed with the answers in the simulator's order, the oracle comes to the simulator's result."""
    trail = _simulated(scenario)
    oracle = scenario.oracle()
    at = 0.0
    for event in trail.events[1:]:
        match event:
            case ev.StepSucceeded():
                oracle.answer(("perform", event.step, event.attempt), Answer(facts=event.facts))
            case ev.StepFailed():
                kind, ambiguous = event.failure.kind.value, event.failure.ambiguous
                oracle.answer(("perform", event.step, event.attempt), Answer(False, kind, ambiguous))
            case ev.ReviewDecided():
                wait = next(one for one in oracle.waiting if one[0] in {"approve", "confirm"} and one[1] == event.step)
                oracle.answer(wait, Answer(event.approved, facts=event.facts))
            case ev.CompensationSucceeded():
                oracle.answer(("undo", event.step, event.attempt), Answer())
            case ev.CompensationFailed():
                oracle.answer(("undo", event.step, event.attempt), Answer(False, event.failure.kind.value))
            case ev.TimerFired():
                kind, step, attempt = [*event.timer.split(":"), "", "0"][:3]
                oracle.answer(({"undo": "undo_retry"}.get(kind, kind), step, int(attempt)), Answer())
                due = max(
                    one.due for one in trail.commands if isinstance(one, ev.StartTimer) and one.timer == event.timer
                )
                assert event.at >= due
        assert event.at >= at - 0.01
        at = event.at
    assert oracle.status == trail.state.status
    assert oracle.performed == [(one.step, one.attempt) for one in trail.commands if isinstance(one, ev.Perform)]
    assert _simulated(scenario) == trail
