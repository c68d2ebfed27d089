"""Every scenario on every engine: the same journal, to the letter, and what people see of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .scenario import Record, Scenario, read_scenarios
from .simulated import Simulated

FIXTURES = {"simulator": "simulator", "postgres": "postgres", "temporal": "temporal_engine"}
SCENARIOS = read_scenarios()


def judge(scenario: Scenario, record: Record, reference: Record) -> None:
    """Fails if a record is not what the scenario says, or in any field of an event not what the machine alone made of it."""
    assert record.journal == scenario.journal
    assert record.status == scenario.status
    if scenario.reason is not None and scenario.reason.endswith("…"):
        assert (record.reason or "").startswith(scenario.reason[:-1])
    else:
        assert record.reason == scenario.reason
    assert record.reviews == scenario.reviews
    assert record.letters == scenario.letters
    assert record.events == reference.events
    assert record.works == reference.works
    if record.effects is not None and scenario.effects is not None:
        assert record.effects == scenario.effects
    if record.output is not None and scenario.output is not None:
        assert record.output == scenario.output


@pytest.mark.parametrize("engine", FIXTURES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
def test_conforms(scenario: Scenario, engine: str, request: pytest.FixtureRequest) -> None:
    reference = request.getfixturevalue("simulator")(scenario)
    record = reference if engine == "simulator" else request.getfixturevalue(FIXTURES[engine])(scenario)
    judge(scenario, record, reference)
