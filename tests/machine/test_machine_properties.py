"""The machine against the oracle, over random programs, outcomes, orders, duplicates, crashes, cancellations and deadlines.

What each event is checked for is in `World.apply` and `World.agree`; what each run is checked for, in `World.check`.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.engines.simulator.driver import SimulatedRun, simulate
from interlock.machine import events as ev
from interlock.machine.machine import advance
from interlock.machine.program import Program
from interlock.machine.state import RunState, state_from_json, state_to_json
from interlock.machine.version import MACHINE_VERSION

from .mangled import all_kinds, any_event
from .oracle import Answer, Oracle
from .programs import Scenario, key_of, random_scenario, scenarios
from .rules import counted, moves_within_the_rules
from .world import World, failure, outcome, plain, ref, wait_of_timer


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@examples(250)
@given(scenario=scenarios(), order=st.integers(0, 2**32))
def test_any_run_goes_as_the_oracle_says(scenario: Scenario, order: int) -> None:
    World(scenario, random.Random(order)).run().check()


def test_many_runs_go_as_the_oracle_says() -> None:
    """The same in bulk. The counts show that the scenarios reach what they are there to reach."""
    reached: Counter[str] = Counter()
    for seed in range(1500):
        rng = random.Random(seed)
        world = World(random_scenario(rng), rng)
        world.run().check()
        reached[world.state.status] += 1
        reached["undone in order"] += len(world.oracle.undone) > 1
        reached["undone, and the run went on"] += bool(world.oracle.undone and world.oracle.ending == "finished")
        reached.update({type(event).__name__ for event in world.journal})
        reached.update(
            {f"timer {event.timer.split(':')[0]}" for event in world.journal if isinstance(event, ev.TimerFired)}
        )
        reached.update({type(one).__name__ + getattr(one, "purpose", "") for one in world.commands})
        reached.update(
            {f"a {world.program.node(name).step.kind} {step.status}" for name, step in world.state.steps.items()}
        )
        reached["a fallback"] += any(step.variant > 0 for step in world.state.steps.values())
        reached["two bodies deep"] += any(name.count("#") >= 2 for name in world.state.steps)
        reached["a kept signal"] += any(world.state.signals.values())
    wanted = [
        *ev.TERMINAL,
        "undone in order",
        "undone, and the run went on",
        "a fallback",
        "two bodies deep",
        "a kept signal",
    ]
    wanted += [one.__name__ for one in all_kinds()]
    wanted += [f"timer {kind}" for kind in ("retry", "compensate", "defer", "wait", "limit", "deadline")]
    wanted += [
        "OpenReviewapprove",
        "OpenReviewapprove_act",
        "OpenReviewconfirm",
        "CloseReview",
        "OpenDeadLetterstep",
        "OpenDeadLettercompensation",
        "CloseDeadLetter",
    ]
    containers = ("parallel", "branch", "map", "loop", "subworkflow", "agent")
    wanted += [f"a {kind} {how}" for kind in containers for how in ("succeeded", "failed")]
    assert {name: reached[name] for name in wanted if reached[name] < 12} == {}


@examples(40)
@given(scenario=scenarios(), orders=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)))
def test_crashes_and_duplicates_change_nothing(scenario: Scenario, orders: tuple[int, int]) -> None:
    """One order of answers, with and without crashes: the same journal, the same state, the same effects."""

    class Calm(World):
        def disturb(self) -> None: ...

    class Replayed(Calm):
        """Takes the answers in the order recorded: its choices and its clock are the recording's events."""

        def run(self) -> World:
            for event in stormy.journal:
                self.apply(event)
            return self

    stormy = World(scenario, random.Random(orders[0]))
    stormy.run()
    calm = Replayed(scenario, random.Random(orders[1]), crashes=False)
    calm.run()
    assert calm.state == stormy.state
    assert calm.commands == stormy.commands


def _bears(program: Program, state: RunState, event: Any) -> RunState:
    """Refused, with the very same state and no commands, or taken by the rules."""
    looked = repr(state)
    after, commands = advance(program, state, event)
    assert repr(state) == looked
    if after is state:
        assert commands == []
        return state
    assert not state.over or state.status is ev.RunStatus.DEAD
    moves_within_the_rules(program, state, after, commands)
    counted(program, after)
    return after


@examples(60)
@given(scenario=scenarios(), seed=st.integers(0, 2**32))
def test_any_event_in_any_state(scenario: Scenario, seed: int) -> None:
    """Total: whatever comes, and whatever came of what came before."""
    rng, program = random.Random(seed), scenario.program()
    state = advance(program, RunState(), ev.RunStarted(0.0, 1, scenario.facts, MACHINE_VERSION))[0]
    for _ in range(40):
        event = any_event(rng, program, state)
        state = _bears(program, state, event)
        assert ev.event_from_json(ev.event_to_json(event)) == event
        assert state_from_json(state_to_json(state)) == state


def test_any_event_in_every_state_a_run_comes_to() -> None:
    class Poked(World):
        def disturb(self) -> None:
            for _ in range(5):
                _bears(self.program, self.state, any_event(self.rng, self.program, self.state))

    for seed in range(300):
        rng = random.Random(seed)
        Poked(random_scenario(rng), rng, crashes=False).run().check()


