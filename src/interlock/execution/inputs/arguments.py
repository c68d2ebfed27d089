"""What a step's work is given: a tool's arguments, or the values of a prompt's slots."""

from __future__ import annotations

from interlock.execution.inputs.binding import Bound, bind
from interlock.execution.inputs.conversation import asked_for
from interlock.execution.steps import Work
from interlock.workflows.spec import ModelStep, ToolStep


async def arguments_of(work: Work, *, lenient: bool = False, now: float | None = None) -> Bound:
    """What a person put in its place when requeueing a dead letter; else what an agent's model asked for; else what is bound.

    Optional arguments that came out as null are left out.

    Args:
        lenient, now: as for `bind`.

    Raises:
        ContractViolation: it reads a step that did not run.
        Stale: it reads something too old.
        Erased: it reads something about a person whose key was destroyed.
    """
    step, override = work.step, work.here.override
    assert isinstance(step, ModelStep | ToolStep)
    if override is not None:
        bound = Bound(await work.run.value(override), override.labels)
    elif isinstance(step, ModelStep):
        return await bind(work.run, step.values, work.state, work.name, lenient=lenient, now=now)
    elif work.node.agent is not None:
        bound = Bound(*await asked_for(work))
    else:
        bound = await bind(work.run, step.input, work.state, work.name, lenient=lenient, now=now)
    tool = work.run.version.tools.get(step.tool) if isinstance(step, ToolStep) else None
    if tool is not None and isinstance(bound.value, dict):
        required = tool.contract.input.get("required", ())
        bound.value = {name: value for name, value in bound.value.items() if value is not None or name in required}
    return bound
