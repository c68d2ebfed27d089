"""Scripted steps: take work from a real engine, and answer when it is that answer's turn in the script.

Values are really sealed and the effect ledger is really written, in the order of the real kernel; only no call is made.
"""

from __future__ import annotations

import asyncio
from typing import Any

from interlock.base.errors import LeaseLost
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.execution.approvals import Act, Approvals, act_of, consumed_rows
from interlock.execution.effects import Effect, EffectLedger, EffectSite
from interlock.execution.run import StepExecution, StepOutcome
from interlock.guard.gate import composed
from interlock.store.artifacts import Sealed
from interlock.store.commit import Committer
from interlock.store.database import Database
from interlock.workflows.spec import MapStep, ToolStep

from .scenario import Entry, outcome_event

Key = tuple[str, str, str]
"""(run, perform or compensate, step)."""

_REFUSED = {"denied", "budget", "invalid"}
"""Kinds of failure that come before anything is called."""


class ScriptedSteps:
    """Fulfils what engines use of `execution.steps.Steps`."""

    def __init__(self, database: Database, committer: Committer, approval_key: bytes) -> None:
        self._approvals = Approvals(database, approval_key)
        self._ledger = EffectLedger(database, committer)
        self._answers: dict[Key, tuple[int, asyncio.Future[tuple[Entry, float]]]] = {}
        self.works: dict[str, list[str]] = {}

    def under_way(self, run_id: str, kind: str, step: str) -> int | None:
        """The attempt that waits for its answer."""
        found = self._answers.get((run_id, kind, step))
        return found[0] if found is not None else None

    def answer(self, run_id: str, kind: str, entry: Entry, now: float) -> None:
        self._answers.pop((run_id, kind, str(entry.target)))[1].set_result((entry, now))

    def waiting(self, run_id: str) -> list[str]:
        """Steps that wait for their answers, sorted."""
        return sorted(step for run, _, step in self._answers if run == run_id)

    def give_up(self) -> None:
        """Nobody will answer any more: engines let go of what is under way."""
        for _, answer in self._answers.values():
            if not answer.done():
                answer.set_exception(LeaseLost("the scenario is over"))
        self._answers.clear()

    async def perform(self, execution: StepExecution) -> StepOutcome:
        entry, now = await self._asked("perform", execution)
        if entry.verb == "lacks":
            return await self._lacking(execution, entry, now)
        sealed = await execution.run.artifacts.seal(execution.run.org_id, composed(_value(execution, entry)), DEFINED)
        event = outcome_event(entry, execution.attempt, now, now, sealed.ref)
        outcome = StepOutcome(event, artifacts=[sealed.row])
        execution.run.remember(sealed.ref, _value(execution, entry))  # it may be read before it is durable
        failed = entry.verb == "fail"
        if _mutates(execution) and entry.verb != "defer" and not (failed and entry.options.get("kind") in _REFUSED):
            effect = await self._begun(execution)
            if not failed:
                outcome.effects.append(effect.succeeded(sealed.ref))
            elif not event.failure.ambiguous:
                outcome.effects.append(effect.failed())
        return outcome

    async def _lacking(self, execution: StepExecution, entry: Entry, now: float) -> StepOutcome:
        arguments = await self._arguments(execution)
        act = _act(execution, arguments)
        return StepOutcome(
            outcome_event(entry, execution.attempt, now, now, arguments.ref, (act.digest, act.policy)),
            artifacts=[arguments.row],
        )

    async def compensate(self, execution: StepExecution) -> StepOutcome:
        entry, now = await self._asked("compensate", execution)
        event = outcome_event(entry, execution.attempt, now, now, _none())
        effects = [_effect(execution, await self._arguments(execution)).compensated()] if entry.verb == "undone" else []
        return StepOutcome(event, effects=effects)

    async def _asked(self, kind: str, execution: StepExecution) -> tuple[Entry, float]:
        key = (execution.run.run_id, kind, execution.name)
        self.works.setdefault(execution.run.run_id, []).append(f"{kind} {execution.name} {execution.attempt}")
        assert key not in self._answers, f"{key} is done twice at once"
        answer: asyncio.Future[tuple[Entry, float]] = asyncio.get_running_loop().create_future()
        self._answers[key] = (execution.attempt, answer)
        try:
            return await answer
        finally:
            if answer.cancelled():  # its worker has let go of the run
                self._answers.pop(key, None)

    async def _begun(self, execution: StepExecution) -> Effect:
        """The effect of an attempt, on record as being made."""
        in_doubt = execution.attempt > 1 and await self._ledger.status(_site(execution)) == "executing"
        arguments = await self._arguments(execution)
        effect = _effect(execution, arguments)
        standing = await self._approvals.standing(_act(execution, arguments), effect.idempotency_key)
        assert standing.facts.digest_matches is (execution.here.asked > 0), "what a person approved is on record"
        if not in_doubt:
            consumed = consumed_rows(standing.unused, effect.idempotency_key)
            await self._ledger.intend(execution.run, effect, arguments, consumed)
        await self._ledger.executing(execution.run, effect)
        return effect

    async def _arguments(self, execution: StepExecution) -> Sealed:
        return await execution.run.artifacts.seal(execution.run.org_id, composed({"step": execution.name}), DEFINED)


def _site(execution: StepExecution) -> EffectSite:
    assert isinstance(execution.step, ToolStep)
    run = execution.run
    return EffectSite(
        run.run_id, execution.effect_name, run.org_id, run.version.tools[execution.step.tool], execution.attempt
    )


def _effect(execution: StepExecution, arguments: Sealed) -> Effect:
    return _site(execution).effect(arguments.ref)


def _act(execution: StepExecution, arguments: Sealed) -> Act:
    return act_of(execution.run, _site(execution), arguments.ref, execution.run.policy.version)


def _mutates(execution: StepExecution) -> bool:
    called = execution.fallback is None or execution.fallback.tool is not None
    return (
        called and isinstance(execution.step, ToolStep) and execution.run.version.program.mutates(execution.step.tool)
    )


def _value(execution: StepExecution, entry: Entry) -> Any:
    facts, calls = entry.options.get("facts", {}), entry.options.get("calls")
    if "value" in entry.options:
        return entry.options["value"]
    if isinstance(execution.step, MapStep):
        return list(range(facts.get("count", 0)))
    if calls:  # as a model asks for them: what people are shown of a call in doubt is read from here
        return {"calls": [{"tool": tool, "arguments": {"step": execution.name}} for tool in calls], "answer": None}
    return {"step": execution.name, **facts}


def _none() -> Ref:
    return Ref("0" * 64, 0, DEFINED)
