"""The effect ledger: what a run does to the outside world, written down before it is done.

    intended → executing → succeeded | failed | unknown → … → compensated

After a crash it is unknown whether an effect in `executing` happened. Then: the same key again if the tool
honours it, its probe if it has one, and otherwise a person. Never a guess.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from interlock.base.clock import since_boot
from interlock.base.refs import Ref
from interlock.execution.steps import StepExecution
from interlock.store.artifacts import Sealed
from interlock.store.commit import Committer
from interlock.store.database import Database
from interlock.store.entries import Entry
from interlock.store.rows import ConsumedApproval, EffectRow, EffectStatus
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import ToolStep

# Seconds a sandbox is given to start, on top of the tool's own: it takes 0.03 s, on a host in distress more than one.
_START_SECONDS = 2.0
# Seconds that a request may be on its way to the tool's far side.
_FLIGHT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Effect:
    """A mutating call: its key is the same in every attempt, because it derives from run, step and input only."""

    run_id: str
    step: str
    org_id: str
    tool: str
    idempotency_key: str
    attempt: int
    input: Ref

    def row(self, status: EffectStatus, output: Ref | None = None) -> EffectRow:
        """The ledger row in a given status."""
        return EffectRow(
            run_id=self.run_id,
            step=self.step,
            org_id=self.org_id,
            tool=self.tool,
            idempotency_key=self.idempotency_key,
            status=status,
            attempt=self.attempt,
            input=self.input.to_json(),
            output=output.to_json() if output else None,
        )


def idempotency_key(run_id: str, step: str, input_digest: str) -> str:
    """Key of a mutating call; 160 bits, derived, so a worker that takes over computes the same."""
    return hashlib.sha256(f"{run_id}\0{step}\0{input_digest}".encode()).hexdigest()[:40]


class EffectLedger:
    """Writes the ledger. Final states ride in the step's own transaction; these two go ahead of the call."""

    def __init__(self, database: Database, committer: Committer) -> None:
        self._database = database
        self._committer = committer

    async def status(self, execution: StepExecution) -> EffectStatus | None:
        """Where the effect of this step stands; None if it was never intended.

        If another worker was in the middle of this very attempt, its call may still be under way, at a worker that lost
        the run or on the network, and neither a probe nor a person could see it. So this waits until the tool's own
        deadline for that call has passed. Of an earlier attempt that has ended, only what was on its way may still arrive: the
        far side may be slow to do what its caller gave up on. Only a tool that honours its key has no need to wait.
        """
        row = await self._database.row(
            "get_effect", execution.run.run_id, execution.effect_name, org=execution.run.org_id
        )
        if row is None:
            return None
        status: EffectStatus = row["status"]
        if status == "executing" and isinstance(execution.step, ToolStep):
            contract = execution.run.version.tools[execution.step.tool].contract
            if not contract.honours_idempotency:
                left = contract.call_seconds + _START_SECONDS + _FLIGHT_SECONDS - row["age"]
                await asyncio.sleep(
                    max(0.0, left if row["attempt"] == execution.attempt else min(left, _FLIGHT_SECONDS))
                )
        return status

    async def intend(
        self,
        execution: StepExecution,
        effect: Effect,
        arguments: Sealed,
        consumed: list[ConsumedApproval] | None = None,
        audit: list[Entry] | None = None,
    ) -> None:
        """Durable before anything else happens: what will be done, with which key, and which approvals that uses up.

        Args:
            consumed: rows of `approvals.consumed_rows`; none for a call that needs no approval.

        Raises:
            LeaseLost: the run was taken over; nothing may be done.
            ApprovalInvalid: an approval is used, revoked or expired by now; nothing was written, and nothing may be done.
        """
        commit = execution.run.commit()
        commit.artifacts.append(arguments.row)
        if consumed:
            commit.consumed_approvals += consumed
            commit.audit += audit or []
        commit.effects.append(effect.row("intended"))
        await self._committer.submit(commit)

    async def executing(self, execution: StepExecution, effect: Effect) -> None:
        """Durable before the tool gets the call: from here on a crash leaves the effect in doubt.

        Raises:
            LeaseLost: the run was taken over; nothing may be done.
        """
        commit = execution.run.commit()
        commit.effects.append(effect.row("executing"))
        await self._committer.submit(commit)


def call_ends(contract: ToolContract) -> float:
    """The moment (`since_boot`) after which a call that is about to be marked as executing sends nothing any more.

    Taken before the mark, so that a worker that reads the mark and waits as `status` does cannot be overtaken by the call.
    """
    return since_boot() + contract.call_seconds + _START_SECONDS
