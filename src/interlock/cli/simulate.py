"""simulate: random programs with random faults, in memory, thousands per second."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Annotated

import typer
from rich.table import Column, Table

from interlock.cli.console import AsJson, out, print_json
from interlock.engines.simulator.simulation import Simulated, simulate_program
from interlock.machine.events import event_to_json


def register(cli: typer.Typer) -> None:
    cli.command("simulate")(simulate)


def simulate(
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first program; the next program has the next seed.")
    ] = 0,
    programs: Annotated[int, typer.Option(min=1, help="How many.")] = 2000,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Run for this time instead of a number of programs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run random workflows with random faults and check the invariants of the state machine.

    Nothing is stored, and there are no effects outside. A failing seed fails again on every host.
    """
    started = time.perf_counter()
    faults: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    done = events = 0
    while done < programs if seconds is None else time.perf_counter() - started < seconds or not done:
        simulated = simulate_program(seed + done)
        if simulated.problem is not None:
            _show(simulated, as_json=as_json)
            raise typer.Exit(1)
        done += 1
        events += len(simulated.journal)
        faults += simulated.faults
        endings[simulated.state.status] += 1
    took = time.perf_counter() - started
    if as_json:
        print_json({"programs": done, "events": events, "seconds": took, "endings": endings, "faults": faults})
        return
    out.print(f"{done} programs, {events} events, {took:.1f} s: {done / took:.0f} programs/s. All invariants hold.")
    out.print(", ".join(f"{count} {status}" for status, count in sorted(endings.items())))
    table = Table(Column("fault"), Column("times", justify="right"), box=None)
    for name, count in sorted(faults.items()):
        table.add_row(name, str(count))
    out.print(table)


def _show(simulated: Simulated, *, as_json: bool) -> None:
    if as_json:
        print_json({"seed": simulated.seed, "problem": simulated.problem})
        return
    out.print(f"seed {simulated.seed}: {simulated.problem}", style="red", soft_wrap=True)
    workflow = simulated.program.workflow.model_dump(mode="json", exclude_defaults=True, warnings=False)
    out.print(f"workflow: {json.dumps(workflow)}", soft_wrap=True)
    for name, child in sorted({one.name: one for one in simulated.program.subworkflows.values()}.items()):
        dumped = child.model_dump(mode="json", exclude_defaults=True, warnings=False)
        out.print(f"subworkflow {name}: {json.dumps(dumped)}", soft_wrap=True)
    for number, event in enumerate(simulated.journal, start=1):
        out.print(f"{number:>4} {json.dumps(event_to_json(event))}", soft_wrap=True)
    out.print(f"Repeat with: interlock simulate --seed {simulated.seed} --programs 1")
