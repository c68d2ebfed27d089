"""Every scenario on every engine: the same journal, exactly, and what people see of it."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from interlock.base.errors import FailureKind
from interlock.definitions.versions import Version
from interlock.machine import events as ev
from interlock.machine.events import RunStatus
from interlock.workflows import spec

from .scenario import VERBS, Entry, Record, Scenario, read_scenarios
from .simulated import Simulated

FIXTURES = {"simulator": "simulator", "postgres": "postgres", "temporal": "temporal_engine"}
SCENARIOS = read_scenarios()
BY_ID = {scenario.id: scenario for scenario in SCENARIOS}

# The first test on an engine waits for all of its scenarios, however busy the machine is.
pytestmark = pytest.mark.timeout(900)

Change = Callable[[Scenario], Scenario]


def judge(scenario: Scenario, record: Record, reference: Record) -> None:
    """Fails if a record is not what the scenario says, or in any field of an event not what the machine alone made of it."""
    assert record.journal == scenario.journal
    assert record.status == scenario.status
    if scenario.reason is not None and scenario.reason.endswith("…"):
        assert (record.reason or "").startswith(scenario.reason[:-1])
    else:
        assert record.reason == scenario.reason
    assert record.reviews == scenario.reviews
    assert record.dead_letters == scenario.dead_letters
    assert record.events == reference.events
    assert record.works == reference.works
    if record.effects is not None and scenario.effects is not None:
        assert record.effects == scenario.effects
    if record.output is not None and scenario.output is not None:
        assert record.output == scenario.output


def played(request: pytest.FixtureRequest, engine: str, scenario: Scenario) -> Record:
    record: Record = request.getfixturevalue(FIXTURES[engine])(scenario)
    return record


@pytest.mark.parametrize("engine", FIXTURES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
def test_conforms(scenario: Scenario, engine: str, request: pytest.FixtureRequest) -> None:
    judge(scenario, played(request, engine, scenario), played(request, "simulator", scenario))


# -- whether the suite is worth anything ---------------------------------------------------------------------------


def _journal(change: Callable[[list[str]], list[str]]) -> Change:
    return lambda scenario: replace(scenario, journal=change(scenario.journal))


WRONG: dict[str, tuple[str, Change]] = {
    "an_event_too_few": ("retry-then_success", _journal(lambda lines: lines[:-1])),
    "an_event_too_many": ("retry-then_success", _journal(lambda lines: [*lines, lines[-1]])),
    "another_order": ("parallel-done_when_all_are", _journal(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]])),
    "another_attempt": ("retry-exhausted", _journal(lambda lines: [line.replace("a 2", "a 3") for line in lines])),
    "another_fact": (
        "agent-answers_at_once",
        _journal(lambda lines: [line.replace("true", "false") for line in lines]),
    ),
    "another_end": ("partial-without_a_step", lambda scenario: replace(scenario, status="succeeded")),
    "another_reason": ("cancel-twice", lambda scenario: replace(scenario, reason="cancelled: second")),
    "a_question_left_open": ("cancel-while_asking", lambda scenario: replace(scenario, reviews=["ask approve open"])),
    "a_letter_forgotten": ("hold-tried_again", lambda scenario: replace(scenario, dead_letters=[])),
}


@pytest.mark.parametrize("engine", FIXTURES)
@pytest.mark.parametrize(
    ("scenario", "change"),
    [(BY_ID[name], change) for name, change in WRONG.values()],
    ids=WRONG.keys(),
)
def test_a_wrong_expectation_fails(
    scenario: Scenario, change: Change, engine: str, request: pytest.FixtureRequest
) -> None:
    record, reference = played(request, engine, scenario), played(request, "simulator", scenario)
    judge(scenario, record, reference)
    with pytest.raises(AssertionError):
        judge(change(scenario), record, reference)


@pytest.mark.parametrize("field", ["usage", "began", "works"])
def test_what_a_scenario_does_not_spell_out_is_compared_too(
    field: str, simulator: Callable[[Scenario], Record]
) -> None:
    scenario = BY_ID["partial-budget_used_up"]
    reference, record = simulator(scenario), simulator(scenario)
    if field == "began":
        record.events[-1]["began"] = False
    elif field == "usage":
        record.events[-1]["usage"] = {**record.events[-1]["usage"], "known_cost": 10_000_001}
    else:
        record.works.append("perform b 1")
    with pytest.raises(AssertionError):
        judge(scenario, record, reference)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sequence-two_in_a_row", {"succeed": "second"}),  # not under way yet
        ("sequence-two_in_a_row", {"succeed": "first", "attempt": 2}),
        ("sequence-two_in_a_row", {"timer": "retry:first:1"}),
        ("sequence-two_in_a_row", {"cancel": "a reason", "ignored": True}),
        ("review-approved", {"reject": "pay"}),
        ("wait-for_a_while", {"cancel": "a race with a short timer"}),
    ],
)
def test_a_script_that_does_not_fit_is_refused(name: str, line: dict[str, Any], versions: dict[str, Version]) -> None:
    scenario = BY_ID[name]
    wrong = replace(scenario, script=[Entry.read(line), *scenario.script])
    with pytest.raises(AssertionError):
        Simulated(wrong, versions[scenario.workflow_name].program).play()


def test_everything_is_covered(versions: dict[str, Version]) -> None:
    """Every kind of step and failure, every event, command, status and verb."""
    kinds, events, commands, statuses, failures = set(), set(), set(), set(), set()
    for scenario in SCENARIOS:
        program = versions[scenario.workflow_name].program
        run = Simulated(scenario, program)
        run.play()
        kinds |= {type(node.step) for node in program.nodes.values()}
        events |= {type(event) for event in run.trail.events}
        commands |= {type(command) for command in run.trail.commands}
        statuses |= run.statuses
        failures |= {event.failure.kind for event in run.trail.events if hasattr(event, "failure")}
    assert set(typing.get_args(typing.get_args(ev.Event)[0])) == events
    assert set(typing.get_args(ev.Command)) == commands
    assert {
        *typing.get_args(spec.WorkStep),
        *typing.get_args(spec.ContainerStep),
        spec.ReviewStep,
        spec.WaitStep,
    } == kinds
    assert set(RunStatus) == statuses
    assert set(FailureKind) == failures
    assert {entry.verb for scenario in SCENARIOS for entry in [*scenario.before, *scenario.script]} == VERBS


def test_scenarios_are_described_and_named_apart() -> None:
    assert len(SCENARIOS) >= 60
    assert len(BY_ID) == len(SCENARIOS)
    assert all(scenario.about.endswith(".") for scenario in SCENARIOS)
