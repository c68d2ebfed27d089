"""chaos: fault injection into a deployment, checked by a counter outside it."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from interlock.base.errors import InvalidInput, Unavailable
from interlock.chaos.drill import ChaosPlan, Drill
from interlock.chaos.faults import FAULTS
from interlock.chaos.report import OK
from interlock.cli.connection import settings_here
from interlock.cli.console import AsJson, errors, out, print_json
from interlock.sandbox.check import probe_sandbox
from interlock.telemetry import logs


def register(cli: typer.Typer) -> None:
    cli.command("chaos")(chaos)


def chaos(
    runs: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of runs to start while faults are injected.")
    ] = 200,
    workers: Annotated[int, typer.Option(min=1, max=32, help="Worker processes.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds of faults; the time to finish is additional.")
    ] = 120,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of faults; random if not given.")] = None,
    faults: Annotated[str, typer.Option(help=f"Some of {','.join(FAULTS)}.")] = ",".join(FAULTS),
    database: Annotated[
        str | None, typer.Option(help="Database to use instead of database.url of the settings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Inject faults while runs are in progress, and compare the effects with a counter outside."""
    chosen = _faults(faults)
    problems = asyncio.run(probe_sandbox())
    if problems:
        raise Unavailable(" ".join(problems))
    settings = settings_here()
    url = database or settings.database.url
    seed = secrets.randbelow(10**6) if seed is None else seed
    home = Path(tempfile.mkdtemp(prefix="il-chaos-"))
    logs.configure(level="error", file=home / "driver.jsonl")
    plan = ChaosPlan(
        home=home,
        runs=runs,
        workers=workers,
        seconds=seconds,
        seed=seed,
        faults=chosen,
        url=url,
        data_dir=settings.data_dir if url else None,
    )
    where = "the deployment's database" if url else "a private PostgreSQL"
    errors.print(f"{runs} runs, {workers} workers, {seconds:g} s of faults, seed {seed}, on {where}")
    try:
        report = asyncio.run(Drill(plan, lambda line: errors.print(line, style="dim")).run())
    except KeyboardInterrupt:
        shutil.rmtree(home, ignore_errors=True)
        raise
    if as_json:
        print_json(report.to_json())
    else:
        out.print(report.table())
    if report.exit_code == OK:
        shutil.rmtree(home, ignore_errors=True)
        return
    errors.print(f"logs, counter and database of this run are in {home}")
    raise typer.Exit(report.exit_code)


def _faults(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in chosen:
        if name not in FAULTS:
            raise InvalidInput(f'--faults: "{name}" is not a fault; choose from {",".join(FAULTS)}')
    if not chosen:
        raise InvalidInput(f"--faults: name at least one of {','.join(FAULTS)}")
    return chosen
