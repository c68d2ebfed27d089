"""Input of a step: a tool's arguments, or the values of a prompt's slots."""

from __future__ import annotations

from interlock.execution.inputs.binding import Bound, bind
from interlock.execution.inputs.conversation import asked_for
from interlock.execution.run import StepExecution
from interlock.workflows.spec import ModelStep, ToolStep


async def arguments_of(execution: StepExecution, *, lenient: bool = False, now: float | None = None) -> Bound:
    """Resolves the input: a person's replacement from a requeued dead letter; else the agent's request; else the bindings.

    Optional arguments that came out as null are left out.

    Args:
        lenient, now: as for `bind`.

    Raises:
        ContractViolation: it reads a step that did not run.
        Stale: it reads something too old.
        Erased: it reads something about a person whose key was destroyed.
    """
    step, override = execution.step, execution.here.override
    assert isinstance(step, ModelStep | ToolStep)
    if override is not None:
        bound = Bound(await execution.run.value(override), override.labels)
    elif isinstance(step, ModelStep):
        return await bind(execution.run, step.values, execution.state, execution.name, lenient=lenient, now=now)
    elif execution.node.agent is not None:
        bound = Bound(*await asked_for(execution))
    else:
        bound = await bind(execution.run, step.input, execution.state, execution.name, lenient=lenient, now=now)
    tool = execution.run.version.tools.get(step.tool) if isinstance(step, ToolStep) else None
    if tool is not None and isinstance(bound.value, dict):
        required = tool.contract.input.get("required", ())
        bound.value = {name: value for name, value in bound.value.items() if value is not None or name in required}
    return bound
