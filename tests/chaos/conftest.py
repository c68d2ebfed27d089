from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.chaos.drill import ChaosPlan, Drill
from interlock.chaos.report import ChaosReport

Run = Callable[..., Awaitable[ChaosReport]]


@pytest.fixture
def drill(short_directory: Path) -> Run:
    """Carries out a plan with these fields; what it tells on the way is shown when a test fails."""

    numbers = itertools.count()

    async def run(**fields: Any) -> ChaosReport:
        home = short_directory / str(next(numbers))
        home.mkdir()
        plan = ChaosPlan(**{"home": home, "workers": 2, "seed": 1, "least": 1, **fields})
        return await Drill(plan, print).run()

    return run


async def struck(drill: Run, **fields: Any) -> ChaosReport:
    """A report in which every fault struck. On a busy machine the time may pass without one; that says nothing, and is repeated."""
    for seed in range(1, 6):
        report = await drill(seed=seed, **fields)
        if not report.missing or report.violations:
            break
    return report


def clean(report: ChaosReport) -> None:
    """Fails with the whole report if anything in it is wrong."""
    assert report.exit_code == 0, report.to_json()
    assert (report.duplicate_effects, report.lost_effects) == (0, 0)
    assert report.runs_started == report.runs_finished
    assert report.audit_entries > report.runs_started
