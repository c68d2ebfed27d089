"""The effect ledger: what a run does to the outside world, written down before it is done.

    intended → executing → succeeded | failed | unknown → … → compensated

All six moves are here. `intended` and `executing` are commits of their own, ahead of the call. The others are rows that are
committed together with what they come from: the outcome of the call, the question to a person whether it happened, their
answer, or the compensation.

After a crash it is unknown whether an effect in `executing` happened. Then: the same key again if the tool
honours it, its probe if it has one, and otherwise a person. Never a guess.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Protocol

from interlock.base.clock import since_boot
from interlock.base.refs import Ref
from interlock.base.values import value
from interlock.store.artifacts import Sealed
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database
from interlock.store.entries import Entry
from interlock.store.people_rows import ConsumedApproval
from interlock.store.rows import EffectRow, EffectStatus
from interlock.tools.registry import Tool
from interlock.workflows.contracts import ToolContract

# Seconds a sandbox is given to start, on top of the tool's own: it takes 0.03 s, on a host in distress more than one.
_START_SECONDS = 2.0
# Seconds that a request may be on its way to the tool's far side.
_FLIGHT_SECONDS = 1.0


@value(frozen=True, slots=True)
class Effect:
    """A mutating call: its key is the same in every attempt, because it derives from run, step and input only."""

    run_id: str
    step: str
    org_id: str
    tool: str
    idempotency_key: str
    attempt: int
    input: Ref

    def intended(self) -> EffectRow:
        """The call will be made."""
        return self._row("intended")

    def executing(self) -> EffectRow:
        """The call is being made."""
        return self._row("executing")

    def succeeded(self, output: Ref) -> EffectRow:
        """The call did its work, and gave this."""
        return self._row("succeeded", output)

    def failed(self) -> EffectRow:
        """The call did nothing."""
        return self._row("failed")

    def unknown(self) -> EffectRow:
        """The call was cut off; a person is asked whether it did its work."""
        return self._row("unknown")

    def compensated(self) -> EffectRow:
        """The call did its work, and that was undone."""
        return self._row("compensated")

    def _row(self, status: EffectStatus, output: Ref | None = None) -> EffectRow:
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


@value(frozen=True, slots=True)
class EffectSite:
    """The entry of the ledger for a call whose arguments need not be known yet.

    Attributes:
        step: the instance and its variant, see `EffectName`.
    """

    run_id: str
    step: str
    org_id: str
    tool: Tool
    attempt: int

    def effect(self, arguments: Ref) -> Effect:
        """The effect of the call with these arguments."""
        key = idempotency_key(self.run_id, self.step, arguments.digest)
        return self._effect(key, arguments)

    def entered(self, shown: Ref) -> Effect:
        """The effect whose entry is there and only moves: its key and input stay what they were when it was intended."""
        return self._effect("", shown)

    def _effect(self, key: str, value: Ref) -> Effect:
        return Effect(self.run_id, self.step, self.org_id, self.tool.contract.name, key, self.attempt, value)


def idempotency_key(run_id: str, step: str, input_digest: str) -> str:
    """Key of a mutating call; 160 bits, derived, so a worker that takes over computes the same."""
    return hashlib.sha256(f"{run_id}\0{step}\0{input_digest}".encode()).hexdigest()[:40]


class Committing(Protocol):
    """A caller that commits under its lease."""

    def commit(self) -> Commit: ...


class EffectLedger:
    """Writes the two moves that go ahead of a call, and reads where an effect stands."""

    def __init__(self, database: Database, committer: Committer) -> None:
        self._database = database
        self._committer = committer

    async def status(self, site: EffectSite) -> EffectStatus | None:
        """The status of a call's effect; None if it was never intended.

        If another worker was in the middle of this very attempt, its call may still be under way, at a worker that lost
        the run or on the network, and neither a probe nor a person could see it. So this waits until the tool's own
        deadline for that call has passed. Of an earlier attempt that has ended, only what was on its way may still arrive: the
        far side may be slow to do what its caller gave up on. Only a tool that honours its key has no need to wait.
        """
        row = await self._database.row("get_effect", site.run_id, site.step, org=site.org_id)
        if row is None:
            return None
        status: EffectStatus = row["status"]
        contract = site.tool.contract
        if status == "executing" and not contract.honours_idempotency:
            left = contract.call_seconds + _START_SECONDS + _FLIGHT_SECONDS - row["age"]
            await asyncio.sleep(max(0.0, left if row["attempt"] == site.attempt else min(left, _FLIGHT_SECONDS)))
        return status

    async def intend(
        self,
        caller: Committing,
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
        commit = caller.commit()
        commit.artifacts.append(arguments.row)
        if consumed:
            commit.consumed_approvals += consumed
            commit.audit += audit or []
        commit.effects.append(effect.intended())
        await self._committer.submit(commit)

    async def executing(self, caller: Committing, effect: Effect) -> None:
        """Durable before the tool gets the call: from here on a crash leaves the effect in doubt.

        Raises:
            LeaseLost: the run was taken over; nothing may be done.
        """
        commit = caller.commit()
        commit.effects.append(effect.executing())
        await self._committer.submit(commit)


def call_ends(contract: ToolContract) -> float:
    """The moment (`since_boot`) after which a call that is about to be marked as executing sends nothing any more.

    Taken before the mark, so that a worker that reads the mark and waits as `status` does cannot be overtaken by the call.
    """
    return since_boot() + contract.call_seconds + _START_SECONDS
