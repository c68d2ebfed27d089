"""From rows to a run: what every engine does when it takes one up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Any

from interlock.base.errors import Erased, IntegrityError
from interlock.base.refs import Ref
from interlock.budget.reservations import BudgetLimit, Reservations, RunBudget
from interlock.definitions.versions import Version, Versions
from interlock.execution.engine import EngineServices
from interlock.execution.run import Run, StepExecution
from interlock.identity.principal import Principal
from interlock.machine.events import Event, event_from_json
from interlock.machine.machine import fold
from interlock.machine.program import Program
from interlock.machine.state import RunState
from interlock.store.artifacts import Artifacts
from interlock.store.database import Database, Row
from interlock.telemetry.spans import TraceIds
from interlock.workflows.facts import Facts, facts_of

JOURNAL_PAGE = 500
"""Events of a journal that are read at once."""
_SLICE = 50  # events folded before others get the event loop: some milliseconds

Page = list[dict[str, Any]]
"""Events as JSON, in order."""


async def load_run(services: EngineServices, row: Row, *, fence: int) -> Run:
    """The run of a row of the query `load_run`, with its version compiled and its input at hand if the row has it.

    Raises:
        NotFound: its version was never deployed here.
    """
    version = await services.versions.get(row["org_id"], row["workflow"], row["version"])
    run = run_of(
        row, version, services.artifacts, Reservations(services.database), fence=fence, reserved=row["reserved"]
    )
    run.policies = services.policies
    if row["lost_fence"] == fence - 1:
        run.budget.lose(fence - 1)
    if row["ciphertext"] is not None and not row["erased"]:
        with contextlib.suppress(Erased, IntegrityError):  # raised again where a step reads it
            run.remember(run.input, await services.artifacts.opened(run.org_id, run.input, row))
    return run


def run_of(
    row: Row, version: Version, artifacts: Artifacts, reservations: Reservations, *, fence: int, reserved: bool = False
) -> Run:
    """The run of a row and its version; with a fencing token that no worker holds it is for reading only.

    No policy is in force for it, so every call is refused.

    Args:
        reserved: calls of the run hold reservations.
    """
    limits = version.workflow.budget
    budget = BudgetLimit(f"run:{row['run_id']}", limits.tokens, limits.usd)
    return Run(
        run_id=row["run_id"],
        org_id=row["org_id"],
        principal=Principal.from_json(row["principal"]),
        version=version,
        trace=TraceIds(row["trace_id"], row["span_id"]),
        input=Ref.from_json(row["input"]),
        budget=RunBudget(budget, shared=version.program.concurrent or reserved, reservations=reservations),
        artifacts=artifacts,
        fence=fence,
    )


async def input_facts(run: Run) -> Facts:
    """Facts of the run's input."""
    try:
        value = await run.value(run.input)
    except Erased:
        return {}  # the first step that reads the input will end the run
    return facts_of(run.version.workflow.input, value)


async def folded(database: Database, versions: Versions, row: Row) -> tuple[Version, RunState]:
    """How the run of a row of `runs` stands: its version, and its journal folded."""
    version = await versions.get(row["org_id"], row["workflow"], row["version"])
    state = RunState()
    async for page in journal_after(database, row["run_id"], row["org_id"], 0):
        state = await fold_in_slices(version.program, map(event_from_json, page), state)
    return version, state


async def replayed(database: Database, program: Program, row: Row) -> tuple[RunState, int]:
    """The state of a run and how many events led to it; `row` is `load_run`'s."""
    state, seq = RunState(), 0
    async for page in pages_of(database, row):
        state = await fold_in_slices(program, map(event_from_json, page), state)
        seq += len(page)
    return state, seq


async def pages_of(database: Database, row: Row) -> AsyncIterator[Page]:
    """The whole journal of a run; `row` is `load_run`'s and brings the first page along."""
    first: Page = row["journal"]
    yield first
    if len(first) == JOURNAL_PAGE:
        async for page in journal_after(database, row["run_id"], row["org_id"], len(first)):
            yield page


async def journal_after(database: Database, run_id: str, org_id: str, seq: int) -> AsyncIterator[Page]:
    """The events of a run after a number. In pages: a long journal decoded at once would hold up the event loop."""
    while True:
        rows = await database.rows("get_journal", run_id, seq, JOURNAL_PAGE, org=org_id)
        yield [row["event"] for row in rows]
        if len(rows) < JOURNAL_PAGE:
            return
        seq = rows[-1]["seq"]


async def fold_in_slices(program: Program, events: Iterable[Event], state: RunState) -> RunState:
    """The state after some events more. Others get the event loop in between: leases are renewed, requests answered."""
    rest = iter(events)
    while part := list(islice(rest, _SLICE)):
        state = fold(program, part, state)
        await asyncio.sleep(0)
    return state


async def journal_of(database: Database, row: Row) -> list[Event]:
    """The events of the run of a row of `runs`, in order."""
    return [
        event_from_json(event)
        async for page in journal_after(database, row["run_id"], row["org_id"], 0)
        for event in page
    ]


def seed_of(run_id: str) -> int:
    """Seed of the machine's jitter: 48 bits, the same on every engine."""
    return int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=6).digest())


def work_of(run: Run, state: RunState, name: str, attempt: int) -> StepExecution:
    """The execution that the machine commanded for this step and attempt."""
    program, step = run.version.program, state.steps[name]
    return StepExecution(
        run,
        name,
        program.work(name, step.variant, step.tool),
        attempt,
        state,
        program.fallback(name, step.variant),
    )