def test_every_kind_of_event_was_tried() -> None:
    assert all_kinds() == set(get_args(get_args(ev.Event)[0]))


def _simulated(scenario: Scenario) -> SimulatedRun:
    signalled: Counter[tuple[str, str]] = Counter()
    asked: dict[str, str] = {}

    def next_answer(script: dict[str, list[Answer]], what: str, step: str, default: Answer) -> Answer:
        key = key_of(step)
        signalled[what, key] += 1
        answers = script.get(key, [])
        return answers[signalled[what, key] - 1] if signalled[what, key] <= len(answers) else default

    def decided_at(step: str, now: float) -> float:
        """Time stands still while work is answered, and two decisions about one step are not of the same moment."""
        return now + 0.001 * (signalled["approve_act", key_of(step)] + signalled["confirm", key_of(step)])

    def answer(command: ev.Command, now: float) -> Any:
        match command:
            case ev.Perform(step, attempt):
                default = scenario.defaults.get(key_of(step), Answer())
                event = outcome(next_answer(scenario.outcomes, "perform", step, default), step, attempt, now)
                asked[step] = getattr(event, "digest", "")
                return event
            case ev.Compensate(step, attempt):
                one = next_answer(scenario.undos, "undo", step, Answer())
                if one.ok:
                    return ev.CompensationSucceeded(step, attempt, now, now)
                return ev.CompensationFailed(step, attempt, now, now, failure(one))
            case ev.OpenReview(step, "confirm"):
                one = next_answer(scenario.confirms, "confirm", step, Answer())
                return ev.ReviewDecided(step, decided_at(step, now), one.ok, ref(step), one.facts)
            case ev.OpenReview(step, "approve_act"):
                one = next_answer(scenario.approvals, "approve_act", step, Answer())
                return ev.ReviewDecided(step, decided_at(step, now), one.ok, ref(step), digest=asked[step])
            case ev.OpenReview(step, _):
                return ev.ReviewDecided(step, now, scenario.reviews[key_of(step)], ref(step))
            case ev.OpenDeadLetter(step, _):
                one = next_answer(scenario.dead_letters, "dead_letter", step, Answer(ok=False))
                return ev.DeadLetterRequeued(step, now) if one.ok else ev.DeadLetterDiscarded(step, now)
            case _:
                return None

    return simulate(scenario.program(), answer, seed=3, facts=scenario.facts)


def _told(oracle: Oracle, event: Any) -> None:
    """Gives the oracle the answer that an event stands for."""
    match event:
        case ev.StepSucceeded(step, attempt):
            oracle.answer(("perform", step, attempt), Answer(facts=event.facts, calls=event.calls))
        case ev.StepFailed(step, attempt):
            kind, ambiguous = event.failure.kind.value, event.failure.ambiguous
            oracle.answer(("perform", step, attempt), Answer(False, kind, ambiguous))
        case ev.ApprovalNeeded(step, attempt):
            oracle.answer(("perform", step, attempt), Answer(False, "unapproved"))
        case ev.StepDeferred(step, attempt):
            oracle.answer(("perform", step, attempt), Answer(False, "deferred"))
        case ev.ReviewDecided(step):
            wait = next(
                one for one in oracle.waiting if one[0] in {"approve", "approve_act", "confirm"} and one[1] == step
            )
            oracle.answer(wait, Answer(event.approved, facts=event.facts))
        case ev.DeadLetterRequeued(step) | ev.DeadLetterDiscarded(step):
            wait = next(
                one
                for one in oracle.waiting
                if one[0] in {"dead_letter", "compensation_dead_letter"} and one[1] == step
            )
            oracle.answer(wait, Answer(isinstance(event, ev.DeadLetterRequeued)))
        case ev.CompensationSucceeded(step, attempt):
            oracle.answer(("undo", step, attempt), Answer())
        case ev.CompensationFailed(step, attempt):
            oracle.answer(("undo", step, attempt), Answer(False, event.failure.kind.value))
        case ev.TimerFired(timer):
            wanted = wait_of_timer(timer)
            wait = next(one for one in oracle.waiting if (plain(one[0]), *one[1:]) == wanted)
            oracle.answer(wait, Answer())


@examples(150)
@given(scenario=scenarios())
def test_the_simulator_runs_to_the_same_end(scenario: Scenario) -> None:
    """Fed with the answers in the simulator's order, the oracle comes to the simulator's result."""
    trail = _simulated(scenario)
    oracle = scenario.oracle()
    at = 0.0
    for event in trail.events[1:]:
        _told(oracle, event)
        if isinstance(event, ev.TimerFired):
            due = max(one.due for one in trail.commands if isinstance(one, ev.StartTimer) and one.timer == event.timer)
            assert event.at >= due
        assert event.at >= at - 0.01
        at = event.at
    assert oracle.status == (trail.state.status if trail.state.over else None)
    performed = [(one.step, one.attempt) for one in trail.commands if isinstance(one, ev.Perform)]
    assert Counter(oracle.performed) == Counter(performed)
    assert _simulated(scenario) == trail
