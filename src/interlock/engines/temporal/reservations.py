"""A run's budget where activities of one run work in several processes: what each has set aside stands with its claim.

The ledger of a process knows the calls of that process only. So a call of a run with a budget reserves a second time, in
PostgreSQL, where all of the run's claims are counted under one lock; until the run's row says what it used, its claim does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from interlock.base.errors import LeaseLost
from interlock.base.usage import Usage
from interlock.budget.ledger import NOTHING, Amount, RunLedger
from interlock.execution.steps import Run
from interlock.machine import events as ev
from interlock.machine.names import CommandKey, CommandKind
from interlock.store.commit import LEASE_LOST
from interlock.store.database import Database
from interlock.store.rows import SettledClaim
from interlock.workflows.spec import (
    BranchStep,
    LoopStep,
    ModelStep,
    ReviewStep,
    SubworkflowStep,
    ToolStep,
    WaitStep,
)

# Steps that begin no two others at once. All else may.
_ONE_BY_ONE = (ModelStep, ToolStep, ReviewStep, WaitStep, BranchStep, LoopStep, SubworkflowStep)


def reserving(database: Database, run: Run) -> Callable[[Amount], Awaitable[None]] | None:
    """Sets tokens and nano-USD aside for the claim of `run`; None for a run without a budget, or whose steps come one by one.

    The function raises BudgetExceeded if its run has not as much left, LeaseLost if another process holds the claim.
    """
    if not _shared(run):
        return None
    budget = run.version.workflow.budget

    async def set_aside(wanted: Amount) -> None:
        if wanted == NOTHING:
            return
        values = (run.run_id, run.claim, run.fence, wanted.tokens, wanted.cost, budget.tokens, budget.usd)
        try:
            row = await database.row("reserve_claim", *values, org=run.org_id)
        except asyncpg.PostgresError as error:
            if error.sqlstate != LEASE_LOST:
                raise
            raise LeaseLost("the claim of this step went to another attempt") from error
        assert row is not None, "a function without a set gives one row"
        if not row["fits"]:
            # The sentence is the ledger's.
            ledger = RunLedger(tokens=budget.tokens, cost=budget.usd)
            ledger.reserve("", Amount(row["used_tokens"], row["used_nano_usd"]), wanted)

    return set_aside


def used_of(run: Run, event: Any) -> tuple[int, int] | tuple[None, None]:
    """Tokens and nano-USD that a finished claim still counts for; None if nothing was reserved."""
    if run.set_aside is None or not isinstance(event, ev.StepSucceeded | ev.StepFailed):
        return None, None
    used = Amount.of(event.usage or Usage())
    return used.tokens, used.cost


def settled_claims(run: Run, events: list[Any]) -> list[SettledClaim]:
    """The claims whose outcomes are among these events; they count no more once the run's row has them."""
    if not _shared(run):
        return []
    ended = [event for event in events if isinstance(event, ev.StepSucceeded | ev.StepFailed)]
    keys = [CommandKey(CommandKind.PERFORM, event.step, event.attempt) for event in ended]
    return [SettledClaim(run_id=run.run_id, command=str(key)) for key in keys]


def _shared(run: Run) -> bool:
    """True if two calls of the run may reserve at once."""
    budget = run.version.workflow.budget
    if budget.tokens is None and budget.usd is None:
        return False
    return not all(isinstance(node.step, _ONE_BY_ONE) for node in run.version.program.nodes.values())
