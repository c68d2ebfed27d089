"""Steps without a call outside: a map's items, a subworkflow's input, a fixed answer, a stored answer."""

from __future__ import annotations

from typing import Any

from interlock.base.clock import Clock
from interlock.base.errors import ContractViolation, Erased, FailureKind, StepError
from interlock.base.labels import Labels
from interlock.base.refs import Ref
from interlock.execution.executors import CallRequest, CallResult
from interlock.execution.inputs.binding import bind
from interlock.execution.steps import StepExecution
from interlock.store.database import Database
from interlock.store.rows import KeptResult
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import Fallback, MapStep, ModelStep, SubworkflowStep, ToolStep

_COUNT = {"type": "object", "properties": {"count": {"type": "integer"}}}


class Lookups:
    """Finds values, and keeps those results that may serve again."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def inside(self, execution: StepExecution) -> CallResult:
        """A map's items or a subworkflow's input.

        Raises:
            ContractViolation: no list, too long a list, or an input that does not fit the subworkflow's schema.
        """
        step, version = execution.step, execution.run.version
        if isinstance(step, MapStep):
            bound = await bind(execution.run, step.items, execution.state, execution.name, now=self._clock.now())
            if not isinstance(bound.value, list):
                raise ContractViolation(f'"{step.items}" is no list, so step "{execution.name}" has no items')
            if len(bound.value) > step.max_items:
                raise ContractViolation(
                    f'"{step.items}" has {len(bound.value)} items, and step "{execution.name}" takes {step.max_items}; '
                    "raise max_items"
                )
            return CallResult(bound.value, _COUNT, bound.labels, facts={"count": len(bound.value)})
        assert isinstance(step, SubworkflowStep)
        bound = await bind(execution.run, step.input, execution.state, execution.name, now=self._clock.now())
        child = version.program.subworkflows[execution.path]
        required = set(child.input.get("required", ()))
        value = {name: one for name, one in bound.value.items() if one is not None or name in required}
        check_value(version.subworkflow_validators[execution.path], value, what=f'workflow "{child.name}": input')
        return CallResult(value, child.input, bound.labels)

    # -- answers known already ---------------------------------------------------------------------------------

    async def found(self, execution: StepExecution, fallback: Fallback, prepared: CallRequest) -> CallResult:
        """The answer of a fallback without a call.

        Raises:
            StepError: there is none, or none young enough.
        """
        if fallback.value is not None:
            return self.fixed(execution, fallback.value)
        done = await self._kept(execution, prepared, max_age=fallback.max_age)
        if done is None:
            raise StepError(
                f'no earlier result of step "{execution.name}" is at most {fallback.max_age:g} s old',
                kind=FailureKind.PERMANENT,
            )
        return done

    def fixed(self, execution: StepExecution, value: dict[str, Any]) -> CallResult:
        """The declared answer of a fallback; no call is made."""
        return CallResult(value, schema_of(execution), Labels())

    async def cached(self, execution: StepExecution, prepared: CallRequest) -> CallResult | None:
        """The answer to the very same call, if its contract or step lets it be used again and it is young enough."""
        seconds = cache_seconds(execution)
        if seconds is None:
            return None
        if execution.fallback is not None and execution.fallback.max_age is not None:
            seconds = min(seconds, execution.fallback.max_age)
        return await self._kept(execution, prepared, max_age=seconds)

    async def _kept(
        self, execution: StepExecution, prepared: CallRequest, *, max_age: float | None
    ) -> CallResult | None:
        key = await self._key(execution, prepared)
        row = await self._database.row("get_result", execution.run.org_id, key, org=execution.run.org_id)
        if row is None:
            return None
        ref = Ref.from_json(row["output"])
        as_of = ref.labels.as_of if ref.labels.as_of is not None else row["created_at"].timestamp()
        if max_age is not None and self._clock.now() - as_of > max_age:
            return None
        try:
            return CallResult(await execution.run.value(ref), schema_of(execution), ref.labels.join(prepared.labels))
        except Erased:
            return None

    async def row(self, execution: StepExecution, prepared: CallRequest, output: Ref) -> KeptResult | None:
        """Row that lets a result serve again (cache, last good answer); None if neither is declared."""
        if not _is_kept(execution):
            return None
        key = await self._key(execution, prepared)
        return KeptResult(org_id=execution.run.org_id, key=key, output=output.to_json())

    async def _key(self, execution: StepExecution, prepared: CallRequest) -> str:
        """Keyed digest of a call's identity: code or model, and all its input."""
        version, step = execution.run.version, execution.step
        if isinstance(step, ToolStep):
            what = {"tool": version.tools[step.tool].bundle, "arguments": prepared.payload}
        else:
            assert isinstance(step, ModelStep)
            what = {"model": version.models[step.model], "request": prepared.request}
        return await execution.run.artifacts.digest(execution.run.org_id, what, prepared.labels)


def schema_of(execution: StepExecution) -> Any:
    """The schema that the step's own answer fits."""
    if isinstance(execution.step, ToolStep):
        return execution.run.version.tools[execution.step.tool].contract.output
    assert isinstance(execution.step, ModelStep)
    return execution.step.output


def cache_seconds(execution: StepExecution) -> float | None:
    """For how long an answer may be used again; None for never."""
    if isinstance(execution.step, ToolStep):
        return execution.run.version.tools[execution.step.tool].contract.cache
    return execution.step.cache if isinstance(execution.step, ModelStep) else None


def _is_kept(execution: StepExecution) -> bool:
    step = execution.node.step
    ladder = step.fallback if isinstance(step, ModelStep | ToolStep) else []
    return execution.here.variant == 0 and (
        cache_seconds(execution) is not None or any(one.last_good for one in ladder)
    )
