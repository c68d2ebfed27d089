"""From rows to a run: what every engine does when it takes one up."""

from __future__ import annotations

import hashlib
from typing import Any

from interlock.base.errors import Erased
from interlock.base.refs import Ref
from interlock.budget.ledger import RunLedger
from interlock.definitions.versions import Version, Versions
from interlock.execution.engine import Services
from interlock.execution.steps import Run, StepExecution
from interlock.identity.principal import Principal
from interlock.machine.events import event_from_json
from interlock.machine.machine import fold
from interlock.machine.state import RunState
from interlock.store.artifacts import Artifacts
from interlock.store.database import Database, Row
from interlock.telemetry.spans import TraceIds
from interlock.workflows.facts import Facts, facts_of


async def load_run(services: Services, row: Row, *, fence: int) -> Run:
    """The run of a row of `runs`, with its version compiled.

    Raises:
        NotFound: its version was never deployed here.
    """
    version = await services.versions.get(row["org_id"], row["workflow"], row["version"])
    return run_of(row, version, services.artifacts, fence=fence)


def run_of(row: Row, version: Version, artifacts: Artifacts, *, fence: int) -> Run:
    """The run of a row and its version; with a fence that nobody holds it is good for reading only."""
    budget = version.workflow.budget
    return Run(
        run_id=row["run_id"],
        org_id=row["org_id"],
        principal=Principal.from_json(row["principal"]),
        version=version,
        trace=TraceIds(row["trace_id"], row["span_id"]),
        input=Ref.from_json(row["input"]),
        ledger=RunLedger(tokens=budget.tokens, cost=budget.usd),
        artifacts=artifacts,
        fence=fence,
    )


async def input_facts(run: Run) -> Facts:
    """What control flow may see of the run's input."""
    try:
        value = await run.value(run.input)
    except Erased:
        return {}  # the first step that reads the input will end the run
    return facts_of(run.version.workflow.input, value)


async def folded(database: Database, versions: Versions, row: Row) -> tuple[Version, RunState]:
    """How the run of a row of `runs` stands: its version, and its journal folded."""
    version = await versions.get(row["org_id"], row["workflow"], row["version"])
    return version, fold(version.program, await journal_of(database, row))


async def journal_of(database: Database, row: Row) -> list[Any]:
    """The events of the run of a row of `runs`, in order."""
    journal = await database.rows("get_journal", row["run_id"], 0, org=row["org_id"])
    return [event_from_json(entry["event"]) for entry in journal]


def seed_of(run_id: str) -> int:
    """What the machine's jitter derives from: 48 bits, the same on every engine."""
    return int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=6).digest())


def work_of(run: Run, state: RunState, name: str, attempt: int) -> StepExecution:
    """What the machine commanded when it named this step and attempt."""
    program, step = run.version.program, state.steps[name]
    return StepExecution(
        run,
        name,
        program.work(name, step.variant, step.tool),
        attempt,
        state,
        program.fallback(name, step.variant),
    )
