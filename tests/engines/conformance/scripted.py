"""The scripted kernel: takes work from a real engine, and answers when it is that answer's turn in the script.

Values are really sealed and the effect ledger is really written, in the order of the real kernel; only nobody is called.
"""

from __future__ import annotations

import asyncio
from typing import Any

from interlock.base.errors import LeaseLost
from interlock.base.labels import Labels
from interlock.base.refs import Ref
from interlock.execution.effects import Effect, EffectLedger, idempotency_key
from interlock.execution.steps import Outcome, Work
from interlock.store.artifacts import Sealed
from interlock.store.commit import Committer
from interlock.store.database import Database
from interlock.workflows.spec import MapStep, ToolStep

from .scenario import Entry, outcome_event

Key = tuple[str, str, str]
"""(run, perform or compensate, step)."""

_REFUSED = {"denied", "budget", "invalid"}
"""Kinds of failure that come before anything is called."""


class ScriptedKernel:
    """Fulfils what engines use of `runtime.kernel.Kernel`."""

    def __init__(self, database: Database, committer: Committer) -> None:
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

    async def perform(self, work: Work) -> Outcome:
        entry, now = await self._asked("perform", work)
        sealed = await work.run.artifacts.seal(work.run.org_id, _value(work, entry), Labels())
        event = outcome_event(entry, work.attempt, now, sealed.ref)
        outcome = Outcome(event, artifacts=[sealed.row])
        work.run.remember(sealed.ref, _value(work, entry))  # it may be read before it is durable
        failed = entry.verb == "fail"
        if _mutates(work) and entry.verb != "defer" and not (failed and entry.options.get("kind") in _REFUSED):
            effect = await self._begun(work)
            if not failed:
                outcome.effects.append(effect.row("succeeded", sealed.ref))
            elif not event.failure.ambiguous:
                outcome.effects.append(effect.row("failed"))
        return outcome

    async def compensate(self, work: Work) -> Outcome:
        entry, now = await self._asked("compensate", work)
        event = outcome_event(entry, work.attempt, now, _none())
        effects = [_effect(work, await self._arguments(work)).row("compensated")] if entry.verb == "undone" else []
        return Outcome(event, effects=effects)

    async def _asked(self, kind: str, work: Work) -> tuple[Entry, float]:
        key = (work.run.run_id, kind, work.name)
        self.works.setdefault(work.run.run_id, []).append(f"{kind} {work.name} {work.attempt}")
        assert key not in self._answers, f"{key} is done twice at once"
        answer: asyncio.Future[tuple[Entry, float]] = asyncio.get_running_loop().create_future()
        self._answers[key] = (work.attempt, answer)
        try:
            return await answer
        finally:
            if answer.cancelled():  # its worker has let go of the run
                self._answers.pop(key, None)

    async def _begun(self, work: Work) -> Effect:
        """The effect of an attempt, on record as being made."""
        in_doubt = work.attempt > 1 and await self._ledger.status(work) == "executing"
        arguments = await self._arguments(work)
        effect = _effect(work, arguments)
        if not in_doubt:
            await self._ledger.intend(work, effect, arguments)
        await self._ledger.executing(work, effect)
        return effect

    async def _arguments(self, work: Work) -> Sealed:
        return await work.run.artifacts.seal(work.run.org_id, {"step": work.name}, Labels())


def _effect(work: Work, arguments: Sealed) -> Effect:
    assert isinstance(work.step, ToolStep)
    key = idempotency_key(work.run.run_id, work.effect_name, arguments.ref.digest)
    return Effect(work.run.run_id, work.effect_name, work.run.org_id, work.step.tool, key, work.attempt, arguments.ref)


def _mutates(work: Work) -> bool:
    called = work.fallback is None or work.fallback.tool is not None
    return called and isinstance(work.step, ToolStep) and work.run.version.program.mutates(work.step.tool)


def _value(work: Work, entry: Entry) -> Any:
    facts, calls = entry.options.get("facts", {}), entry.options.get("calls")
    if "value" in entry.options:
        return entry.options["value"]
    if isinstance(work.step, MapStep):
        return list(range(facts.get("count", 0)))
    if calls:  # as a model asks for them: what people are shown of a call in doubt is read from here
        return {"calls": [{"tool": tool, "arguments": {"step": work.name}} for tool in calls], "answer": None}
    return {"step": work.name, **facts}


def _none() -> Ref:
    return Ref("0" * 64, 0, Labels())
