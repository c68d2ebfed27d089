"""Work that asks nobody outside: a map's items, a subworkflow's input, a fixed answer, an answer that is known already."""

from __future__ import annotations

from typing import Any

from interlock.base.clock import Clock
from interlock.base.errors import ContractViolation, Erased, FailureKind, StepError
from interlock.base.labels import Labels
from interlock.base.refs import Ref
from interlock.execution.executors import Done, Prepared
from interlock.execution.inputs.binding import bind
from interlock.execution.steps import Work
from interlock.store.artifacts import Sealed
from interlock.store.database import Database
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import Fallback, MapStep, ModelStep, SubworkflowStep, ToolStep

_COUNT = {"type": "object", "properties": {"count": {"type": "integer"}}}


class Lookups:
    """Finds values, and keeps those results that may serve again."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def inside(self, work: Work) -> Done:
        """A map's items or a subworkflow's input.

        Raises:
            ContractViolation: no list, too long a list, or an input that does not fit the subworkflow's schema.
        """
        step, version = work.step, work.run.version
        if isinstance(step, MapStep):
            bound = await bind(work.run, step.items, work.state, work.name, now=self._clock.now())
            if not isinstance(bound.value, list):
                raise ContractViolation(f'"{step.items}" is no list, so step "{work.name}" has no items')
            if len(bound.value) > step.max_items:
                raise ContractViolation(
                    f'"{step.items}" has {len(bound.value)} items, and step "{work.name}" takes {step.max_items}; raise max_items'
                )
            return Done(bound.value, _COUNT, bound.labels, facts={"count": len(bound.value)})
        assert isinstance(step, SubworkflowStep)
        bound = await bind(work.run, step.input, work.state, work.name, now=self._clock.now())
        child = version.program.subworkflows[work.path]
        required = set(child.input.get("required", ()))
        value = {name: one for name, one in bound.value.items() if one is not None or name in required}
        check_value(version.subworkflow_validators[work.path], value, what=f'workflow "{child.name}": input')
        return Done(value, child.input, bound.labels)

    # -- answers known already ---------------------------------------------------------------------------------

    async def found(self, work: Work, fallback: Fallback, prepared: Prepared) -> Done:
        """The answer of a fallback that asks nobody.

        Raises:
            StepError: there is none, or none young enough.
        """
        if fallback.value is not None:
            return self.fixed(work, fallback.value)
        done = await self._kept(work, prepared, max_age=fallback.max_age)
        if done is None:
            raise StepError(
                f'no earlier result of step "{work.name}" is at most {fallback.max_age:g} s old',
                kind=FailureKind.PERMANENT,
            )
        return done

    def fixed(self, work: Work, value: dict[str, Any]) -> Done:
        """An answer that was declared; it asks nobody and needs nothing."""
        return Done(value, schema_of(work), Labels())

    async def cached(self, work: Work, prepared: Prepared) -> Done | None:
        """The answer to the very same call, if its contract or step lets it be used again and it is young enough."""
        seconds = cache_seconds(work)
        if seconds is None:
            return None
        if work.fallback is not None and work.fallback.max_age is not None:
            seconds = min(seconds, work.fallback.max_age)
        return await self._kept(work, prepared, max_age=seconds)

    async def _kept(self, work: Work, prepared: Prepared, *, max_age: float | None) -> Done | None:
        key = (await self._key(work, prepared)).ref.digest
        row = await self._database.row("get_result", work.run.org_id, key, org=work.run.org_id)
        if row is None:
            return None
        ref = Ref.from_json(row["output"])
        as_of = ref.labels.as_of if ref.labels.as_of is not None else row["created_at"].timestamp()
        if max_age is not None and self._clock.now() - as_of > max_age:
            return None
        try:
            return Done(await work.run.value(ref), schema_of(work), ref.labels.join(prepared.labels))
        except Erased:
            return None

    async def row(self, work: Work, prepared: Prepared, output: Ref) -> dict[str, Any] | None:
        """What is to be committed with a result so that it can serve again; None if nothing asks for that."""
        if not _is_kept(work):
            return None
        digest = (await self._key(work, prepared)).ref.digest
        return {"org_id": work.run.org_id, "key": digest, "output": output.to_json()}

    async def _key(self, work: Work, prepared: Prepared) -> Sealed:
        """What makes a call the very same: code or model, and all it is given. Keyed like every digest, so it tells nothing."""
        version, step = work.run.version, work.step
        if isinstance(step, ToolStep):
            what = {"tool": version.tools[step.tool].bundle, "arguments": prepared.payload}
        else:
            assert isinstance(step, ModelStep)
            what = {"model": version.models[step.model], "request": prepared.request}
        return await work.run.artifacts.seal(work.run.org_id, what, prepared.labels)


def schema_of(work: Work) -> Any:
    """The schema that the step's own answer fits."""
    if isinstance(work.step, ToolStep):
        return work.run.version.tools[work.step.tool].contract.output
    assert isinstance(work.step, ModelStep)
    return work.step.output


def cache_seconds(work: Work) -> float | None:
    """For how long an answer may be used again; None for never."""
    if isinstance(work.step, ToolStep):
        return work.run.version.tools[work.step.tool].contract.cache
    return work.step.cache if isinstance(work.step, ModelStep) else None


def _is_kept(work: Work) -> bool:
    step = work.node.step
    ladder = step.fallback if isinstance(step, ModelStep | ToolStep) else []
    return work.here.variant == 0 and (cache_seconds(work) is not None or any(one.last_good for one in ladder))
