"""Every fault alone: it really strikes while work is under way, and nothing is lost or doubled."""

from __future__ import annotations

import pytest

from chaos.conftest import Run, clean, struck
from interlock.chaos.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_alone(fault: str, drill: Run) -> None:
    report = await struck(drill, runs=14, seconds=4, faults=(fault,))
    clean(report)
    assert report.strikes[fault] >= 1
    assert report.hits[fault] >= 1


async def test_exported_settings_are_for_other_installations(drill: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo tells its readers to export INTERLOCK_DATA_DIR, where another master key lies."""
    monkeypatch.setenv("INTERLOCK_DATA_DIR", "/nonexistent/exported")
    monkeypatch.setenv("INTERLOCK_MODELS", '{"default": "openai:none"}')
    clean(await struck(drill, runs=6, seconds=2, faults=("kill",)))


async def test_a_worker_that_never_gets_to_the_boundary_is_not_struck(drill: Run) -> None:
    """No tool is in doubt, so nobody probes: the fault was asked for and did not come about, and the report says so."""
    report = await drill(runs=4, seconds=3, faults=("kill",), boundaries=("after probe",), kinds=("keyed",))
    assert report.strikes == {"kill": 0}
    assert report.missing == ["kill"]
    assert report.exit_code != 0
    assert report.violations == []


async def test_a_tool_that_lies_about_its_keys_is_caught(drill: Run) -> None:
    """The control: the work happens twice, the system believes that it happened once, and the counter knows better."""
    report = await struck(drill, runs=6, seconds=4, faults=("timeout",), kinds=("keyed",), lying=True)
    assert report.strikes["timeout"] >= 1
    assert report.duplicate_effects >= 1
    assert report.exit_code != 0
    assert any("/pay happened " in violation for violation in report.violations), report.violations
