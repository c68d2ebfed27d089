"""Writes the journals that the present machine version must fold to the same states for ever.

    .venv/bin/python tests/machine/make_journals.py

Of every conformance scenario and of 1,000 random programs under faults, both driven in memory. Once a version is released its
file is never written again; until then, after a change of events or behaviour that is meant.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engines.conformance.scenario import read_scenarios
from engines.conformance.simulated import Simulated
from engines.conformance.world import compile_versions, write_project
from interlock.engines.simulator.simulation import simulate_program
from interlock.machine.program import Program
from interlock.machine.state import RunState
from interlock.machine.version import MACHINE_VERSION
from machine.kept_journals import write

PROGRAMS = 1000


def journals() -> Iterator[tuple[str, Program, list[Any], RunState]]:
    scenarios = read_scenarios()
    with tempfile.TemporaryDirectory(prefix="interlock-journals-") as place:
        versions = compile_versions(write_project(Path(place) / "project", scenarios))
    for scenario in scenarios:
        simulated = Simulated(scenario, versions[scenario.workflow_name].program)
        simulated.play()
        yield f"scenario {scenario.id}", simulated.trail.program, simulated.trail.events, simulated.state
    for seed in range(PROGRAMS):
        run = simulate_program(seed)
        assert run.problem is None, f"seed {seed}: {run.problem}"
        yield f"program {seed}", run.program, run.journal, run.state


if __name__ == "__main__":
    file = write(MACHINE_VERSION, journals())
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
